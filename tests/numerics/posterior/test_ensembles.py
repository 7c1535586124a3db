"""Members trained together against each trained alone by torch's own optimizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from probatum.numerics.posterior.ensembles import (
    Members,
    class_losses,
    gaussian_losses,
    member_losses,
    orders,
    square_losses,
    train_members,
)
from probatum.numerics.posterior.stacked import Posterior, Stacked
from probatum.spec import Optimisation, Part

pytestmark = pytest.mark.fast


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n: int = 50, seed: int = 0) -> Part:
    x = torch.randn(n, 4, generator=generator(seed))
    return Part(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long(), torch.arange(n))


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def start(count: int = 3) -> tuple[list[nn.Module], Members]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        nets = [make() for _ in range(count)]
    stacked = Stacked(nets[0])
    return nets, Members(stacked, *stacked.gather(nets))


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("apart", [True, False])
def test_members_end_where_each_would_have_ended_alone(own: bool, apart: bool) -> None:
    nets, members = start()
    members.stacked.apart = apart
    train = rows()
    how = Optimisation(1e-2, 1e-2, lambda step, steps: 1 - step / steps, clip=0.5)
    train_members(members, train, None, 20, 16, generator(), how, class_losses, own_orders=own)
    for k, net in enumerate(nets):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-2)
        for step, batch in enumerate(orders(50, 16, 20, generator(), 3 if own else 0)):
            index = batch[k] if own else batch
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 20)
            optimizer.zero_grad()
            F.cross_entropy(net(train.x[index]), train.y[index]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
        alone = torch.cat([p.detach().flatten() for p in net.parameters()])
        torch.testing.assert_close(members.weights[k], alone, rtol=1e-3, atol=2e-4)
        torch.testing.assert_close(members.buffers["1.running_mean"][k], net[1].running_mean, rtol=1e-3, atol=1e-4)


class Transposed(nn.Module):
    """Weights whose gradients come back transposed, expanded to all entries, or one for two of them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b = kind, nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3, 4))
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "transposed":
            return F.linear(x, self.a.T.contiguous().T) * self.scale
        if self.kind == "expanded":
            return F.linear(x, self.a) + self.b.sum() * torch.arange(3.0)
        return F.linear(x, self.a + self.b)


class Last(nn.Module):
    """Rows (n, channels, h, w) laid out with their channels last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, 1, 2, 2).expand(-1, 2, 2, 2).contiguous(memory_format=torch.channels_last)


NETS: dict[str, Callable[[], nn.Module]] = {
    **{kind: lambda kind=kind: Transposed(kind) for kind in ("transposed", "expanded", "shared")},  # type: ignore[misc]
    "channels last": lambda: nn.Sequential(Last(), nn.Conv2d(2, 6, 2), nn.Flatten(), nn.Linear(6, 3)),
    "upwards": lambda: nn.Sequential(Last(), nn.ConvTranspose2d(2, 3, 2), nn.Flatten(), nn.Linear(27, 3)),
}


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", NETS)
def test_gradients_of_other_layouts_than_their_weights_move_the_right_ones(name: str, clip: float | None) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        nets = [NETS[name]() for _ in range(2)]
    stacked, train = Stacked(nets[0]), rows()
    members = Members(stacked, *stacked.gather(nets))
    stacked.apart = True
    train_members(members, train, None, 12, 16, generator(), Optimisation(1e-2, 1e-2, clip=clip), class_losses)
    for k, net in enumerate(nets):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-2)
        for batch in orders(50, 16, 12, generator(), 2):
            optimizer.zero_grad()
            F.cross_entropy(net(train.x[batch[k]]), train.y[batch[k]]).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
        alone = stacked.gather([net])[0][0]
        torch.testing.assert_close(members.weights[k], alone, rtol=1e-4, atol=1e-5)


def test_a_gradient_of_ones_own_sees_each_member_and_its_buffers() -> None:
    found = []
    for apart in (True, False):
        _, members = start()
        members.stacked.apart = apart
        seen: list[float] = []

        def gradient(
            losses: Callable[[torch.Tensor], torch.Tensor],
            weights: torch.Tensor,
            members: Members = members,
            seen: list[float] = seen,
        ) -> torch.Tensor:
            leaf = weights.clone().requires_grad_(True)
            losses(leaf).sum().backward()
            seen.append(float(members.buffers["1.running_mean"].abs().sum()))
            return 2 * leaf.grad

        how = (rows(), rows(30, 4), 9, 16, generator(), Optimisation(1e-2), class_losses)
        found.append(train_members(members, *how, gradient=gradient))
        assert len(seen) == (27 if apart else 9)
        assert seen[0] > 0
    torch.testing.assert_close(found[0].weights, found[1].weights, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(found[0].buffers, found[1].buffers, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("apart", [True, False])
def test_half_precision_is_trained_in_float32(apart: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2)]
    ends = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        own = [copy.deepcopy(net).to(dtype) for net in nets]
        stacked = Stacked(own[0])
        stacked.apart = apart
        members = Members(stacked, *stacked.gather(own))
        part = rows(200)
        part = Part(part.x.to(dtype), part.y, part.rows)
        train_members(members, part, part, 60, 16, generator(), Optimisation(3e-2), class_losses)
        assert members.weights.dtype == torch.float32
        ends.append(float((members.outputs(part.x).argmax(2) == part.y).float().mean()))
    assert min(ends) > 0.8
    assert max(ends) - min(ends) < 0.06


def test_every_member_keeps_its_best_weights() -> None:
    _, members = start()
    train, valid = rows(), rows(40, 9)
    seen: list[torch.Tensor] = []

    def look(step: int, weights: torch.Tensor, buffers: dict[str, torch.Tensor]) -> None:
        if (step + 1) % 3 == 0:
            now = Members(members.stacked, weights.clone(), copy.deepcopy(buffers))
            output = now.outputs(valid.x)
            loss = member_losses(class_losses, output, valid.y).mean(1)
            seen.append((output.argmax(2) != valid.y).double().mean(1) + 1e-6 * loss)

    train_members(members, train, valid, 30, 16, generator(), Optimisation(3e-2), class_losses, hook=look)
    output = members.outputs(valid.x)
    loss = member_losses(class_losses, output, valid.y).mean(1)
    kept = (output.argmax(2) != valid.y).double().mean(1) + 1e-6 * loss
    torch.testing.assert_close(kept, torch.stack(seen).amin(0))
    posterior = Posterior(make(), members.samples())
    torch.testing.assert_close(posterior.outputs(valid.x), output)


def test_orders_go_through_all_rows() -> None:
    batches = list(orders(20, 5, 8, generator(), members=2))
    for epoch in (batches[:4], batches[4:]):
        assert (torch.cat(epoch, dim=1).sort(dim=1).values == torch.arange(20)).all()
    assert not torch.equal(batches[0][0], batches[0][1])
    assert [tuple(b.shape) for b in orders(3, 64, 2, generator())] == [(3,), (3,)]


def test_row_losses() -> None:
    output, y = torch.randn(6, 4, generator=generator()), torch.randn(6, 2, generator=generator(1))
    expected = -torch.distributions.Normal(output[:, :2], (output[:, 2:] / 2).exp()).log_prob(y).sum(1)
    torch.testing.assert_close(gaussian_losses(output, y), expected)
    torch.testing.assert_close(square_losses(y, 2 * y), y.square().mean(1))


def test_a_training_that_breaks_is_said() -> None:
    _, members = start()
    with pytest.raises(ValueError, match="lower learning rate"):
        train_members(members, rows(), None, 5, 16, generator(), Optimisation(math.inf), class_losses)
