"""TextCNN against an explicit loop over windows (arXiv:1408.5882)."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from probatum.claims.tools import accuracy, fit
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.spec import Spec
from probatum.techniques.model.text.text_cnn import text_cnn
from probatum.techniques.model.text.text_cnn.text_cnn import MaxNormLinear, TextCNN, build, fill_unknown

pytestmark = pytest.mark.fast

SPEC = Spec("text", "classes", (9,), 3, vocabulary=30)


def ids() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 30, (5, 9), generator=generator)
    for row, length in enumerate((9, 1, 4, 6, 2)):
        x[row, length:] = 0
    return x


def given(width: int = 8) -> Tensor:
    vectors = torch.randn(30, width, generator=torch.Generator().manual_seed(1))
    vectors[[4, 17]] = 0.0
    return vectors


def model(variant: str = "rand") -> TextCNN:
    vectors = None if variant == "rand" else given()
    net = build(SPEC, variant, vectors, width=8, filters=6)
    for convolution in net.convolutions:
        torch.nn.init.uniform_(convolution.bias, -1, 1, generator=torch.Generator().manual_seed(2))
    return net.eval()


@pytest.mark.parametrize("variant", ["rand", "static", "non-static", "multichannel"])
def test_equals_a_loop_over_windows(variant: str) -> None:
    net, x = model(variant), ids()
    tables = [table.weight for table in (net.learned, net.fixed) if table is not None]
    assert len(tables) == (2 if variant == "multichannel" else 1)
    features = []
    for row in x:
        words = row[row != 0]
        own = []
        for h, convolution in zip((3, 4, 5), net.convolutions, strict=True):
            channels = [F.pad(table[words], (0, 0, h - 1, h - 1)) for table in tables]
            found = []
            for i in range(len(words) + h - 1):
                products = sum((convolution.weight * c[i : i + h].T).sum((1, 2)) for c in channels)
                found.append((products + convolution.bias).relu())
            own.append(torch.stack(found).amax(0))
        features.append(torch.cat(own))
    torch.testing.assert_close(net(x), net.head(torch.stack(features)), atol=1e-5, rtol=1e-5)


def test_right_padding_changes_nothing() -> None:
    net, x = model(), ids()
    torch.testing.assert_close(net(F.pad(x, (0, 7))), net(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(net(x[1:2, :1]), net(x[1:2]), atol=1e-6, rtol=0)


def test_padding_never_wins_the_maximum() -> None:
    net, x = model(), ids()
    with torch.no_grad():
        for convolution in net.convolutions:
            convolution.bias.fill_(1.0)  # an empty window would give 1
            convolution.weight.fill_(-1.0)
        net.learned.weight[1:] = 5.0
    assert bool((net.pooled(F.pad(x, (0, 9))) == 0).all())


@pytest.mark.parametrize(("variant", "changes"), [("static", False), ("non-static", True), ("multichannel", True)])
def test_the_static_channel_keeps_its_bits(variant: str, changes: bool) -> None:
    net = model(variant)
    before = copy.deepcopy(net)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05)
    y = torch.tensor([0, 1, 2, 0, 1])
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(net.train()(ids()), y).backward()
        optimizer.step()
    if net.fixed is not None:
        assert torch.equal(net.fixed.weight, before.fixed.weight)
    if net.learned is not None:
        assert torch.equal(net.learned.weight, before.learned.weight) != changes
        assert bool((net.learned.weight[0] == 0).all())
    assert not torch.equal(net.convolutions[0].weight, before.convolutions[0].weight)


def test_class_vectors_stay_in_the_ball() -> None:
    def trained(project: bool) -> MaxNormLinear:
        head = MaxNormLinear(4, 3, max_norm=0.5)
        with torch.no_grad():
            head.weight.copy_(torch.arange(12.0).view(3, 4) / 4)
            head.bias.zero_()
        optimizer = torch.optim.SGD(head.parameters(), lr=0.5, momentum=0.9)
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(3))
        if project:
            head.project()
        for _ in range(6):
            optimizer.zero_grad()
            F.cross_entropy(head(x), torch.arange(8) % 3).backward()
            optimizer.step()
            if project:
                head.project()
        return head.eval()

    lazy, eager = trained(False), trained(True)
    assert bool((lazy.weight.norm(dim=1) <= 0.5 + 1e-6).all())
    torch.testing.assert_close(lazy.weight, eager.weight)  # the same trajectory as projecting after every step


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_loaded_weights_are_projected_in_either_mode(mode: bool, assign: bool) -> None:
    far = model().state_dict()
    far["head.weight"] = far["head.weight"] * 40
    kept = {name: value.clone() for name, value in far.items()}
    net = model().train(mode)
    net.load_state_dict(far, assign=assign)
    torch.testing.assert_close(net.head.weight.norm(dim=1), torch.full((3,), 3.0))
    torch.testing.assert_close(F.normalize(net.head.weight, dim=1), F.normalize(kept["head.weight"], dim=1))
    assert all(torch.equal(value, kept[name]) for name, value in far.items())  # what was given stays as it was
    free = MaxNormLinear(18, 3, None)
    free.load_state_dict({"weight": kept["head.weight"], "bias": kept["head.bias"]})
    assert torch.equal(free.weight, kept["head.weight"])
    near, other = model(), model()
    near.load_state_dict(other.state_dict())
    assert torch.equal(near.head.weight, other.head.weight)


def test_projection_keeps_short_rows_and_directions() -> None:
    head = MaxNormLinear(2, 2, max_norm=1.0)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.3, 0.4], [30.0, 40.0]]))
    head.project()
    assert torch.equal(head.weight[0], torch.tensor([0.3, 0.4]))
    torch.testing.assert_close(head.weight[1], torch.tensor([0.6, 0.8]))


def test_two_forwards_before_one_backward() -> None:
    net = model().train()
    for seed in range(20):  # class vectors far outside the ball: rounding must not call for a second projection
        with torch.no_grad():
            net.head.weight.copy_(9 * torch.randn(3, 18, generator=torch.Generator().manual_seed(seed)))
        (net(ids()).sum() + net(ids()).sum()).backward()
        assert float(net.head.weight.detach().norm(dim=1).min()) == pytest.approx(3.0, abs=1e-5)


def test_unknown_words_have_the_variance_of_the_known() -> None:
    vectors = torch.cat([0.7 * torch.randn(500, 40, generator=torch.Generator().manual_seed(4)), torch.zeros(500, 40)])
    filled = fill_unknown(vectors, torch.Generator().manual_seed(5))
    assert torch.equal(filled[:500], vectors[:500])
    assert float(filled[500:].var()) == pytest.approx(float(vectors[:500].var()), rel=0.03)
    assert float(filled[500:].abs().max()) <= (3 * float(vectors[:500].var(unbiased=False))) ** 0.5 + 1e-6
    with pytest.raises(ValueError, match="all zero"):
        fill_unknown(torch.zeros(3, 2))


def test_bad_input() -> None:
    empty = ids()
    empty[3] = 0
    with pytest.raises(ValueError, match="row 3 holds no tokens"):
        model()(empty)
    with pytest.raises(ValueError, match=r"shape \(2, 0\), texts of no tokens"):
        model()(torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"shape \(12, 8\).*\(30, width\)"):
        build(SPEC, "static", torch.ones(12, 8))
    broken = given()
    broken[7, 2] = float("nan")
    with pytest.raises(ValueError, match="vector of id 7 has values that are not finite"):
        build(SPEC, "static", broken)
    with pytest.raises(ValueError, match="needs vectors"):
        build(SPEC, "non-static")
    with pytest.raises(ValueError, match="leave vectors out"):
        build(SPEC, "rand", given())


@pytest.mark.parametrize(
    ("setting", "value"),
    [("variant", "big"), ("filters", 0), ("width", -3), ("dropout", 1.0), ("max_norm", 0.0)],
)
def test_settings_outside_their_range(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{setting} is {value!r}"):
        build(SPEC, **{setting: value})


def test_trains_on_the_bench() -> None:
    data = open_dataset("toy-topics").prepare(1)
    run = fit("text-cnn(width=16, filters=8)", data, 1, training=Training(epochs=6, lr=1e-2))
    assert accuracy(run.model, data.test) > 2 / data.spec.outputs
    assert float(run.model.head.weight.detach().norm(dim=1).max()) <= 3 + 1e-6
    again = build(data.spec, width=16, filters=8).eval()
    again.load_state_dict(run.model.state_dict())
    assert torch.equal(again(data.test.x), run.model(data.test.x))


def test_exports() -> None:
    net, x = model(), ids()
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), net(x))


def test_example() -> None:
    assert doctest.testmod(text_cnn).failed == 0


def test_evaluation_uses_projected_weights_whatever_is_stored() -> None:
    net, ids = model().eval(), torch.randint(1, 12, (4, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net.head.weight.data.mul_(40.0)  # as a moving average kept in evaluation has it
        found = net(ids)
        stored = net.head.weight.norm(dim=1)
        net.project()
    assert bool((stored > 3.0).all())
    torch.testing.assert_close(found, net(ids).detach())


@pytest.mark.parametrize("mode", [True, False])
def test_a_parametrised_head_stays_in_the_ball(mode: bool) -> None:
    head = torch.nn.utils.parametrizations.weight_norm(MaxNormLinear(6, 3, max_norm=0.5)).train(mode)
    with torch.no_grad():
        head.parametrizations.weight.original0.copy_(torch.tensor([[4.0], [0.25], [0.75]]))
        direction = F.normalize(head.weight, dim=1)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    expected = x @ (direction * torch.tensor([[0.5], [0.25], [0.5]])).T + head.bias
    torch.testing.assert_close(head(x), expected)
    head(x).square().sum().backward()
    assert bool((head.parametrizations.weight.original1.grad.abs().sum(dim=1) > 0).all())
