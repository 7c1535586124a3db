"""DeepLIFT: contributions against a reference, with positive and negative parts kept apart.

Paper     Shrikumar, Greenside and Kundaje 2017, arXiv:1704.02685, sections 3.2 to 3.6
Computes  multipliers m+ and m- chained backward from a logit through the Linear rule and, at nonlinearities, Rescale
          (dy/dx) or RevealCancel (what each part adds, before and after the other); contributions m+ dx+ + m- dx-
Shapes    inputs (n, ...), target (n,) int64 -> values (n, ...), gap (n,) = |sum of values - (F(x) - F(reference))|
Departs   1. the network is traced, so that a module which runs twice is two places: nothing need be cloned or refused
          2. max-pooling shares the rise between the winners at x and at the reference by their Shapley values, which
             keeps the sum exact where the two differ; the release and captum send it to the winners' gradients
          3. normalisation, sums and averages after a layer keep its two parts, as if they were folded into it
          4. an embedding gives a category's code the whole change of its vector
          5. all is computed in float64
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.explanation.attribution import reference_like, require_eval
from probatum.numerics.networks.copies import copied
from probatum.numerics.tensors.targets import class_targets
from probatum.spec import Explanation
from probatum.techniques.explain.deeplift.two_stream import multipliers, trace

CARD = Card(
    paper="arXiv:1704.02685",
    title="Learning Important Features Through Propagating Activation Differences",
    entry="deeplift",
    number=223,
    tags=("explanation", "attribution"),
    modalities=("table", "image", "series"),
    tiny={"rule": "rescale"},
    tune={"rule": ["rescale", "reveal-cancel", "mixed"]},
    claims=("conversion-of-digits",),
)

RULES = ("rescale", "reveal-cancel", "mixed")
Reference = Tensor | float | None


def deeplift(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    *,
    reference: Reference | Sequence[Reference] = None,
    rule: str = "mixed",
    contrast: Tensor | None = None,
    chunk: int = 256,
) -> Explanation:
    """Contributions of every input to the target's logit, against a reference.

    Args:
        model: in evaluation mode, one input (n, ...) -> logits (n, outputs); a softmax at its end is left out.
        inputs: (n, ...); categories or tokens may be integer codes in front of an embedding.
        target: output to explain (n,).
        reference: None = zeros, a number, one example, a batch (n, ...); or a list of these, which is averaged.
        rule: "rescale", "reveal-cancel", or "mixed": RevealCancel on activations (n, features), as behind dense layers,
            and Rescale on all of another shape, as behind convolutions.
        contrast: outputs (n,) whose logit is subtracted from the target's.
        chunk: most examples at once.

    Returns:
        values (n, ...) in the inputs' dtype (float32 for codes), gap (n,).

    Raises:
        TypeError: a model that is no module, takes several inputs, or uses an operation without a rule.
        ValueError: a wrong shape or rule, a model in training mode or one that cannot be traced.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 1), nn.ReLU()).eval()
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, -1.0]])), net[0].bias.data.zero_()
        >>> x, first = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
        >>> deeplift(net, x, first, rule="rescale").values, deeplift(net, x, first, rule="reveal-cancel").values
        (tensor([[ 3., -1.]]), tensor([[ 2.5000, -0.5000]]))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; the layers of an nn.Module are needed")
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; use one of {', '.join(RULES)}")
    if inputs.ndim < 2 or len(inputs) == 0:
        raise ValueError(f"inputs have shape {tuple(inputs.shape)}; expected a batch (n, ...) with n > 0")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; give 1 or more examples at once")
    require_eval(model)
    dtype = inputs.dtype if inputs.is_floating_point() else torch.float32
    x = inputs.detach().double()
    given = reference if isinstance(reference, list | tuple) else [reference]
    references = [reference_like(x, one, "reference") for one in given]
    graph = trace(copied(model).double().requires_grad_(False))
    values, gap = torch.zeros_like(x), torch.zeros(len(x), dtype=x.dtype, device=x.device)
    with torch.no_grad():
        for rows in torch.arange(len(x), device=x.device).split(chunk):
            other = None if contrast is None else contrast[rows]
            error = torch.zeros_like(gap[rows])
            for one in references:
                found, after, before = multipliers(
                    graph, x[rows], one[rows], lambda out, r=rows, o=other: _seed(out, target[r], o), _reveal(rule)
                )
                values[rows] += found / len(references)
                error += (found.flatten(1).sum(dim=1) - (after - before)) / len(references)
            gap[rows] = error.abs()
    return Explanation(values.to(dtype), gap.to(dtype))


def _seed(output: Tensor, target: Tensor, contrast: Tensor | None) -> Tensor:
    """Weights of the outputs: 1 for the target, -1 for the contrast."""
    target = class_targets(output, target, least=1)
    weights = F.one_hot(target, output.shape[1]).to(output.dtype)
    if contrast is None:
        return weights
    contrast = class_targets(output, contrast, least=1)
    return weights - F.one_hot(contrast, output.shape[1]).to(output.dtype)


def _reveal(rule: str) -> Callable[[Tensor], bool]:
    if rule == "mixed":
        return lambda x: x.ndim == 2
    return lambda x: rule == "reveal-cancel"
