"""What learners with several networks share: heads for real targets, starts from a factory, and the predictor itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from probatum.numerics.networks.last_layer import find_last_layer
from probatum.numerics.networks.modes import kept_in_evaluation
from probatum.numerics.networks.surgery import swapped
from probatum.numerics.posterior.ensembles import Members, RowLoss, class_losses, gaussian_losses, square_losses
from probatum.numerics.posterior.stacked import Posterior, Stacked
from probatum.numerics.tensors.draws import own_draws
from probatum.numerics.tensors.precision import widened
from probatum.numerics.tensors.targets import real_targets
from probatum.spec import Data, Part, Spec

Factory = Callable[[], nn.Module]
_Dropout = nn.modules.dropout._DropoutNd
FAST = (nn.TransformerEncoderLayer, nn.TransformerEncoder)


def last_linear(net: nn.Module, outputs: int) -> str:
    """Name of the last linear layer, which gives the outputs.

    Raises:
        ValueError: there is none, or it gives another number of outputs.
    """
    head = find_last_layer(net)
    if not isinstance(head, nn.Linear) or head.out_features != outputs:
        linear = isinstance(head, nn.Linear)
        what = f"{head.out_features} outputs in its last linear layer" if linear else "no linear layer"
        raise ValueError(f"{type(net).__name__} has {what}; {outputs} outputs from a last nn.Linear are needed here")
    return next(name for name, module in net.named_modules() if module is head)


def with_variance(net: nn.Module, outputs: int) -> nn.Module:
    """The network with twice the outputs: its means, and logarithms of variances that start at 0 (variance 1).

    Raises:
        ValueError: as `last_linear`; or the network is that layer alone.
    """
    old = net.get_submodule(last_linear(net, outputs))
    new = nn.utils.skip_init(
        nn.Linear, old.in_features, 2 * outputs, dtype=old.weight.dtype, device=old.weight.device
    )  # fmt: skip
    with torch.no_grad():
        new.weight.zero_()
        new.bias.zero_()
        new.weight[:outputs] = old.weight
        if old.bias is not None:
            new.bias[:outputs] = old.bias
    return swapped(net, {old: nn.Sequential(new) if old is net else new}, carry=False)  # variances are trained


def with_dropout(net: nn.Module, rate: float, outputs: int) -> nn.Module:
    """The network, with dropout before its last linear layer where it has none anywhere (see `dropouts`).

    Raises:
        ValueError: as `last_linear`, where it has no dropout.
    """
    if dropouts(net):
        return net
    head = net.get_submodule(last_linear(net, outputs))
    return swapped(net, {head: nn.Sequential(nn.Dropout(rate), head)})


def dropouts(net: nn.Module) -> list[nn.Module]:
    """Modules that drop at random in training at a rate above 0: dropout of every kind, attention, recurrent layers.

    Dropout that a network's own `forward` calls as a function is not seen.
    """
    kept = kept_in_evaluation(net)
    return [module for k, module in enumerate(net.modules()) if k not in kept and _rate(module) > 0]


def without_dropout(net: nn.Module) -> nn.Module:
    """The network, its `dropouts` at rate 0, in place."""
    for module in dropouts(net):
        setattr(module, "p" if isinstance(module, _Dropout) else "dropout", 0.0)
    return net


def _rate(module: nn.Module) -> float:
    if isinstance(module, _Dropout):
        return float(module.p)
    if isinstance(module, nn.MultiheadAttention) or (isinstance(module, nn.RNNBase) and module.num_layers > 1):
        return float(module.dropout)
    return 0.0


def losses_for(spec: Spec, heteroscedastic: bool) -> RowLoss:
    """Losses of rows: cross-entropy, Gaussian with its own variance, or squares."""
    if spec.task == "classes":
        return class_losses
    return gaussian_losses if heteroscedastic else square_losses


def started(nets: Sequence[nn.Module]) -> Members:
    """Members that start from these networks.

    Raises:
        ValueError: all their weights are frozen.
    """
    if not any(value.requires_grad for value in nets[0].parameters()):
        raise ValueError(f"all weights of {type(nets[0]).__name__} are frozen; nothing is left to train")
    stacked = Stacked(nets[0])
    return Members(stacked, *stacked.gather(nets))


class Drawn:
    """A predictor that averages several networks.

    Args:
        posterior: networks; for real targets with `noise`, or with outputs of means and log-variances.
        task: classes or reals.
        passes: rows that training passed forward and backward.
        told: named numbers for the record.
        dropout: seed of dropout masks that stay on in prediction, one a draw for all rows; None = off.
    """

    def __init__(
        self,
        posterior: Posterior,
        task: str,
        passes: float = 0.0,
        told: Mapping[str, float] | None = None,
        dropout: int | None = None,
    ) -> None:
        self.posterior, self.task, self.passes, self.dropout = posterior, task, passes, dropout
        self.told = dict(told or {})

    def _outputs(self, part: Part) -> Tensor:
        if self.dropout is None:
            return self.posterior.outputs(part.x)
        model = self.posterior.stacked.model
        on = dropouts(model)
        # in evaluation without gradients these would take a fast path that leaves out the dropout in them
        on += [module for module in model.modules() if on and isinstance(module, FAST)]
        with own_draws(torch.Generator().manual_seed(self.dropout)):
            return self.posterior.outputs(part.x, 256, on, together=True)

    def samples(self, part: Part) -> Tensor:
        """(S, n, classes) probabilities, or (S, n, outputs) means."""
        output = self._outputs(part)
        if self.task == "classes":
            return output.softmax(dim=2)
        return output if self.posterior.noise is not None else output.chunk(2, dim=2)[0]

    def noise(self, part: Part) -> Tensor:
        """Standard deviation of an observation, (S, n, outputs)."""
        if self.task == "classes":
            raise ValueError("classes have no observation noise")
        output = self._outputs(part)
        if self.posterior.noise is not None:
            return self.posterior.noise.expand_as(output)
        return (0.5 * output.chunk(2, dim=2)[1].clamp(-14.0, 14.0)).exp()

    def predict(self, part: Part) -> Tensor:
        """Mean of `samples`: (n, classes) or (n, outputs)."""
        return self.samples(part).mean(dim=0)

    def report(self) -> dict[str, float]:
        """Named numbers."""
        return self.told


def fresh_network(model_factory: Factory, spec: Spec, *, own_variance: bool, dropout: float | None) -> nn.Module:
    """A fresh network as a posterior needs it.

    Args:
        model_factory: gives networks (n, ...) -> (n, outputs).
        spec: of the data.
        own_variance: whether it gives a logarithm of the variance beside every mean.
        dropout: rate before the last layer where it has no dropout; None = it stays as it is.
    """
    net, width = model_factory(), spec.outputs * (2 if own_variance else 1)
    net = with_variance(net, spec.outputs) if own_variance else net
    return net if dropout is None else with_dropout(net, dropout, width)


def predictor_of(
    posterior: Posterior, data: Data, passes: float, generator: torch.Generator, *, own_variance: bool, dropout: bool
) -> Drawn:
    """The predictor; real targets without variances of the networks' own get the validation rows' error as noise.

    Args:
        posterior: the networks.
        data: the split.
        passes: rows that training passed forward and backward.
        generator: of the seed of dropout masks.
        own_variance: whether the networks give variances.
        dropout: whether dropout stays on in prediction.
    """
    seed = int(torch.randint(2**62, (), generator=generator)) if dropout else None
    found = Drawn(posterior, data.spec.task, passes, dropout=seed)
    if data.spec.task == "reals" and not own_variance:
        found.posterior.noise = posterior.weights.new_ones(data.spec.outputs)
        found.posterior.noise = residual_noise(found.predict(data.valid), data)
    return found


def residual_noise(output: Tensor, data: Data) -> Tensor:
    """Root mean squared error (outputs,) of predictions (n, outputs) for the validation rows, at least 1e-3."""
    return (output - widened(real_targets(output, data.valid.y))).square().mean(dim=0).sqrt().clamp_min(1e-3)
