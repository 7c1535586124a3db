"""Global random streams: kept as they were, on every device, and drawn from a generator inside."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from probatum.numerics.tensors.draws import draws_beside, draws_of, fresh, in_forward, own_draws, random_state_kept

pytestmark = pytest.mark.fast


def test_draws_come_from_the_generator_and_the_stream_stays() -> None:
    before = torch.get_rng_state()
    with own_draws(torch.Generator().manual_seed(3)):
        first = torch.rand(4)
    torch.rand(7)
    torch.set_rng_state(before)
    with own_draws(torch.Generator().manual_seed(3)):
        assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RuntimeError), random_state_kept():
        torch.rand(3) @ torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_beside_a_generator_leave_it_and_the_stream_where_they_are() -> None:
    generator, before = torch.Generator().manual_seed(3), torch.get_rng_state()
    state = generator.get_state()
    first, torch_seed = fresh(lambda: torch.rand(4), generator), torch.initial_seed()
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.initial_seed() == torch_seed
    with draws_beside(generator):
        assert torch.equal(torch.rand(4), first)
    with own_draws(torch.Generator().manual_seed(3)):
        assert not torch.equal(torch.rand(4), first)  # what is drawn of the same place next is something else
    torch.rand(1, generator=generator)
    assert not torch.equal(fresh(lambda: torch.rand(4), generator), first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
def test_the_accelerators_stream_stays_too() -> None:
    before = torch.cuda.get_rng_state()
    with own_draws(torch.Generator().manual_seed(3)):
        torch.rand(4, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_an_accelerator_that_is_not_in_use_is_neither_started_nor_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object) -> None:
        raise AssertionError("the accelerator was touched")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in ("manual_seed", "manual_seed_all", "get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, touched)
    with own_draws(torch.Generator().manual_seed(3)):
        first = torch.rand(4)
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: asked.append(int(device)))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: asked.append(int(device)))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
    with own_draws(torch.Generator().manual_seed(3)):
        assert torch.equal(torch.rand(4), first)
    assert asked == [0, 0]  # its stream was taken and put back


def test_a_seed_gives_the_draws_that_torch_gives_it() -> None:
    with draws_of(5):
        found = torch.rand(3)
    assert torch.equal(found, torch.rand(3, generator=torch.Generator().manual_seed(5)))
    generator = torch.Generator().manual_seed(7)
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(7)))
    with own_draws(generator):
        first = torch.rand(3)
    with own_draws(generator):
        second = torch.rand(3)
    with draws_of(seed):
        assert torch.equal(torch.rand(3), first)
    assert not torch.equal(first, second)


def test_a_pass_that_is_computed_anew_for_its_gradient_may_not_draw() -> None:
    own = torch.Generator().manual_seed(0)

    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x * torch.rand(x.shape, generator=in_forward(own))

    x = torch.ones(3, requires_grad=True)
    noisy(x).sum().backward()
    with torch.no_grad():
        assert in_forward(own) is own
    for reentrant in (True, False):
        found = checkpoint(noisy, x, use_reentrant=reentrant)
        with pytest.raises(RuntimeError, match="computed anew for its gradient"):
            found.sum().backward()
    noisy(x).sum().backward()


def test_a_hook_may_look_at_the_network_while_gradients_are_taken() -> None:
    own, seen = torch.Generator().manual_seed(0), []
    weight = torch.ones(3, requires_grad=True)
    weight.register_hook(lambda gradient: seen.append(torch.rand(3, generator=in_forward(own))))
    weight.square().sum().backward()
    assert len(seen) == 1
