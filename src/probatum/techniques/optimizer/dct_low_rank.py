"""DCT-AdamW: low-rank Adam on the few columns of a fixed cosine basis that a matrix's gradient lies along, without SVD.

Paper     Modoranu et al. 2025, arXiv:2505.17967 ("SVD-Free ...", later "FFT-based ..."), and the released DCT-AdamW
Computes  A = G (+ E), wide side in rows; S = A Q with Q the orthonormal DCT-II; I = the r columns of S of largest norm (l1
          or l2); g = S_I; E = A - g Q_I^T; on a new I the moments go over by R = Q_I'^T Q_I: m <- m R, v <- |v R|; then
          m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), and
          W <- (1 - lr wd) W - lr u Q_I^T
Shapes    weights (C_out, ...) as (m, n); state: m and v (max(m, n), r), I (r,), with feedback E (max, min)
Departs   1. convolution weights are projected as (C_out, rest); the paper's models have none
          2. both ways to the coefficients give DCT-II; the released matrix product takes its transpose, DCT-III
          3. the rank may be a share of the shorter side, rounded up; l2 is the default score, as it drops the least, and
             moments are carried over by default; the release scores by l1 and leaves them where they are
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.optimisation.adamw import adamw_update, dense_real, load_wide, state_bytes
from probatum.numerics.optimisation.matrices import as_matrix
from probatum.numerics.tensors.precision import widened

CARD = Card(
    paper="arXiv:2505.17967",
    title="SVD-Free Low-Rank Adaptive Gradient Optimization for Large Language Models",
    entry="DctLowRank",
    number=237,
    tags=("optimisation", "low rank", "memory", "language"),
    tasks=("classes", "reals", "next-token"),
    tiny={"lr": 1e-2, "rank": 0.5},
    tune={"lr": (1e-4, 1e-1, "log"), "rank": [0.125, 0.25, 0.5], "feedback": ["none", "full"], "gap": [1, 10]},
    claims=("as-good-as-svd",),
)

BASES = ("dct", "random", "hadamard")
SCORES = {"l1": 1, "l2": 2}
FEEDBACKS = {"none": 0, "full": 32, "8bit": 8, "4bit": 4}
PATHS = ("matmul", "fft")


@functools.lru_cache(maxsize=128)
def basis_matrix(kind: str, n: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    """Orthonormal (n, n), one for all layers of a size; not to be changed.

    Args:
        kind: "dct" (DCT-II, column k of frequency k), "random" (QR of normal draws from `seed`) or "hadamard".
        n: size; a power of two for "hadamard", else ValueError.
        dtype: of the result; it is computed in float64.
        device: of the result.
        seed: of the random basis.
    """
    if kind == "dct":
        j, k = np.arange(n)[:, None], np.arange(n)[None, :]
        q = np.sqrt(2 / n) * np.cos(np.pi * (2 * j + 1) * k / (2 * n))
        q[:, 0] = math.sqrt(1 / n)
    elif kind == "random":
        q, r = np.linalg.qr(np.random.default_rng((seed, n)).standard_normal((n, n)))
        q = q * np.sign(np.diag(r))  # uniform over rotations
    elif n & (n - 1):
        raise ValueError(f"a Hadamard basis needs a power of two, not {n}; use basis='dct'")
    else:
        q = np.ones((1, 1))
        while len(q) < n:
            q = np.block([[q, q], [q, -q]]) / math.sqrt(2)
    return torch.from_numpy(np.ascontiguousarray(q)).to(dtype=dtype, device=device)


def fast_dct(rows: Tensor) -> Tensor:
    """DCT-II, orthonormal, of every row of (m, n) by one FFT of n points (Makhoul 1980); equals ``rows @ Q``."""
    n = rows.shape[1]
    folded = torch.cat([rows[:, ::2], rows[:, 1::2].flip(1)], dim=1)
    angle = torch.arange(n, dtype=rows.dtype, device=rows.device) * (math.pi / (2 * n))
    spectrum = torch.fft.fft(folded, dim=1)
    found = (spectrum.real * angle.cos() + spectrum.imag * angle.sin()) * math.sqrt(2 / n)
    return torch.cat([found[:, :1] / math.sqrt(2), found[:, 1:]], dim=1)


def best_columns(coefficients: Tensor, rank: int, score: str = "l2") -> Tensor:
    """Ascending indices (rank,) of the columns of (m, n) with the largest norm."""
    norms = torch.linalg.vector_norm(coefficients, ord=SCORES[score], dim=0)
    return norms.topk(rank).indices.sort().values


def carried(moment: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """moment (m, r) @ Q_before^T Q_after: columns that stay are moved to their new place, others start at zero."""
    same = before[:, None] == after[None, :]
    return moment @ same.to(moment.dtype)


def quantised(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (m, n) in 2^bits even steps a row: codes (uint8, two in a byte for 4 bits), lowest values and steps (m, 1)."""
    low, high = x.aminmax(dim=1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    codes = ((x - low) / torch.where(step > 0, step, 1)).round().to(torch.uint8)
    if bits == 4:
        if codes.shape[1] % 2:
            codes = torch.nn.functional.pad(codes, (0, 1))
        codes = codes[:, ::2] * 16 + codes[:, 1::2]
    return codes, low, step


def restored(codes: Tensor, low: Tensor, step: Tensor, bits: int, columns: int) -> Tensor:
    """What `quantised` kept, (m, columns); within half a step of x."""
    if bits == 4:
        codes = torch.stack([codes // 16, codes % 16], dim=2).flatten(1)[:, :columns]
    return low + step * codes.to(low.dtype)


class DctLowRank(torch.optim.Optimizer):
    """Adam in r adaptively chosen directions of a fixed basis for matrices, AdamW for the rest.

    Args:
        params: parameters or groups; a group with "low_rank": False takes AdamW throughout.
        lr: > 0.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment, > 0.
        weight_decay: decoupled, >= 0.
        rank: directions a matrix: a whole number >= 1, at most its shorter side, or a share of that in (0, 1.0].
        basis: "dct", "random" or "hadamard".
        score: norm that ranks directions, "l1" or "l2" (which leaves the least error).
        gap: updates between two choices of directions, >= 1.
        rotate: carry the moments over to new directions; False leaves them where they are.
        feedback: "none"; or what the projection drops is added to the next gradient, kept as "full", "8bit" or "4bit".
        path: "matmul" or "fft" (basis "dct" only), the same numbers in n log n a row.
        limit: matrices with a longer side than this take AdamW, >= 1.
        seed: of the random basis.

    Raises:
        ValueError: a setting outside its range; a rank above a matrix's shorter side, naming the parameter.
        TypeError: a sparse or complex gradient.

    Example:
        >>> net = nn.Linear(8, 6)
        >>> optimizer = DctLowRank.for_model(net, lr=0.01, rank=2)
        >>> net(torch.ones(2, 8)).square().sum().backward()
        >>> optimizer.step()
        >>> tuple(optimizer.state[net.weight]["first"].shape)
        (8, 2)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rank: int | float = 0.25,
        basis: str = "dct",
        score: str = "l2",
        gap: int = 1,
        rotate: bool = True,
        feedback: str = "none",
        path: str = "matmul",
        limit: int = 32_000,
        seed: int = 0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps)):
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        for i, beta in enumerate(betas):
            if not 0 <= beta < 1:
                raise ValueError(f"betas[{i}] is {beta}; it must lie in [0, 1)")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0")
        if not (rank >= 1 if isinstance(rank, int) else 0 < rank <= 1):
            raise ValueError(f"rank is {rank}; it must be a whole number, at least 1, or a share in (0, 1.0]")
        for name, value in (("gap", gap), ("limit", limit)):
            if value < 1 or value != int(value):
                raise ValueError(f"{name} is {value}; it must be a whole number, at least 1")
        chosen = (("basis", basis, BASES), ("score", score, SCORES), ("feedback", feedback, FEEDBACKS))
        for name, word, known in (*chosen, ("path", path, PATHS)):
            if word not in known:
                raise ValueError(f"{name} is {word!r}; use one of {', '.join(known)}")
        if path == "fft" and basis != "dct":
            raise ValueError(f"path is 'fft' with basis {basis!r}; use basis='dct' or path='matmul'")
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rank": rank, "basis": basis,
            "score": score, "gap": gap, "rotate": rotate, "feedback": feedback, "path": path, "limit": limit,
            "seed": seed, "low_rank": True,
        }  # fmt: skip
        super().__init__(params, defaults)

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rank: int | float = 0.25,
        basis: str = "dct",
        score: str = "l2",
        gap: int = 1,
        rotate: bool = True,
        feedback: str = "none",
        path: str = "matmul",
        limit: int = 32_000,
        seed: int = 0,
        full: Sequence[str] = (),
    ) -> DctLowRank:
        """For a model's trainable parameters, by name.

        Args:
            model: its matrices (embeddings and last layer too, as in the paper) are projected.
            full: names of parameters that take AdamW.

        For the others see the class.
        """
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        for name in full:
            if name not in named:
                raise ValueError(f"full names {name!r}; trainable parameters are {', '.join(named)}")
        parts = [
            {"params": [pair for pair in named.items() if (pair[0] in full) != low], "low_rank": low}
            for low in (True, False)
        ]
        return cls(
            [part for part in parts if part["params"]], lr, betas, eps, weight_decay, rank, basis, score, gap, rotate,
            feedback, path, limit, seed,
        )  # fmt: skip

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as `torch.optim.Optimizer` does; ValueError for ranks and bases that do not fit its matrices."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        names = group.get("param_names") or [f"number {i}" for i in range(len(group["params"]))]
        for name, parameter in zip(names, group["params"], strict=True):
            if not _projected(parameter, group):
                continue
            shape = tuple(as_matrix(parameter).shape)
            side = min(shape)
            problem = ""
            if isinstance(group["rank"], int) and group["rank"] > side:
                problem = f"rank is {group['rank']}, above the shorter side of"
                remedy = f"use at most {side}, a share such as 0.25, or a group with low_rank=False"
            elif group["basis"] == "hadamard" and side & (side - 1):
                problem = "basis is 'hadamard', which needs a power of two as the shorter side of"
                remedy = "use basis='dct', or a group with low_rank=False"
            if problem:
                self.param_groups.pop()
                raise ValueError(f"{problem} parameter {name} of shape {shape}; {remedy}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; `closure` recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = dense_real(parameter.grad, parameter.shape)
                if _projected(parameter, group):
                    self._low_rank(parameter, gradient, group)
                else:
                    chosen = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
                    adamw_update(parameter, gradient, self.state[parameter], **chosen)
        return loss

    def state_bytes(self) -> int:
        """Bytes of the state's tensors; the shared basis is not counted."""
        return state_bytes(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`; indices and codes keep their types; for half-precision weights moments are float32."""
        load_wide(self, state_dict)

    def _low_rank(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2), bits = self.state[parameter], group["betas"], FEEDBACKS[group["feedback"]]
        work = widened(as_matrix(gradient))
        flipped = work.shape[0] < work.shape[1]
        work = work.mT if flipped else work  # (wide, n)
        if bits and "error" in state:
            error = state["error"]
            if bits < 32:
                error = restored(error, state["error_low"], state["error_step"], bits, work.shape[1])
            work = work + error
        q = basis_matrix(group["basis"], work.shape[1], work.dtype, work.device, group["seed"])
        state["step"] = step = state.get("step", 0) + 1
        if step == 1 or step % group["gap"] == 0:
            coefficients = fast_dct(work) if group["path"] == "fft" else work @ q
            columns = best_columns(coefficients, _rank(group["rank"], work.shape[1]), group["score"])
            low = coefficients[:, columns]
            if step == 1:
                state["first"], state["second"] = torch.zeros_like(low), torch.zeros_like(low)
            elif group["rotate"] and not torch.equal(columns, state["columns"]):
                state["first"] = carried(state["first"], state["columns"], columns)
                state["second"] = carried(state["second"], state["columns"], columns).abs()
            state["columns"] = columns
            kept = q[:, columns]
        else:
            kept = q[:, state["columns"]]
            low = work @ kept
        if bits:
            error = work - low @ kept.mT
            if bits < 32:
                error, state["error_low"], state["error_step"] = quantised(error, bits)
            state["error"] = error
        first, second = state["first"], state["second"]
        first.lerp_(low, 1 - beta1)
        second.mul_(beta2).addcmul_(low, low, value=1 - beta2)
        divisor = (second.sqrt() / math.sqrt(1 - beta2**step)).add_(group["eps"])
        update = (first / divisor) @ kept.mT
        update = (update.mT if flipped else update).reshape(parameter.shape)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] / (1 - beta1**step))


def _projected(parameter: Tensor, group: dict[str, Any]) -> bool:
    return group["low_rank"] and parameter.ndim >= 2 and max(as_matrix(parameter).shape) <= group["limit"]


def _rank(rank: int | float, side: int) -> int:
    return rank if isinstance(rank, int) else math.ceil(rank * side)
