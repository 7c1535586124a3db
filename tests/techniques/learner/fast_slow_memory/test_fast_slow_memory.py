"""Fast and slow learning: true signals give the true gradient, none moves nothing, memory writes replace rows."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from probatum.checks.toy import toy
from probatum.data.open import open_dataset
from probatum.spec import Budget, Data, Part, Spec
from probatum.techniques.learner.fast_slow_memory.fast_slow_memory import (
    CONTROLLERS,
    FastSlow,
    bootstrapped_gradients,
    clipped,
    controllers_of,
    fast_update,
    fit,
    most_items,
    run_episode,
    true_gradients,
    warn_of_few_slots,
)
from probatum.techniques.learner.fast_slow_memory.memory_network import Feedback, MemoryNet, attend, write


def network() -> tuple[MemoryNet, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = MemoryNet(3, 4, width=5, slots=6).double()
    return net, torch.randn(2, 7, 3).double(), torch.randint(4, (2, 7))


def test_true_signals_add_up_to_the_gradient_through_time() -> None:
    net, x, y = network()
    episode = run_episode(net, x, lambda name, u, t: torch.zeros_like(u), 0.1)
    loss = F.cross_entropy(episode.logits.flatten(0, 1), y.flatten(), reduction="sum")
    signals = true_gradients(loss, episode.outputs)
    plain = F.cross_entropy(net(x).flatten(0, 1), y.flatten(), reduction="sum")
    torch.testing.assert_close(loss, plain)
    total = {
        name: {key: torch.zeros_like(v) for key, v in getattr(net, name).named_parameters()} for name in CONTROLLERS
    }
    state, weights = net.begin(2), controllers_of(net)
    for t in range(7):
        outputs = net.step(x[:, t], state, weights).outputs
        moved = fast_update(outputs, weights, lambda name, u, t=t: signals[t][name] * len(x), 1.0)
        for name in CONTROLLERS:
            for key in total[name]:
                total[name][key] += (weights[name][key] - moved[name][key]).detach()
        state = net.step(x[:, t], state).state
    for name in CONTROLLERS:
        module = getattr(net, name)
        expected = torch.autograd.grad(plain, list(module.parameters()), retain_graph=True)
        for (key, _), g in zip(module.named_parameters(), expected, strict=True):
            torch.testing.assert_close(total[name][key], g, atol=1e-6, rtol=1e-6)


def test_without_signals_controllers_stay() -> None:
    net, x, y = network()
    before = copy.deepcopy(net.state_dict())
    episode = run_episode(net, x, lambda name, u, t: torch.zeros_like(u), 10.0)
    for name in CONTROLLERS:
        for key, value in getattr(net, name).named_parameters():
            assert torch.equal(episode.weights[name][key], value)
    torch.testing.assert_close(episode.logits, net(x))
    trainer = FastSlow(net.float(), Feedback(4, 5), fast_rate=0.0)
    trainer.update(x.float(), y)
    for name, value in net.state_dict().items():
        moved = not torch.equal(value, before[name].float())
        assert moved == (name.split(".")[0] in ("encoder", "head", "first")), name


def test_two_steps_by_hand() -> None:
    net, x, _ = network()
    assert all(value.is_leaf for own in controllers_of(net).values() for value in own.values())
    memory = torch.stack([net.first, net.first])
    read = write_state = (torch.zeros(2, 5).double(), torch.zeros(2, 5).double())
    for t in range(2):
        read = net.read(net.encoder(x[:, t]), read)
        q = read[0]
        logits = []
        for row in range(2):
            weights = torch.exp(memory[row] @ q[row])
            weights = weights / weights.sum()
            m = sum(w * slot for w, slot in zip(weights, memory[row], strict=True))
            c = net.compose(torch.cat([q[row], m])[None])
            h = net.write(c, (write_state[0][row : row + 1], write_state[1][row : row + 1]))
            logits.append((net.head(torch.cat([c[0], m])), h, weights))
        write_state = tuple(torch.cat([one[1][k] for one in logits]) for k in (0, 1))
        memory = torch.stack(
            [
                torch.stack([(1 - w) * slot + w * one[1][0][0] for w, slot in zip(one[2], memory[row], strict=True)])
                for row, one in enumerate(logits)
            ]
        )
        torch.testing.assert_close(net(x)[:, t], torch.stack([one[0] for one in logits]))


def test_feedback_starts_at_zero_and_learns() -> None:
    torch.manual_seed(0)
    feedback = Feedback(4, 5)
    assert all(
        not feedback(n, torch.randn(3, s), torch.tensor([0, 1, 2])).any() for n, s in (("read", 10), ("compose", 5))
    )
    net, x, y = network()
    trainer = FastSlow(net.float(), feedback, rate=1e-2)
    losses = [trainer.update(x.float(), y) for _ in range(25)]
    assert losses[-1] < 0.9 * losses[0]
    assert any(bool(p.abs().sum() > 0) for p in feedback.nets["write"][2].parameters())


def test_one_feedback_serves_two_networks() -> None:
    torch.manual_seed(0)
    feedback = Feedback(4, 5)
    nets = [MemoryNet(3, 4, width=5, slots=s) for s in (4, 8)]
    trainers = [FastSlow(net, feedback) for net in nets]
    x, y = torch.randn(3, 5, 3), torch.randint(4, (3, 5))
    before = feedback.nets["read"][2].bias.clone()
    trainers[0].update(x, y)
    between = feedback.nets["read"][2].bias.clone()
    trainers[1].update(x, y)
    assert not torch.equal(before, between)
    assert not torch.equal(between, feedback.nets["read"][2].bias)


def by_step(y: torch.Tensor) -> Callable[[torch.Tensor, int], torch.Tensor]:
    return lambda logits, t: F.cross_entropy(logits, y[:, t], reduction="sum")


def test_bootstrapped_targets_of_true_gradients_are_the_true_gradients() -> None:
    net, x, y = network()
    whole = run_episode(net, x, lambda name, u, t: torch.zeros_like(u), 0.0)
    loss = sum(by_step(y)(whole.logits[:, t], t) for t in range(7))
    true = true_gradients(loss, whole.outputs)
    cut = run_episode(net, x, lambda name, u, t: torch.zeros_like(u), 0.0, one_step=True)
    found = bootstrapped_gradients(net, x, cut, by_step(y), lambda name, u, t: true[t][name])
    for t in range(7):
        for name in CONTROLLERS:
            torch.testing.assert_close(found[t][name], true[t][name], atol=1e-12, rtol=1e-8)
    assert float(true[0]["write"].norm()) > 1e-3  # what is written at first is read later


def test_bootstrapped_targets_take_what_is_predicted_at_the_next_step() -> None:
    net, x, y = network()
    cut = run_episode(net, x, lambda name, u, t: torch.zeros_like(u), 0.0, one_step=True)
    asked: list[tuple[str, int]] = []

    def told(size: float) -> list[dict[str, torch.Tensor]]:
        def predicted(name: str, u: torch.Tensor, t: int) -> torch.Tensor:
            asked.append((name, t))
            return torch.full_like(u, size)

        return bootstrapped_gradients(net, x, cut, by_step(y), predicted)

    none, one, two = told(0.0), told(1.0), told(2.0)
    assert ("write", 0) in asked
    for t in range(7):
        for name in CONTROLLERS:
            gap = one[t][name] - none[t][name]
            torch.testing.assert_close(two[t][name] - none[t][name], 2 * gap)  # linear in what is predicted
            assert (float(gap.norm()) > 0) == (t < 6)
    last = cut.outputs[6]
    direct = torch.autograd.grad(by_step(y)(cut.logits[:, 6], 6), [last["read"], last["compose"]], retain_graph=True)
    torch.testing.assert_close(none[6]["read"], direct[0])
    torch.testing.assert_close(none[6]["compose"], direct[1])
    assert not none[6]["write"].any()


def test_a_one_hot_write_replaces_one_row() -> None:
    memory, h = torch.randn(2, 4, 3), torch.randn(2, 3)
    a = F.one_hot(torch.tensor([1, 3]), 4).float()
    found = write(memory, a, h)
    for n, row in enumerate((1, 3)):
        assert torch.equal(found[n, row], h[n])
        others = [i for i in range(4) if i != row]
        assert torch.equal(found[n, others], memory[n, others])
    torch.testing.assert_close(attend(memory, h)[0], (memory[0] @ h[0]).softmax(dim=0))
    assert float(clipped(torch.tensor([[3.0, 4.0]])).norm()) == pytest.approx(1.0)
    assert torch.equal(clipped(torch.tensor([[0.3, 0.4]])), torch.tensor([[0.3, 0.4]]))


def test_memory_starts_anew_with_every_episode() -> None:
    net, x, _ = network()
    torch.testing.assert_close(net(x)[:1], net(x[:1]))
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("targets", ["true", "bootstrapped"])
def test_learns_sequences(targets: str) -> None:
    own, y = torch.Generator().manual_seed(0), torch.arange(400) % 3
    x = torch.randn(400, 2, 4, generator=own) + 2 * F.one_hot(y, 3)[:, :2, None]
    parts = [Part(x[a:b], y[a:b], torch.arange(a, b)) for a, b in ((0, 240), (240, 300), (300, 400))]
    series = Data(Spec("series", "classes", (2, 4), 3), *parts)
    settings = {"rate": 3e-2, "targets": targets, "width": 8, "slots": 4}
    model = fit(series, Budget(60, 32, 10), torch.Generator().manual_seed(0), **settings)
    found = model.predict(series.test)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(len(series.test)))
    assert (found.argmax(dim=1) == series.test.y).float().mean() > 0.75  # of three classes
    copied = pickle.loads(pickle.dumps(model))
    assert torch.equal(copied.predict(series.test), found)
    wide = type(series.test)(series.test.x.double(), series.test.y, series.test.rows)
    torch.testing.assert_close(model.predict(wide), found)


def test_every_presentation_is_scored_and_few_slots_are_told() -> None:
    net, x, _ = network()
    trainer = FastSlow(net.float(), Feedback(4, 5))
    labels = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [1, 1, 1, 1, 1, 1, 1]])
    assert most_items(labels) == 4
    assert most_items(labels[:, :1]) == 1
    small = MemoryNet(3, 4, width=5, slots=3)
    with pytest.warns(UserWarning, match="3 slots for 4 distinct items"):
        FastSlow(small, Feedback(4, 5)).update(x.float(), labels)
    with pytest.raises(ValueError, match="labels reach from -100 to 3"):
        trainer.update(x.float(), torch.where(labels == 0, -100, labels))
    with pytest.raises(ValueError, match="labels reach from 1 to 4"):
        trainer.update(x.float(), labels + 1)
    first = copy.deepcopy(net.state_dict())
    counted = torch.zeros(2, 7, dtype=torch.bool)
    counted[:, 5:] = True
    with torch.no_grad():
        expected = F.cross_entropy(net(x.float())[:, 5:].flatten(0, 1), labels[:, 5:].flatten())
    assert trainer.update(x.double(), labels, counted) == pytest.approx(float(expected), rel=1e-5)
    assert not torch.equal(net.head.weight, first["head.weight"])


def test_misuse() -> None:
    net, x, _ = network()
    with pytest.raises(ValueError, match=r"\(2, 3\); a memory reads sequences"):
        net(x[:, 0])
    with pytest.warns(UserWarning, match="4 slots for 9 distinct items"):
        warn_of_few_slots(4, 9)
    for settings, told in (
        ({"rate": 0.0}, "rate is 0.0"),
        ({"fast_rate": -1.0}, "fast_rate -1"),
        ({"targets": "x"}, "targets is 'x'"),
    ):
        with pytest.raises(ValueError, match=told):
            FastSlow(net, Feedback(4, 5), **settings)
    with pytest.raises(ValueError, match="slots 0"):
        MemoryNet(3, 2, slots=0)
    with pytest.raises(ValueError, match="reads sequences, series or text"):
        fit(open_dataset("wine").prepare(0), Budget(1, 8, 1), torch.Generator())


def test_text_is_read_through_embeddings_that_learn() -> None:
    data = toy("text", "classes")
    first = fit(data, Budget(1, 16, 4), torch.Generator().manual_seed(0), width=6, slots=3, rate=1e-9)
    found = fit(data, Budget(6, 16, 4), torch.Generator().manual_seed(0), width=6, slots=3, rate=3e-2)
    moved = (found.tokens.weight - first.tokens.weight).detach().abs().amax(dim=1)
    seen = data.train.x.unique()
    assert float(moved[seen[seen > 0]].max()) > 0.05
    assert float(moved[0]) == 0.0  # padding
    torch.testing.assert_close(found.predict(data.test).sum(dim=1), torch.ones(len(data.test)))


@pytest.mark.parametrize("targets", ["true", "bootstrapped"])
def test_frozen_weights_stay(targets: str) -> None:
    net, x, y = network()
    net.encoder.requires_grad_(False)
    net.read.requires_grad_(False)
    net.write.bias_hh.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    trainer = FastSlow(net, Feedback(4, 5).double(), rate=0.1, targets=targets)
    for _ in range(3):
        trainer.update(x, y)
    still = {name for name, value in net.state_dict().items() if torch.equal(value, before[name])}
    assert still == {name for name in before if name.startswith(("encoder", "read")) or name == "write.bias_hh"}
    assert not any(p.requires_grad for p in net.read.parameters())


def test_signals_reach_controllers_behind_frozen_ones() -> None:
    net, x, y = network()

    def signals() -> list[dict[str, torch.Tensor]]:
        episode = run_episode(net, x, lambda name, u, t: torch.zeros_like(u), 0.1)
        return true_gradients(
            F.cross_entropy(episode.logits.flatten(0, 1), y.flatten(), reduction="sum"), episode.outputs
        )

    free = signals()
    net.encoder.requires_grad_(False)
    net.read.requires_grad_(False)
    net.first.requires_grad_(False)
    for a, b in zip(free, signals(), strict=True):
        for name in CONTROLLERS:
            torch.testing.assert_close(a[name], b[name])


def test_one_label_a_sequence() -> None:
    found = []
    for labels in (lambda y: y[:, 0], lambda y: y[:, :1].expand(-1, 7)):
        net, x, y = network()
        trainer = FastSlow(net, Feedback(4, 5).double())
        found.append([trainer.update(x, labels(y)) for _ in range(3)])
    assert found[0] == found[1]
    net, x, y = network()
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="all frozen"):
        FastSlow(net, Feedback(4, 5).double())


def test_rows_of_other_precisions_are_read_in_the_networks_own() -> None:
    torch.manual_seed(0)
    net, x = MemoryNet(3, 4, width=5, slots=6), torch.randn(2, 7, 3)
    assert torch.equal(net(x.double()), net(x))
    assert net(x.bfloat16()).dtype == torch.float32
