"""Predictors that are many networks: stacked weights run as one computation, and what their spread says.

posterior = Posterior.of(networks)            # or Posterior(model, samples), samples stacked (S, ...) by name
found = posterior.predict(x)                  # probabilities, total, aleatoric and epistemic entropy
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import vmap

from probatum.numerics.networks.modes import kept_in_evaluation
from probatum.numerics.networks.substitute import Substitute
from probatum.numerics.posterior.alike import astray, difference
from probatum.numerics.posterior.batches import batches_of, of_its_rows
from probatum.numerics.posterior.predictive import ClassPredictive, RealPredictive
from probatum.numerics.tensors.precision import HALF, widened

WIDE = 50_000
"""Weights above which networks are run one after another."""
LINE, MOST_PADDED = 16, 1.1
"""Weights on a cache line; and how much longer than its weights a network's line may be."""
_HOOKS, _PRE_HOOKS = nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks
_REFUSALS = (RuntimeError, NotImplementedError, TypeError, ValueError)


class Stacked:
    """S networks of one architecture as one function of their flat weights.

    Flat weights are the parameters that are trained; frozen ones go with the buffers. Parts that are in evaluation in a
    network in training stay so. Weights of half precision are held in float32.

    Args:
        model: the architecture; a copy without memory is kept.

    Raises:
        ValueError: no parameters, or hooks and functions that a copy would share with the network.
        TypeError: a network that cannot be copied.

    Attributes:
        size: number of weights P of one network.
        kept: positions of the modules that stay in evaluation.
        apart: whether the networks are run one after another, since a stack of them leaves the processor's caches: wide ones
            and convolutions. So do all without gradients; numbers are the same up to rounding.

    Example:
        >>> nets = [nn.Linear(3, 2) for _ in range(4)]
        >>> stacked = Stacked(nets[0])
        >>> weights, buffers = stacked.gather(nets)
        >>> tuple(weights.shape), tuple(stacked(weights, torch.ones(5, 3), buffers).shape)
        ((4, 8), (4, 5, 2))
    """

    def __init__(self, model: nn.Module) -> None:
        named = dict(model.named_parameters())
        if not named:
            raise ValueError(f"{type(model).__name__} has no parameters; a posterior is over weights")
        free = {name: value for name, value in named.items() if value.requires_grad} or named
        self.names, self.shapes = list(free), [value.shape for value in free.values()]
        self.dtypes, self.sizes = [value.dtype for value in free.values()], [value.numel() for value in free.values()]
        self.size = sum(self.sizes)
        try:
            self.model = copy.deepcopy(model)
        except RuntimeError as problem:
            raise TypeError(
                f"{type(model).__name__} cannot be copied: it holds tensors that were computed from its weights, as "
                "torch.nn.utils.weight_norm leaves them; use torch.nn.utils.parametrizations instead"
            ) from problem
        if where := astray(self.model, model):
            raise ValueError(
                f"{type(model).__name__} has {where}: a function that reaches into this one network and is not copied with it, so "
                "that its weights would be used for all; write it as a method of a class, or with the module that it is given"
            )
        self._of: weakref.ref[nn.Module] | None = weakref.ref(model)
        self.kept = kept_in_evaluation(model)
        self._run = Substitute(self.model)
        self._parts = list(self.model.modules())
        self._built_in = all(type(part).__module__.startswith("torch.nn.modules.") for part in self._parts)
        self._moving = list(dict(self.model.named_buffers()))
        heavy = any(isinstance(module, nn.modules.conv._ConvNd) for module in self._parts)
        self.apart = heavy or self.size > WIDE
        self._refused = False

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_of": None}

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """A network's buffers and frozen parameters by name, detached."""
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {name: value.detach() for name, value in own.items() if name not in set(self.names)}

    def gather(self, models: Sequence[nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weights (S, P), detached, and stacked buffers and frozen parameters of networks of this architecture.

        Raises:
            ValueError: no networks, parameters of other names or shapes, or networks that differ in anything else, which
                would be the first one's for all.
        """
        if not models:
            raise ValueError("there are 0 networks; give one or more")
        held = [{**dict(model.named_parameters()), **dict(model.named_buffers())} for model in models]
        shapes = [{name: value.shape for name, value in one.items()} for one in held]
        own = {name: value.shape for name, value in chain(self.model.named_parameters(), self.model.named_buffers())}
        if any(one != own for one in shapes):
            raise ValueError(f"the networks are not all {type(self.model).__name__} of one shape")
        known = self._of is not None and self._of() is models[0]
        for k, one in enumerate(models):
            first = self.model if k == 0 else models[0]
            if not (known and k == 0) and (where := difference(first, one)):
                raise ValueError(
                    f"network {k} differs from the first {type(self.model).__name__} in {where}, and all are run by the "
                    "first one's code, their own parameters and buffers in it; make them alike, or register the tensors that "
                    "differ by register_buffer"
                )
        stacked = {name: torch.stack([one[name].detach() for one in held]) for name in own}
        return self.flat(stacked), {name: value for name, value in stacked.items() if name not in set(self.names)}

    def named(self, weights: Tensor, cast: bool = True) -> dict[str, Tensor]:
        """(S, P) -> stacked parameters (S, ...) by name; gradients flow back to `weights`.

        Without `cast` those of half precision stay in float32, so that all are views.
        """
        parts = zip(self.names, weights.split(self.sizes, dim=1), self.shapes, self.dtypes, strict=True)
        found = {name: (part.reshape(len(weights), *shape), dtype) for name, part, shape, dtype in parts}
        return {name: value.to(dtype) if cast else value for name, (value, dtype) in found.items()}

    def one(self, parameters: Sequence[Tensor], state: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """Rows -> the output of one network in training, its parameters in the order of `names`, followed as they change."""
        own = dict(zip(self.names, parameters, strict=True))
        half = {n: dtype for n, dtype in zip(self.names, self.dtypes, strict=True) if own[n].dtype != dtype}
        on = set(self.trainable())
        modes = [(module, module in on) for module in self._parts]
        run = self._run.bound({**own, **state})

        def output(x: Tensor) -> Tensor:
            found = [(module, module.training) for module, mode in modes if module.training is not mode]
            for module, before in found:
                module.training = not before
            try:
                return run({n: own[n].to(dtype) for n, dtype in half.items()}, x)
            finally:
                for module, before in found:
                    module.training = before

        return output

    def flat(self, samples: Mapping[str, Tensor]) -> Tensor:
        """Stacked parameters by name -> (S, P)."""
        return widened(torch.cat([samples[name].reshape(len(samples[name]), -1) for name in self.names], dim=1))

    def __call__(
        self,
        weights: Tensor,
        x: Tensor,
        buffers: Mapping[str, Tensor] | None = None,
        *,
        training: bool | Collection[nn.Module] = False,
        own: bool = False,
        together: bool = False,
    ) -> Tensor:
        """Outputs (S, n, ...) of every network.

        Args:
            weights: (S, P).
            x: rows that all see, (n, ...), or with `own` each network's, (S, n, ...); never changed.
            buffers: stacked buffers (S, ...), changed in place by batch norms in training; None = the model's own.
            training: whether dropout and batch norm work as in training, draws coming from torch's global stream; or the
                modules of `model` that do.
            own: see x.
            together: whether all rows share one draw of dropout a network, so that no row's output hangs on others.
        """
        held = dict(buffers) if buffers is not None else self._expanded(len(weights))
        parameters = self.named(weights)
        plain = not (together or training or torch.is_grad_enabled())
        with self._in_modes(training):
            if not (self._refused or self.apart or plain):
                before = {name: held[name].clone() for name in self._moving if training}
                one = self._rows if together else self._one
                try:
                    run = vmap(one, in_dims=(0, 0, 0 if own else None), randomness="different")
                    with nullcontext() if training is True else self._run.forgetful():
                        return run(parameters, held, x.clone())
                except _REFUSALS:  # networks that look at values while they run: one after another
                    for name, value in before.items():
                        held[name].copy_(value)
                rows = self._one_by_one(parameters, held, x, own, together, training is not True)
                self._refused = True
                return rows
            return self._one_by_one(parameters, held, x, own, together, training is not True)

    def _one_by_one(
        self,
        parameters: dict[str, Tensor],
        held: dict[str, Tensor],
        x: Tensor,
        own: bool,
        together: bool,
        forgets: bool,
    ) -> Tensor:
        values = apart({**parameters, **held})
        given = [part.clone() for part in x].__getitem__ if own else self._given(x)
        if together:
            return torch.stack([self._rows_apart(one, given(k)) for k, one in enumerate(values)])
        return torch.stack(self._run.in_turn(values, forgets)(given))

    def evaluated(self, values: Sequence[Mapping[str, Tensor]]) -> Callable[[Tensor], Tensor]:
        """Rows -> outputs (S, n, ...) in evaluation mode, of S networks given by all their tensors by name (see `apart`)."""
        run = self._run.in_turn(values)

        def outputs(x: Tensor) -> Tensor:
            given = self._given(x)
            if not any(part.training for part in self._parts):
                return torch.stack(run(given))
            with self._in_modes(False):
                return torch.stack(run(given))

        return outputs

    def _given(self, x: Tensor) -> Callable[[int], Tensor]:
        """k -> the rows for the k-th network: the caller's where nothing can change them, else a copy.

        Every network has its own, since not all changes are counted by torch: those of `x.data` and `x.numpy()` are not.
        """
        plain = self._built_in and not _HOOKS and not _PRE_HOOKS and not any(map(_may_change_rows, self._parts))
        if not plain:
            return lambda _: x.clone()
        # gradients are of these rows, whatever the caller does with theirs
        rows = x.clone() if torch.is_grad_enabled() else x
        return lambda _: rows

    def _rows_apart(self, values: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Rows with one draw of dropout for all of them: all at once where vmap can, else each after the same draws."""
        start = torch.get_rng_state()
        with self._run.forgetful() as forget:
            try:
                return self._rows(values, {}, x)
            except _REFUSALS:
                found = []
                for row in x.split(1):
                    forget()
                    torch.set_rng_state(start)
                    found.append(self._run(values, row))
                return torch.cat(found)

    def _one(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return self._run({**parameters, **buffers}, x)

    def _rows(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if len(x) < 2:
            return self._one(parameters, buffers, x)
        return vmap(lambda row: self._one(parameters, buffers, row[None])[0], randomness="same")(x)

    def blocks(self, x: Tensor, rows: int, on: Collection[nn.Module] = ()) -> Sequence[Tensor]:
        """Rows, so many at a time; all at once where batch norms take their statistics from the rows that they are given.

        These are those without running statistics, and those among the modules `on` that work as in training.
        """
        if len(x) <= rows or any(of_its_rows(part, part in on) for part in self._parts):
            return [x]
        return x.split(rows)

    def trainable(self) -> list[nn.Module]:
        """Modules of `model` that work as in training when it is trained: all but those that stay in evaluation."""
        return [module for k, module in enumerate(self._parts) if k not in self.kept]

    def _expanded(self, count: int) -> dict[str, Tensor]:
        return {k: v.expand(count, *v.shape).clone() for k, v in self.state(self.model).items()}

    @contextmanager
    def _in_modes(self, training: bool | Collection[nn.Module]) -> Iterator[None]:
        """The copy's modules in these modes, and afterwards in those that they were in."""
        on = () if training is False else self.trainable() if training is True else training
        chosen = {id(module) for module in on}
        changed = [part for part in self._parts if part.training is not (id(part) in chosen)]
        try:
            for part in changed:
                part.training = not part.training  # not train(), which sets what is inside too
            yield
        finally:
            for part in changed:
                part.training = not part.training


class Posterior:
    """A model and S draws of its weights.

    Args:
        model: the architecture, (n, ...) -> (n, outputs), or what has been made of it already.
        samples: stacked parameters (S, ...) by name, and stacked buffers where the draws have their own.
        noise: reals: standard deviation of the observations: a number, (d,), or one for each draw, (S, 1, d); None where
            the model gives it: outputs (n, 2 d), means then logarithms of variances.
        chunk: draws run at once where dropout or batch norm works as in training.

    Raises:
        ValueError: samples that are missing, misshapen or of different numbers.

    Example:
        >>> posterior = Posterior.of([nn.Linear(3, 2) for _ in range(8)])
        >>> found = posterior.predict(torch.ones(5, 3))
        >>> bool(torch.allclose(found.total, found.aleatoric + found.epistemic)), tuple(found.probabilities.shape)
        (True, (5, 2))
    """

    def __init__(
        self,
        model: nn.Module | Stacked,
        samples: Mapping[str, Tensor],
        noise: Tensor | float | None = None,
        chunk: int = 16,
    ) -> None:
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}; use 1 or more")
        self.stacked = model if isinstance(model, Stacked) else Stacked(model)
        state, kind = self.stacked.state(self.stacked.model), type(self.stacked.model).__name__
        shapes = dict(zip(self.stacked.names, self.stacked.shapes, strict=True))
        for name, shape in (shapes | {name: value.shape for name, value in state.items()}).items():
            if name not in samples and name in shapes:
                raise ValueError(f"samples lack {name!r}; they need every parameter of {kind}, stacked")
            if name in samples and (not samples[name].ndim or samples[name].shape[1:] != shape):
                found = tuple(samples[name].shape)
                raise ValueError(f"samples of {name!r} are {found}; give (S, {', '.join(map(str, shape))})")
        unknown = sorted(set(samples) - set(shapes) - set(state))
        if unknown:
            raise ValueError(f"samples hold {unknown[0]!r}, which {kind} does not have")
        counts = {len(value) for value in samples.values()}
        if len(counts) != 1 or counts == {0}:
            raise ValueError(f"samples hold {sorted(counts)} draws; give the same number of one or more of everything")
        self.weights = self._lines_of(samples)
        self.buffers = {  # copies, since statistics are renewed in place
            name: (samples[name].detach() if name in samples else value.expand(len(self), *value.shape)).clone()
            for name, value in state.items()
        }
        self.noise = None if noise is None else torch.as_tensor(noise, dtype=self.weights.dtype).clone()
        if self.noise is not None and not bool((self.noise > 0).all()):
            raise ValueError(f"noise is {self.noise.min().item()}; a standard deviation must be positive")
        self.chunk = chunk
        self._kept: tuple[list[object], Callable[[Tensor], Tensor]] | None = None

    @torch.no_grad()
    def _lines_of(self, samples: Mapping[str, Tensor]) -> Tensor:
        """Weights (S, P), each row at the start of a cache line, where products with what lies in it take less time."""
        first, size = samples[self.stacked.names[0]], self.stacked.size
        dtype = functools.reduce(torch.promote_types, (samples[name].dtype for name in self.stacked.names))
        wide = -(-size // LINE) * LINE
        wide = size if wide > MOST_PADDED * size else wide
        dtype = torch.float32 if dtype in HALF else dtype
        found = torch.zeros(len(first), wide, dtype=dtype, device=first.device)[:, :size]
        for name, part in zip(self.stacked.names, found.split(self.stacked.sizes, dim=1), strict=True):
            part.copy_(samples[name].reshape(len(first), -1))
        return found

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}  # of this one's tensors

    @classmethod
    def of(cls, models: Sequence[nn.Module], noise: Tensor | float | None = None, chunk: int = 16) -> Posterior:
        """A posterior of networks of one architecture, such as a deep ensemble."""
        stacked = Stacked(models[0])
        weights, buffers = stacked.gather(models)
        return cls(stacked, {**stacked.named(weights), **buffers}, noise, chunk)

    def __len__(self) -> int:
        return len(self.weights)

    @torch.no_grad()
    def outputs(self, x: Tensor, rows: int = 1024, on: Collection[nn.Module] = (), together: bool = False) -> Tensor:
        """Outputs (S, n, outputs), `rows` rows at a time, of half precision in float32.

        In evaluation mode, but for modules `on` of `stacked.model`; with `together` each draw has one mask of dropout for all
        rows, from torch's global stream as it stands now. Rows of networks with batch norms that take their statistics from
        the rows given are not split; where rows look at one another in any other way, give `rows` of len(x) or more.
        """
        blocks_of = self.stacked.blocks(x, rows, on)
        if not on and not together:
            run = self._run()
            return widened(_joined([run(part) for part in blocks_of], 1))
        draws = []
        for first in range(0, len(self), self.chunk):
            some = slice(first, first + self.chunk)
            given, blocks = {name: value[some] for name, value in self.buffers.items()}, []
            if any(of_its_rows(part, True) for part in on):
                given = {name: value.clone() for name, value in given.items()}  # whose statistics move
            before = torch.get_rng_state() if together else None
            for part in blocks_of:
                if before is not None:
                    torch.set_rng_state(before)
                blocks.append(self.stacked(self.weights[some], part, given, training=on, together=together))
            draws.append(_joined(blocks, 1))
        return widened(_joined(draws, 0))

    def _run(self) -> Callable[[Tensor], Tensor]:
        """Rows -> outputs in evaluation mode, kept as long as the tensors are those that they were."""
        tensors = [self.weights, *self.buffers.values()]
        held = [self.stacked, list(self.buffers), *tensors, *map(_place, tensors)]
        if self._kept is None or any(map(_other, self._kept[0], held)):
            run = self.stacked.evaluated(apart({**self.stacked.named(self.weights), **self.buffers}))
            if set(self.stacked.dtypes) != {self.weights.dtype}:
                return run  # of copies, which would not follow the weights
            self._kept = held, run
        return self._kept[1]

    def logits(self, x: Tensor) -> Tensor:
        """`outputs`, of classifiers."""
        return self.outputs(x)

    def predict(self, x: Tensor) -> ClassPredictive:
        """What the draws say of classes; the model gives logits."""
        return ClassPredictive(self.outputs(x).log_softmax(dim=2))

    def predict_reals(self, x: Tensor) -> RealPredictive:
        """What the draws say of real targets."""
        output = self.outputs(x)
        if self.noise is not None:
            return RealPredictive(output, self.noise.square().expand_as(output))
        if output.shape[2] % 2:
            raise ValueError(f"the model has {output.shape[2]} outputs; give noise=, or means and log-variances")
        means, logs = output.chunk(2, dim=2)
        return RealPredictive(means, logs.exp())

    @torch.no_grad()
    def renew_batch_norm(self, x: Tensor, batch_size: int = 256) -> Posterior:
        """Compute the running statistics of every draw's batch norms anew; returns itself.

        They are the mean over batches of `x`, each by the number of its rows; a last row alone joins the batch before. Drawn or
        averaged weights have statistics that no training has gathered (Izmailov et al. 2018, arXiv:1803.05407).

        Raises:
            ValueError: fewer than two rows, of which no variance is known, or batches of fewer.
        """
        stacked = self.stacked
        norms = [module for module in stacked.trainable() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        norms = [module for module in norms if module.track_running_stats]
        if not norms:
            return self
        if len(x) < 2 or batch_size < 2:
            raise ValueError(
                f"x has {len(x)} rows and batch_size is {batch_size}; batch norms need 2 or more of either"
            )
        momenta = [module.momentum for module in norms]
        batches = batches_of(x, batch_size)
        try:
            for start in range(0, len(self), self.chunk):
                some = slice(start, start + self.chunk)
                buffers = {name: value[some].clone() for name, value in self.buffers.items()}
                seen = 0
                for part in batches:
                    seen += len(part)
                    for module in norms:
                        module.momentum = len(part) / seen  # a mean over all rows so far
                    stacked(self.weights[some], part, buffers, training=norms)
                for name, value in buffers.items():
                    self.buffers[name][some] = value
        finally:
            for module, momentum in zip(norms, momenta, strict=True):
                module.momentum = momentum
        return self


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Where its numbers lie."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _other(a: object, b: object) -> bool:
    """Whether two things kept are not the same tensor or network, or names and places not equal."""
    return a is not b and (not isinstance(a, list | tuple) or a != b)


def _may_change_rows(module: nn.Module) -> object:
    """Whether one of torch's own modules works in place, or somebody has hooked it or given it a `forward` of its own."""
    own = module.__dict__
    return own["_forward_pre_hooks"] or own["_forward_hooks"] or own.get("inplace") or "forward" in own


def apart(stacked: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Stacked tensors (S, ...) by name -> those of every network, views."""
    columns = [value.unbind(0) for value in stacked.values()]
    return [dict(zip(stacked, values, strict=True)) for values in zip(*columns, strict=True)]


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
