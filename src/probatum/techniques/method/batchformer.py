"""BatchFormer: in training a transformer layer attends across the samples of a batch; at test it is gone.

Paper     Hou, Yu and Tao 2022, "BatchFormer: Learning to Explore Sample Relationships for Robust Representation Learning",
          CVPR, arXiv:2203.01522, section 3
Computes  z' = LN(h + FFN(h)), h = LN(z + MHA(z)) with the batch as the sequence and no positions; the one classifier sees z
          and z', and the loss is that of both, each with the batch's targets; evaluation sees z alone
Shapes    features z (n, C), n >= 2 -> z' (n, C); with targets (n, ...) -> outputs (2n, ...), targets (2n, ...)
Departs   1. slot method, not layer: it changes targets and loss of a training step and leaves the network as it was
          2. on the bench the halves' losses are averaged, (1 - share) L + share L', which for share 1/2 is the mean over 2n
             rows of every loss that is a mean; a share of 0 is the baseline. What other methods added to the loss before counts
             as part of the first half and is weighed with it
          3. dropout draws from a stream of its own
"""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.networks.watch import HeadInputs
from probatum.numerics.tensors.draws import in_forward

CARD = Card(
    paper="arXiv:2203.01522",
    title="BatchFormer: Learning to Explore Sample Relationships for Robust Representation Learning",
    entry="BatchFormer",
    number=241,
    tags=("imbalance", "attention", "training", "vision"),
    alone="its block attends across the rows of a batch, and its features come from a forward hook",
    neutral={"share": 0.0},
    tune={"dropout": (0.0, 0.7), "share": (0.1, 0.7), "heads": [1, 4]},
    claims=("few-shot-classes", "few-shot-classes-cross-entropy"),
    expect_fail={"losses_add_up": "the loss is the mean over both halves: what came before counts 1 - share"},
)

MANY = 4096
"""Batches above this size bring a warning, since attention takes their square."""


class BatchEncoder(nn.Module):
    """A post-norm transformer encoder layer over the rows of z (n, C); parameters named as in `nn.TransformerEncoderLayer`.

    Args:
        width: C, a multiple of `heads`.
        heads: attention heads, >= 1.
        dropout: rate in [0, 1), on attention weights, both branches and the hidden units.
        generator: for weights and dropout.
    """

    def __init__(self, width: int, heads: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads is {heads}; it must divide the {width} features of the last layer, e.g. heads=1")
        self.heads, self.rate, self.generator = heads, dropout, generator
        self.self_attn = nn.Module()
        self.self_attn.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.self_attn.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.self_attn.out_proj = nn.utils.skip_init(nn.Linear, width, width)
        self.linear1, self.linear2 = (nn.utils.skip_init(nn.Linear, width, width) for _ in range(2))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        bound = 1 / math.sqrt(width)
        with torch.no_grad():
            glorot = math.sqrt(6 / (4 * width))  # of the (3 C, C) matrix as a whole
            self.self_attn.in_proj_weight.uniform_(-glorot, glorot, generator=generator)
            for layer in (self.self_attn.out_proj, self.linear1, self.linear2):
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)
            self.self_attn.out_proj.bias.zero_()

    def forward(self, z: Tensor) -> Tensor:
        h = self.norm1(z + self._dropped(self._attended(z)))
        hidden = self._dropped(F.relu(self.linear1(h)))
        return self.norm2(h + self._dropped(self.linear2(hidden)))

    def _attended(self, z: Tensor) -> Tensor:
        q, k, v = F.linear(z, self.self_attn.in_proj_weight, self.self_attn.in_proj_bias).chunk(3, dim=1)
        q, k, v = (part.unflatten(1, (self.heads, -1)).transpose(0, 1) for part in (q, k, v))  # (heads, n, C / heads)
        weights = (q @ k.mT / math.sqrt(q.shape[2])).softmax(dim=2)
        return self.self_attn.out_proj((self._dropped(weights) @ v).transpose(0, 1).flatten(1))

    def _dropped(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape, generator=in_forward(self.generator), device=self.generator.device).to(x.device)
        kept = kept >= self.rate
        return x * kept / (1 - self.rate)


class BatchFormer:
    """Relations among a batch's samples for training a classifier; in plain code `transform`, on the bench a method.

    Args:
        last_layer: the classifier, an `nn.Linear` on features (n, C).
        heads: attention heads, a divisor of C.
        dropout: rate inside the block, in [0, 1).
        share: weight of the attended half's loss, in [0, 1]; 0 = the baseline bit for bit.
        generator: for the block's weights and dropout; None = one of seed 0.

    Raises:
        ValueError: a setting outside its range; a batch of one sample; a model that goes on behind its last layer.
        TypeError: a last layer that is not `nn.Linear`.

    Example:
        >>> encoder, classifier = nn.Sequential(nn.Linear(5, 8), nn.ReLU()), nn.Linear(8, 3)
        >>> x, y = torch.linspace(-1, 1, 30).view(6, 5), torch.arange(6) % 3
        >>> former = BatchFormer(classifier)
        >>> weights = [*encoder.parameters(), *classifier.parameters(), *former.block.parameters()]
        >>> optimizer = torch.optim.SGD(weights, lr=0.1)
        >>> output, target = former.transform(encoder(x), y)
        >>> F.cross_entropy(output, target).backward()
        >>> tuple(output.shape), tuple(classifier(encoder(x)).shape)
        ((12, 3), (6, 3))
    """

    reads = ("target", "output")
    writes = ("loss", "optimizer")

    def __init__(
        self,
        last_layer: nn.Module,
        heads: int = 4,
        dropout: float = 0.5,
        share: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(last_layer, nn.Linear):
            raise TypeError(f"the last layer is {type(last_layer).__name__}; BatchFormer needs an nn.Linear classifier")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must lie in [0, 1)")
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; it must lie in [0, 1]")
        self.classifier, self.share = last_layer, share
        own = torch.Generator().manual_seed(0) if generator is None else generator
        self.block = BatchEncoder(last_layer.in_features, heads, dropout, own).to(last_layer.weight)
        self.inputs = HeadInputs(last_layer)

    def related(self, z: Tensor) -> Tensor:
        """z' (n, C) of features z (n, C)."""
        if z.ndim != 2:
            raise ValueError(f"features have shape {tuple(z.shape)}; BatchFormer relates rows of (n, C)")
        if len(z) < 2:
            raise ValueError(f"the batch has {len(z)} sample(s) and so no relations; use at least 2 (drop_last=True)")
        if len(z) > MANY:
            warnings.warn(f"attention over a batch of {len(z)} takes its square; {MANY} is plenty", stacklevel=3)
        return self.block(z)

    def transform(self, z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and targets of a training step: those of z and z' (2n rows); of z alone where the block is in eval mode."""
        if not self.block.training:
            return self.classifier(z), target
        return self.classifier(torch.cat([z, self.related(z)])), torch.cat([target, target])

    def state_dict(self) -> dict[str, Any]:
        """The block's weights and its stream."""
        return {"block": self.block.state_dict(), "generator": self.block.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.block.load_state_dict(state["block"])
        self.block.generator.set_state(state["generator"])

    def prepare(self, run: Any) -> None:
        """Watch the classifier's inputs and put the block's weights into the run's optimizer."""
        if not any(module is self.classifier for module in run.model.modules()):
            raise ValueError("the last layer is no part of the model in training; give the one that is")
        if "index" in inspect.signature(run.loss.forward).parameters:
            kind = type(run.loss).__name__
            raise ValueError(f"{kind} keeps state per row, which two looks at a batch would move twice; try them apart")
        self.block.to(self.classifier.weight).train()
        if self.share:
            self.inputs.attach(run.model)
        run.optimizer.add_param_group({"params": list(self.block.parameters())})

    def before_pass(self, run: Any, batch: Any) -> None:
        """What earlier passes saw is let go."""
        self.inputs.begin()

    def loss(self, run: Any, batch: Any, output: Tensor, loss: Tensor) -> Tensor:
        """(1 - share) of the loss on the features and share of that on the attended ones."""
        if self.share == 0:
            return loss
        attended = self.related(self.inputs.take(len(output), output))
        logits = self.classifier.forward(attended).to(output.dtype)  # its own rule, past the hook that reads features
        other = run.objective(batch, logits)
        return (1 - self.share) * loss + self.share * other

    def finish(self, run: Any) -> None:
        """Take the block out of the optimizer and the hook off the model."""
        own = {id(parameter) for parameter in self.block.parameters()}
        groups = run.optimizer.param_groups
        groups[:] = [group for group in groups if not any(id(parameter) in own for parameter in group["params"])]
        for parameter in self.block.parameters():
            run.optimizer.state.pop(parameter, None)
        self.detach()

    def detach(self) -> None:
        """Take the hook off."""
        self.inputs.detach()


def influences(former: BatchFormer, z: Tensor, target: Tensor) -> Tensor:
    """Norms (n, n) of the gradient of row j's cross-entropy by the features of row i, at (i, j), through the block.

    Without the block only the diagonal is not zero; means over classes show which classes learn from which.
    """
    features = z.detach().requires_grad_()
    losses = F.cross_entropy(former.classifier(former.related(features)), target, reduction="none")
    rows = [torch.autograd.grad(loss, features, retain_graph=True)[0].norm(dim=1) for loss in losses]
    return torch.stack(rows, dim=1)


def group_accuracy(
    predicted: Tensor, target: Tensor, counts: Tensor, many: int = 100, few: int = 20
) -> dict[str, float]:
    """Mean over classes of their accuracy, for classes of more than `many`, of `few` to `many`, and of fewer training rows.

    predicted and target (n,) int64, counts (classes,); groups without a class are left out.
    """
    groups = {"many": counts > many, "medium": (counts <= many) & (counts >= few), "few": counts < few}
    found = {}
    for name, members in groups.items():
        own = [predicted[target == c] == c for c in members.nonzero().flatten().tolist() if bool((target == c).any())]
        if own:
            found[name] = float(torch.stack([right.float().mean() for right in own]).mean())
    return found
