"""BatchFormer against torch's encoder layer, its symmetries, and what it leaves behind (arXiv:2203.01522)."""

from __future__ import annotations

import copy
import doctest
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.engine import Engine
from probatum.errors import InputError
from probatum.recipe import Recipe, Training, make_arm
from probatum.rooms.arena import alone
from probatum.spec import Batch, Budget, Part, Spec
from probatum.techniques.method import batchformer
from probatum.techniques.method.batchformer import BatchEncoder, BatchFormer, group_accuracy, influences
from probatum.train.assemble import assemble
from probatum.train.run import Run

pytestmark = pytest.mark.fast

SHORT = Training(epochs=2, batch_size=64)


def own(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=own(seed))


def former(**settings: object) -> BatchFormer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BatchFormer(nn.Linear(8, 3).double(), **{"generator": own(1), **settings})


def target(n: int) -> Tensor:
    return torch.arange(n) % 3


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("training", [True, False])
def test_block_is_torchs_encoder_layer_with_the_batch_as_sequence(heads: int, training: bool) -> None:
    ours = BatchEncoder(8, heads, 0.0, own()).double().train(training)
    theirs = nn.TransformerEncoderLayer(8, heads, dim_feedforward=8, dropout=0.0).double().train(training)
    theirs.load_state_dict(ours.state_dict())
    z = draw(7, 8)
    torch.testing.assert_close(ours(z), theirs(z.unsqueeze(1)).squeeze(1))


def test_weights_start_as_torchs() -> None:
    block, witness = BatchEncoder(64, 4, 0.5, own()), nn.TransformerEncoderLayer(64, 4, dim_feedforward=64)
    for (name, mine), theirs in zip(block.named_parameters(), witness.state_dict().values(), strict=True):
        assert name in witness.state_dict()
        assert mine.shape == theirs.shape
        assert float(mine.detach().abs().max()) == pytest.approx(float(theirs.abs().max()), rel=0.1, abs=0.02)


def test_order_of_the_batch_does_not_matter() -> None:
    block, z = former().block.eval(), draw(9, 8)
    order = torch.randperm(9, generator=own())
    torch.testing.assert_close(block(z[order]), block(z)[order], atol=1e-5, rtol=0)


def test_transform_stacks_both_halves_for_one_classifier_and_evaluation_sees_the_first_alone() -> None:
    made, z, y = former(), draw(6, 8), target(6)
    made.block.rate = 0.0
    output, both = made.transform(z, y)
    torch.testing.assert_close(output[:6], made.classifier(z))
    torch.testing.assert_close(output[6:], made.classifier(made.block(z)))
    assert torch.equal(both, torch.cat([y, y]))
    made.block.eval()
    output, same = made.transform(z, y)
    assert torch.equal(output, made.classifier(z))
    assert same is y
    assert torch.equal(made.transform(z[:1], y[:1])[0], made.classifier(z[:1]))


def test_gradients_cross_samples_in_training_and_not_without() -> None:
    made, z, y = former(), draw(5, 8).requires_grad_(), target(5)
    made.block.rate = 0.0
    output, _ = made.transform(z, y)
    (crossed,) = torch.autograd.grad(F.cross_entropy(output[5:6], y[:1]), z, retain_graph=True)
    assert bool((crossed[1:].norm(dim=1) > 1e-6).all())
    (plain,) = torch.autograd.grad(F.cross_entropy(output[:1], y[:1]), z)
    assert not bool(plain[1:].any())


def test_influences_by_finite_differences() -> None:
    made, z, y = former(), draw(4, 8), target(4)
    made.block.rate = 0.0
    found = influences(made, z, y)

    def loss(j: int, moved: Tensor) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(made.classifier(made.block(moved))[j : j + 1], y[j : j + 1]))

    for i, j in ((0, 0), (2, 1)):
        slope = []
        for k in range(8):
            step = torch.zeros_like(z)
            step[i, k] = 1e-6
            slope.append((loss(j, z + step) - loss(j, z - step)) / 2e-6)
        assert float(found[i, j]) == pytest.approx(float(torch.tensor(slope).norm()), rel=1e-4)


def test_influences_of_features_that_are_in_a_graph() -> None:
    made, z, y = former(), draw(4, 8), target(4)
    made.block.rate = 0.0
    root = z.clone().requires_grad_()
    torch.testing.assert_close(influences(made, 1.0 * root, y), influences(made, z, y))
    assert root.grad is None
    assert not z.requires_grad  # the features given are not touched


def test_gradcheck() -> None:
    block = BatchEncoder(4, 2, 0.0, own()).double()
    assert torch.autograd.gradcheck(block, (draw(3, 4).requires_grad_(),))


def test_dropout_draws_from_its_stream_and_keeps_the_mean() -> None:
    block = BatchEncoder(8, 4, 0.25, own(3))
    before = torch.get_rng_state()
    ones = block._dropped(torch.ones(200, 200))
    assert ones.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert float(ones.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(before, torch.get_rng_state())


def test_loss_on_the_bench_is_the_mean_over_both_halves() -> None:
    data = open_dataset("digits").prepare(0)
    parts = assemble(alone(make_arm("batchformer(dropout=0.0)", Recipe(training=SHORT)).recipe, data, 3))
    run, (method,) = parts.run, parts.methods
    method.prepare(run)
    features: list[Tensor] = []
    handle = run.model.head.register_forward_pre_hook(lambda _m, inputs: features.append(inputs[0]))
    x, y = data.train.x[:32], data.train.y[:32]
    run.model.train()
    output = run.model(x)
    handle.remove()
    batch = type("B", (), {"x": x, "y": y, "index": torch.arange(32)})()
    found = method.loss(run, batch, output, F.cross_entropy(output, y))
    z = torch.cat([features[0], method.block(features[0])])
    torch.testing.assert_close(found, F.cross_entropy(run.model.head(z), torch.cat([y, y])))
    method.finish(run)
    assert len(run.optimizer.param_groups) == 1
    assert not run.model.head._forward_hooks


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


def run_of(model: nn.Module, loss: nn.Module | None = None, **settings: object) -> Run:
    part = Part(torch.randn(12, 5, generator=own(4)), target(12), torch.arange(12))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **settings)
    spec = Spec("table", "classes", (5,), 3, numeric=5)
    run = Run(model, loss or nn.CrossEntropyLoss(), optimizer, spec, part, part, Budget(10, 12, 1))
    run.batch = Batch(part.x, part.y, part.rows)
    return run


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_the_halves_are_weighed_by_share_and_what_was_added_before_counts_with_the_first(share: float) -> None:
    net = Net()
    run, method = run_of(net), BatchFormer(net.head, heads=2, dropout=0.0, share=share, generator=own(1))
    method.prepare(run)

    def looks_elsewhere(run: Run, batch: Batch, _output: Tensor, loss: Tensor) -> Tensor:
        return loss + 0.0 * run.model(3 - batch.x).sum()

    z = net.body(run.train.x).relu()
    first, second = (F.cross_entropy(net.head(u), run.train.y) for u in (z, method.block(z)))
    expected = (1 - share) * (first + 2.0) + share * second
    run.pass_hooks, added = [method.before_pass], lambda _r, _b, _o, loss: loss + 2.0
    for hooks in ([added, method.loss], [looks_elsewhere, added, method.loss], [added, method.loss, looks_elsewhere]):
        run.loss_hooks = hooks
        torch.testing.assert_close(run.loss_of(run.batch), expected)
        torch.testing.assert_close(run.second_pass(), expected.detach())
    net(run.train.x)
    method.before_pass(run, run.batch)
    with pytest.raises(ValueError, match="did not run"):  # passes before the loop's own are let go
        method.loss(run, run.batch, torch.zeros(12, 3), first)
    method.detach()
    assert not net.head._forward_hooks


def test_the_block_is_in_a_fused_optimizer_until_the_end_and_then_gone() -> None:
    net = Net()
    run, method = run_of(net, fused=True), BatchFormer(net.head, heads=2, dropout=0.0, generator=own(1))
    method.prepare(run)
    run.pass_hooks, run.loss_hooks = [method.before_pass], [method.loss]
    weights = [*net.parameters(), *method.block.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    before = [p.detach().clone() for p in weights]
    scaler.scale(run.loss_of(run.batch)).backward()
    scaler.step(run.optimizer)
    for value, parameter in zip(before, weights, strict=True):
        assert not torch.equal(value, parameter)
        assert float((value - parameter.detach()).abs().max()) == pytest.approx(0.1, rel=0.1)  # Adam's first step
    assert any(id(p) in {id(q) for q in run.optimizer.state} for p in method.block.parameters())
    method.finish(run)
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in net.parameters()}
    assert {id(p) for p in run.optimizer.state} == held


def test_the_attended_half_is_in_the_precision_of_the_first() -> None:
    net, seen = Net(), []

    class Kind(nn.Module):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            seen.append(output.dtype)
            return F.cross_entropy(output, target)

    run, method = run_of(net, Kind()), BatchFormer(net.head, heads=2, dropout=0.0, generator=own(1))
    method.prepare(run)
    run.pass_hooks, run.loss_hooks, run.engine = [method.before_pass], [method.loss], Engine(precision="bf16")
    run.forward = run.engine.forward(net)
    run.loss_of(run.batch)
    assert seen == [torch.float32, torch.float32]


def test_neutral_is_the_baseline_and_the_block_learns() -> None:
    data = open_dataset("digits").prepare(0)
    plain, neutral = (fit(arm, data, 2, training=SHORT).model.state_dict() for arm in (None, "batchformer(share=0.0)"))
    assert all(torch.equal(plain[name], neutral[name]) for name in plain)
    run = fit("batchformer", data, 2, training=SHORT)
    assert not any(torch.equal(plain[n], v) for n, v in run.model.state_dict().items() if n.endswith("head.weight"))
    assert run.curve[-1]["valid_error"] < 0.2
    model, x = run.model, data.test.x[:8]  # evaluation does not depend on a row's companions
    torch.testing.assert_close(model(x)[:1], model(x[:1]), atol=1e-5, rtol=1e-5)


def test_resume_goes_on_with_the_dropout_where_it_was() -> None:
    z = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    first, second = (BatchFormer(nn.Linear(8, 3), generator=torch.Generator().manual_seed(s)) for s in (3, 4))
    first.related(z)  # the stream has moved on when the state is taken
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first.related(z), second.related(z))


def test_an_empty_batch_is_told_as_such() -> None:
    with pytest.raises(ValueError, match=r"the batch has 0 sample\(s\)"):
        BatchFormer(nn.Linear(8, 3)).related(torch.empty(0, 8))


def test_state_dict_round_trip() -> None:
    first, second = former(), former(generator=own(9))
    second.load_state_dict(first.state_dict())
    z = draw(4, 8)
    assert torch.equal(first.block.eval()(z), second.block.eval()(z))


def test_group_accuracy_by_hand() -> None:
    y = torch.tensor([0, 0, 1, 1, 2, 2, 3])
    predicted = torch.tensor([0, 0, 1, 0, 0, 0, 3])
    assert group_accuracy(predicted, y, torch.tensor([500, 50, 10, 5])) == {"many": 1.0, "medium": 0.5, "few": 0.5}
    assert group_accuracy(predicted, y, torch.tensor([500, 500, 500, 500])) == {"many": pytest.approx(0.625)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads is 3; it must divide the 8 features"),
        ({"heads": 0}, "heads is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"share": -0.5}, "share is -0.5"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        former(**settings)


def test_batches_and_models_it_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="the batch has 1 sample"):
        former().transform(draw(1, 8), target(1))
    with pytest.raises(ValueError, match=r"features have shape \(2, 3, 8\)"):
        former().related(draw(2, 3, 8))
    with pytest.raises(TypeError, match="the last layer is Conv2d"):
        BatchFormer(nn.Conv2d(3, 3, 1))
    monkeypatch.setattr(batchformer, "MANY", 4)
    with pytest.warns(UserWarning, match="attention over a batch of 5"):
        former().related(draw(5, 8))

    class Scaled(nn.Module):
        def __init__(self, spec: Spec) -> None:
            super().__init__()
            self.head = nn.Linear(64, spec.outputs)

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.head(x.flatten(1))

    data = open_dataset("digits").prepare(0)
    with pytest.raises((ValueError, InputError), match="goes on behind its last layer"):
        fit("batchformer", data, 1, training=SHORT, factory=Scaled)


def test_example() -> None:
    assert doctest.testmod(batchformer).failed == 0


def test_losses_with_state_per_row_are_refused_by_name() -> None:
    data = open_dataset("wine").prepare(0)
    with pytest.raises((ValueError, InputError), match="EarlyLearningRegularization keeps state per row"):
        fit("early-learning-regularization+batchformer", data, 0, training=SHORT)


def test_outputs_cast_to_another_precision_are_still_the_classifiers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    method = BatchFormer(net[2], dropout=0.0)
    run = SimpleNamespace(
        model=net, loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        objective=lambda batch, output: F.cross_entropy(output, batch.y),
    )  # fmt: skip
    method.prepare(run)
    x, y = torch.randn(6, 5), target(6)
    with torch.autocast("cpu", torch.bfloat16):
        output = net(x).float()  # as the bench's engine hands it on
        found = method.loss(run, SimpleNamespace(y=y), output, F.cross_entropy(output, y))
        attended = net[2](method.related(net[1](net[0](x))))
        expected = 0.5 * F.cross_entropy(output, y) + 0.5 * F.cross_entropy(attended, y)
    torch.testing.assert_close(found, expected)
    method.finish(run)
    assert not any(module._forward_hooks for module in net.modules())


def test_the_attended_half_goes_through_the_classifiers_own_rule() -> None:
    class Cosine(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 5 * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), Cosine(8, 3))
    method = BatchFormer(net[2], dropout=0.0, share=0.3)
    run = SimpleNamespace(
        model=net, loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        objective=lambda batch, output: F.cross_entropy(output, batch.y),
    )  # fmt: skip
    method.prepare(run)
    batch = SimpleNamespace(x=torch.randn(6, 5), y=torch.arange(6) % 3)
    method.before_pass(run, batch)
    output = net(batch.x)
    found = method.loss(run, batch, output, F.cross_entropy(output, batch.y))
    logits, z = [], method.block(net[1](net[0](batch.x)))
    for row in z:
        logits.append(torch.stack([5 * row @ w / (row.norm() * w.norm()) for w in net[2].weight]))
    expected = 0.7 * F.cross_entropy(output, batch.y) + 0.3 * F.cross_entropy(torch.stack(logits), batch.y)
    torch.testing.assert_close(found, expected)
    method.finish(run)
