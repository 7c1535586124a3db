"""Chunked hypernetworks: against torch's LSTM cell, growth to the bit, first variances, sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from probatum.techniques.stream.dependency_hypernet.recurrent import (
    IndependentChunks,
    RecurrentChunks,
    independent_size,
    recurrent_size,
)

pytestmark = pytest.mark.fast

NUMEL, TASK, HIDDEN, CHUNK, EMBED = 50, 4, 6, 8, 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def recurrent(
    independent: bool = False, hidden: int = HIDDEN, numel: int = NUMEL, grows: bool = True
) -> RecurrentChunks:
    scales = torch.zeros(numel), torch.ones(numel)
    return RecurrentChunks(*scales, TASK, hidden, CHUNK, EMBED, generator(), independent, grows)


def embeddings(count: int = 3) -> torch.Tensor:
    return torch.randn(count, TASK, generator=generator(1))


@pytest.mark.parametrize("grows", [True, False])
def test_states_are_those_of_torchs_cell(grows: bool) -> None:
    made = recurrent(grows=grows)
    cell = nn.LSTMCell(TASK + EMBED, HIDDEN)  # gates in the order enter, keep, new, leave as well
    with torch.no_grad():
        cell.weight_ih.copy_(made.inward[0])
        cell.weight_hh.copy_(made.across[0][0])  # type: ignore[index]
        cell.bias_ih.copy_(made.offsets[0])
        cell.bias_hh.zero_()
    task = embeddings()
    state, expected = (torch.zeros(3, HIDDEN), torch.zeros(3, HIDDEN)), []
    for chunk in made.chunks:
        state = cell(torch.cat([task, chunk.expand(3, -1)], dim=1), state)
        expected.append(state[0])
    torch.testing.assert_close(made.states(task), torch.stack(expected, dim=1))


def test_the_fused_operation_gives_the_same_values_and_gradients() -> None:
    found = []
    for grows in (True, False):
        made = recurrent(grows=grows).double()
        task = embeddings().double().requires_grad_()
        values, states = made(task)
        (values.square().sum() + states.sum()).backward()
        found.append([values, states, task.grad, *(p.grad for p in made.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="grows is False"):
        made.grow(2, generator())


def test_values_are_the_chunks_read_out_cut_and_scaled() -> None:
    made = recurrent()
    made.centres, made.deviations = torch.arange(50.0), torch.full((50,), 2.0)
    values, states = made(embeddings())
    pieces = [states[:, k] @ made.readouts[0].T + made.bias for k in range(7)]
    torch.testing.assert_close(values, torch.arange(50.0) + 2 * torch.cat(pieces, dim=1)[:, :50])


def test_growth_leaves_every_value_as_it_is_to_the_bit_and_then_counts() -> None:
    made = recurrent()
    before, old = made(embeddings())
    for units in (5, 3):
        made.grow(units, generator(7))
        values, states = made(embeddings())
        assert torch.equal(values, before)
        assert torch.equal(states[..., :HIDDEN], old)
    assert states.shape == (3, 7, 14)
    values.square().sum().backward()
    assert all(bool((readout.grad != 0).any()) for readout in made.readouts)  # type: ignore[union-attr]
    with torch.no_grad():
        made.across[0][1].add_(0.1)  # type: ignore[index]
    assert not torch.equal(made(embeddings())[0], before)  # old units read grown ones
    with pytest.raises(ValueError, match="units is 0"):
        made.grow(0, generator())


def test_without_recurrence_it_is_the_independent_one() -> None:
    linked, alone = recurrent(), recurrent(independent=True, grows=False)
    alone.load_state_dict(linked.state_dict())
    assert not torch.allclose(linked(embeddings())[0], alone(embeddings())[0])
    for made in (linked, alone):
        with torch.no_grad():
            made.across[0][0].zero_()  # type: ignore[index]
            made.inward[0][HIDDEN : 2 * HIDDEN].zero_()  # nothing is kept in the cells either
            made.offsets[0][HIDDEN : 2 * HIDDEN] = -1e4
    assert torch.equal(linked(embeddings())[0], alone(embeddings())[0])


def test_later_chunks_depend_on_earlier_ones_alone() -> None:
    made = recurrent()
    before = made(embeddings())[0]
    with torch.no_grad():
        made.chunks[3] += 1.0
    gap = (made(embeddings())[0] - before).abs().amax(dim=0)
    assert bool((gap[: 3 * CHUNK] == 0).all())
    assert bool((gap[3 * CHUNK :] > 0).any())
    apart = IndependentChunks(torch.zeros(NUMEL), torch.ones(NUMEL), TASK, (6, 6), CHUNK, EMBED, generator())
    before = apart(embeddings())[0]
    with torch.no_grad():
        apart.chunks[3] += 1.0
    gap = (apart(embeddings())[0] - before).abs().amax(dim=0)
    assert bool((gap[: 3 * CHUNK] == 0).all())
    assert bool((gap[4 * CHUNK :] == 0).all())


@pytest.mark.parametrize("kind", ["lstm", "mlp"])
def test_first_values_have_the_deviations_asked_for(kind: str) -> None:
    wanted = torch.cat([torch.full((4000,), 0.5), torch.full((4000,), 0.01)])
    given = (torch.zeros(8000), wanted, TASK)
    made = (
        RecurrentChunks(*given, 16, 400, EMBED, generator())
        if kind == "lstm"
        else IndependentChunks(*given, (16, 16), 400, EMBED, generator())
    )
    values = made(embeddings(20))[0].detach()
    for part, deviation in ((values[:, :4000], 0.5), (values[:, 4000:], 0.01)):
        assert float(part.std()) == pytest.approx(deviation, rel=0.3)


def test_sizes_are_what_is_there() -> None:
    made = recurrent()
    assert sum(p.numel() for p in made.parameters()) == recurrent_size(NUMEL, TASK, HIDDEN, CHUNK, EMBED)
    apart = IndependentChunks(torch.zeros(NUMEL), torch.ones(NUMEL), TASK, (9, 9), CHUNK, EMBED, generator())
    assert sum(p.numel() for p in apart.parameters()) == independent_size(NUMEL, TASK, 9, CHUNK, EMBED)


def test_gradients_are_those_of_finite_differences() -> None:
    made = recurrent(hidden=2, numel=12).double()
    made.grow(2, generator(3))
    made.double()
    task = embeddings(2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda e: made(e)[0], (task,))
