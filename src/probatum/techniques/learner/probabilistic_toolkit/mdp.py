"""Markov decision processes with finitely many states and actions: planning, and learning from moves.

Transitions are (A, S, S) with rows that sum to 1, rewards (S, A), discount in [0, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Move = Callable[[int, int], tuple[int, float]]
"""(state, action) -> (next state, reward)."""


ROUNDING = 16 * torch.finfo(torch.float64).eps
"""Share of the values below which a difference is not told from rounding."""


class Plan(NamedTuple):
    """Values (S,), actions (S,), sweeps made, and a bound on the distance of the values from the best ones."""

    values: Tensor
    policy: Tensor
    sweeps: int
    bound: float


def action_values(values: Tensor, transitions: Tensor, rewards: Tensor, discount: float) -> Tensor:
    """Q (S, A) = rewards + discount E[values of the next state]."""
    return rewards + discount * torch.einsum("ast,t->sa", transitions, values)


def value_iteration(transitions: Tensor, rewards: Tensor, discount: float, tolerance: float = 1e-8) -> Plan:
    """Sweep until the values are within `tolerance` of the best: |V - V*| <= discount / (1 - discount) |last change|.

    It ends too where sweeps change no more than their own rounding, in float64; the bound that was reached is told.
    """
    _check(transitions, rewards, discount)
    dtype, transitions, rewards = rewards.dtype, transitions.double(), rewards.double()
    values, sweeps, bound = torch.zeros(len(rewards), dtype=rewards.dtype), 0, float("inf")
    while bound > tolerance:
        new = action_values(values, transitions, rewards, discount).amax(dim=1)
        change = float((new - values).abs().max())
        bound = discount / (1 - discount) * change
        values, sweeps = new, sweeps + 1
        if change <= ROUNDING * float(values.abs().max()):
            break
    policy = action_values(values, transitions, rewards, discount).argmax(dim=1)
    return Plan(values.to(dtype), policy, sweeps, bound)


def policy_values(policy: Tensor, transitions: Tensor, rewards: Tensor, discount: float) -> Tensor:
    """Values (S,) of always acting by `policy` (S,), exactly."""
    states = torch.arange(len(policy))
    system = torch.eye(len(policy), dtype=rewards.dtype) - discount * transitions[policy, states]
    return torch.linalg.solve(system, rewards[states, policy])


def policy_iteration(transitions: Tensor, rewards: Tensor, discount: float) -> Plan:
    """Evaluate and improve until nothing changes: exact, in float64."""
    _check(transitions, rewards, discount)
    dtype, transitions, rewards = rewards.dtype, transitions.double(), rewards.double()
    policy, sweeps = torch.zeros(len(rewards), dtype=torch.int64), 0
    while True:
        values, sweeps = policy_values(policy, transitions, rewards, discount), sweeps + 1
        q = action_values(values, transitions, rewards, discount)
        own = q.gather(1, policy[:, None]).squeeze(1)
        better = q.argmax(dim=1)
        slack = (
            ROUNDING / (1 - discount) * float(q.abs().max())
        )  # what is less may be rounding, and go round in circles
        change = q.amax(dim=1) > own + slack
        if not bool(change.any()):
            return Plan(values.to(dtype), policy, sweeps, 0.0)
        policy = torch.where(change, better, policy)


def simulator(transitions: Tensor, rewards: Tensor, generator: torch.Generator) -> Move:
    """Moves drawn from a known process."""
    return lambda s, a: (int(torch.multinomial(transitions[a, s], 1, generator=generator)), float(rewards[s, a]))


def learn(
    move: Move,
    states: int,
    actions: int,
    discount: float,
    steps: int,
    generator: torch.Generator,
    *,
    kind: str = "q-learning",
    explore: float = 0.3,
    power: float = 0.7,
    start: int = 0,
) -> Tensor:
    """Q (S, A) learnt from one long walk; rates fall as visits^-power.

    Args:
        move: the world.
        kind: "q-learning" (of the best policy) or "sarsa" (of the one that explores).
        explore: chance of a random action.
    """
    if kind not in ("q-learning", "sarsa"):
        raise ValueError(f"kind is {kind!r}; use q-learning or sarsa")
    if not 0 <= explore <= 1 or not 0.5 < power <= 1:
        raise ValueError(f"explore is {explore} and power {power}; need [0, 1] and (0.5, 1]")
    q, visits = torch.zeros(states, actions, dtype=torch.float64), torch.zeros(states, actions)

    def act(state: int) -> int:
        if float(torch.rand((), generator=generator)) < explore:
            return int(torch.randint(actions, (), generator=generator))
        return int(q[state].argmax())

    state = start
    action = act(state)
    for _ in range(steps):
        after, reward = move(state, action)
        following = act(after)
        visits[state, action] += 1
        ahead = float(q[after].max() if kind == "q-learning" else q[after, following])
        rate = float(visits[state, action]) ** -power
        q[state, action] += rate * (reward + discount * ahead - float(q[state, action]))
        state, action = after, following
    return q


def r_max(
    move: Move, states: int, actions: int, discount: float, steps: int, most: float, *, known: int = 10, start: int = 0
) -> tuple[Tensor, Tensor]:
    """Act optimistically: pairs seen fewer than `known` times are thought to pay `most` for ever (Brafman and Tennenholtz).

    Returns:
        The policy (S,) at the end, and visits (S, A).
    """
    counts = torch.zeros(actions, states, states, dtype=torch.float64)
    total = torch.zeros(states, actions, dtype=torch.float64)
    fairy, visits = states, torch.zeros(states, actions)

    def plan() -> Tensor:
        transitions = torch.zeros(actions, states + 1, states + 1, dtype=torch.float64)
        transitions[:, :, fairy] = 1
        rewards = torch.full((states + 1, actions), most, dtype=torch.float64)
        for s, a in (visits >= known).nonzero().tolist():
            transitions[a, s] = 0
            transitions[a, s, :states] = counts[a, s] / counts[a, s].sum()
            rewards[s, a] = total[s, a] / visits[s, a]
        return value_iteration(transitions, rewards, discount, 1e-4).policy

    policy, state = plan(), start
    for _ in range(steps):
        action = int(policy[state])
        after, reward = move(state, action)
        visits[state, action] += 1
        counts[action, state, after] += 1
        total[state, action] += reward
        if int(visits[state, action]) == known:
            policy = plan()
        state = after
    return policy[:states], visits


def _check(transitions: Tensor, rewards: Tensor, discount: float) -> None:
    if not 0 <= discount < 1:
        raise ValueError(f"discount is {discount}; use one in [0, 1)")
    states, actions = rewards.shape
    if transitions.shape != (actions, states, states):
        raise ValueError(
            f"transitions are {tuple(transitions.shape)}; give (actions, states, states) for {actions}, {states}"
        )
    if not bool(rewards.isfinite().all()):
        raise ValueError("rewards hold numbers that are not finite")
    if not bool((transitions >= 0).all()):  # nor where it is not a number
        raise ValueError(f"transitions hold {float(transitions.min()):.3g}; probabilities are 0 or more")
    sums = transitions.double().sum(dim=2)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-6):
        raise ValueError(f"transitions sum to {float(sums.min()):.3g} .. {float(sums.max()):.3g}; rows must sum to 1")
