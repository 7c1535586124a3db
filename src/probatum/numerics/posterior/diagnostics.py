"""Whether several chains tell the same story: split R-hat, effective sample size, variance between and within.

After Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, "Rank-normalization, folding, and localization: an improved
R-hat for assessing convergence of MCMC", arXiv:1903.08008. Draws are (chains, draws) or (chains, draws, ...); what is
diagnosed may be weights or, better for networks, whatever is computed from them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def between_within(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Variance between the chains' means, and mean variance within chains: (C, N, ...) -> two of (...), both unbiased.

    Raises:
        ValueError: fewer than two chains or two draws, or values that are not finite.
    """
    checked = _checked(draws, chains=2)
    return checked.mean(dim=1).var(dim=0), checked.var(dim=1).mean(dim=0)


def plain_rhat(draws: Tensor) -> Tensor:
    """sqrt of the pooled over the within-chain variance, (C, N, ...) -> (...); 1 where nothing varies."""
    between, within = between_within(draws)
    n = draws.shape[1]
    ratio = ((n - 1) / n * within + between) / within
    return torch.where((within == 0) & (between == 0), torch.ones_like(ratio), ratio).sqrt()


def split(draws: Tensor) -> Tensor:
    """Each chain as two halves: (C, N, ...) -> (2 C, N // 2, ...); the middle draw of an odd number is left out."""
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]])


def rank_normalised(draws: Tensor) -> Tensor:
    """Normal scores of the ranks over all chains, ties at their average: same shape, float64."""
    flat = draws.double().flatten(0, 1)
    count = len(flat)
    columns = flat.reshape(count, -1)
    ordered = columns.sort(dim=0).values.T.contiguous()
    values = columns.T.contiguous()
    below, upto = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    ranks = (below + upto + 1).double() / 2
    return torch.special.ndtri((ranks - 0.375) / (count + 0.25)).T.reshape(draws.shape)


def split_rhat(draws: Tensor) -> Tensor:
    """Rank-normalised split R-hat, the larger one of values and of distances from the median: (C, N, ...) -> (...).

    Near 1 where the chains agree; above 1.01 they have not mixed. One chain is compared with itself.

    Raises:
        ValueError: fewer than four draws a chain, or values that are not finite.
    """
    halves = split(_checked(draws, draws_needed=4).double())
    folded = _folded(halves)
    return torch.maximum(plain_rhat(rank_normalised(halves)), plain_rhat(rank_normalised(folded)))


def bulk_ess(draws: Tensor) -> Tensor:
    """Effective number of draws for the bulk of the distribution: (C, N, ...) -> (...), after rank normalisation.

    Raises:
        ValueError: fewer than four draws a chain, or values that are not finite.
    """
    return ess(rank_normalised(split(_checked(draws, draws_needed=4).double())))


def ess(draws: Tensor) -> Tensor:
    """Effective number of draws for the mean, by Geyer's initial monotone sequence over all chains: (C, N, ...) -> (...)."""
    checked = _checked(draws, draws_needed=2).double()
    chains, count = checked.shape[:2]
    columns = checked.reshape(chains, count, -1)
    found = torch.stack([_ess_of(columns[:, :, k]) for k in range(columns.shape[2])])
    return found.reshape(checked.shape[2:])


def autocovariance(draws: Tensor) -> Tensor:
    """Biased autocovariances of every chain by the fast Fourier transform: (C, N) -> (C, N)."""
    count = draws.shape[1]
    size = 2 ** math.ceil(math.log2(2 * count))
    power = torch.fft.rfft(draws - draws.mean(dim=1, keepdim=True), n=size).abs().square()
    return torch.fft.irfft(power, n=size)[:, :count] / count


def _ess_of(draws: Tensor) -> Tensor:
    chains, count = draws.shape
    total = chains * count
    if float(draws.max() - draws.min()) == 0:
        return draws.new_tensor(float(total))
    covariance = autocovariance(draws)
    within = float((covariance[:, 0] * count / (count - 1)).mean())
    pooled = within * (count - 1) / count + (float(draws.mean(dim=1).var()) if chains > 1 else 0.0)
    rho = (1 - (within - covariance.mean(dim=0)) / pooled).tolist()
    rho[0] = 1.0
    pairs = [rho[0] + rho[1]]
    while len(pairs) * 2 < count - 2 and pairs[-1] > 0:
        at = 2 * len(pairs)
        pairs.append(rho[at] + rho[at + 1])
    last = 2 * (len(pairs) - 1)  # of the last pair, negative or at the end, only the even term counts
    monotone = torch.tensor(pairs[:-1]).cummin(dim=0).values if len(pairs) > 1 else torch.zeros(1)
    tau = -1 + 2 * float(monotone.sum()) + max(rho[last], 0.0)
    return draws.new_tensor(total / max(tau, 1 / math.log10(total)))


def _folded(draws: Tensor) -> Tensor:
    flat = draws.flatten(0, 1)
    return (draws - torch.quantile(flat.reshape(len(flat), -1), 0.5, dim=0).reshape(flat.shape[1:])).abs()


def _checked(draws: Tensor, chains: int = 1, draws_needed: int = 2) -> Tensor:
    if draws.ndim < 2 or draws.shape[0] < chains or draws.shape[1] < draws_needed:
        raise ValueError(f"draws are {tuple(draws.shape)}; give (chains >= {chains}, draws >= {draws_needed}, ...)")
    if not bool(draws.isfinite().all()):
        raise ValueError("draws hold values that are not finite; a chain has diverged: lower its step size")
    return draws
