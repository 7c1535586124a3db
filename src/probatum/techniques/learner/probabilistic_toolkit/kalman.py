"""The Kalman filter: a Gaussian state that moves linearly and is seen through noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class State(NamedTuple):
    """Mean (d,) and covariance (d, d)."""

    mean: Tensor
    covariance: Tensor


def predict(state: State, move: Tensor, noise: Tensor) -> State:
    """x' = move x + N(0, noise)."""
    return State(move @ state.mean, move @ state.covariance @ move.T + noise)


def update(state: State, seen: Tensor, look: Tensor, noise: Tensor) -> tuple[State, float]:
    """Take in seen = look x + N(0, noise); returns the state and log p(seen). In Joseph's form, which stays symmetric."""
    surprise = seen - look @ state.mean
    spread = look @ state.covariance @ look.T + noise
    root = torch.linalg.cholesky(spread)
    gain = torch.cholesky_solve(look @ state.covariance, root).T
    keep = torch.eye(len(state.mean), dtype=state.mean.dtype) - gain @ look
    covariance = keep @ state.covariance @ keep.T + gain @ noise @ gain.T
    law = torch.distributions.MultivariateNormal(torch.zeros_like(seen), scale_tril=root)
    return State(state.mean + gain @ surprise, covariance), float(law.log_prob(surprise))
