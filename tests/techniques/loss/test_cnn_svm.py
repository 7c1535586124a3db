"""The SVM loss against liblinear, torch's margin loss and hand-made cases (arXiv:1712.03541)."""

from __future__ import annotations

import copy
import doctest
import gc
import pickle

import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from probatum.claims.tools import accuracy, fit
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.techniques.loss import cnn_svm
from probatum.techniques.loss.cnn_svm import KINDS, L2SVM, hinge, refit_head
from probatum.train.run import last_layer

pytestmark = pytest.mark.fast


def problem(n: int = 60, d: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, d, dtype=torch.float64, generator=generator)
    return centres[target] + torch.randn(n, d, dtype=torch.float64, generator=generator), target


def trained(head: nn.Linear, x: Tensor, y: Tensor, loss: nn.Module) -> float:
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(head(x), y)
        value.backward()
        return value

    optimizer.step(closure)
    return loss(head(x), y).item()


@pytest.mark.parametrize(("bias", "classes"), [(False, 4), (True, 4), (True, 2)])
def test_trained_head_reaches_the_objective_of_liblinear(bias: bool, classes: int) -> None:
    x, y = problem(classes=classes)
    head, exact = (nn.Linear(6, classes, bias=bias).double() for _ in range(2))
    mine = trained(head, x, y, L2SVM(C=20.0, last_layer=head, penalise_bias=True))
    refit_head(exact, x, y, C=20.0)
    theirs = L2SVM(C=20.0, last_layer=exact, penalise_bias=True)(exact(x), y).item()
    assert mine == pytest.approx(theirs, rel=1e-3)
    torch.testing.assert_close(head.weight, exact.weight, atol=1e-3, rtol=1e-2)


def test_refit_equals_linear_svc_itself() -> None:
    x, y = problem()
    machine = LinearSVC(C=5.0 / len(y), loss="squared_hinge", multi_class="ovr", dual="auto", tol=1e-8, max_iter=20000)
    machine.fit(x.numpy(), y.numpy())
    head = nn.Linear(6, 4).double()
    refit_head(head, x, y, C=5.0)
    torch.testing.assert_close(
        head(x).detach(), torch.as_tensor(machine.decision_function(x.numpy())), atol=1e-5, rtol=1e-5
    )
    assert (head(x).argmax(1).numpy() == machine.predict(x.numpy())).all()


def test_gradient_at_the_scores() -> None:
    scores, y = problem(d=4)
    scores.requires_grad_()
    L2SVM(C=3.0)(scores, y).backward()
    sign = 2.0 * nn.functional.one_hot(y, 4) - 1
    expected = -2 * 3.0 * sign * (1 - sign * scores.detach()).clamp(min=0) / len(y)
    torch.testing.assert_close(scores.grad, expected)
    beyond = sign * scores.detach() > 1
    assert beyond.any()
    assert torch.equal(scores.grad[beyond], torch.zeros(int(beyond.sum()), dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    scores, y = problem(n=6, d=4)
    scores.requires_grad_()
    head = nn.Linear(3, 4).double()
    assert torch.autograd.gradcheck(lambda s, w: L2SVM(2.0, kind=kind, last_layer=head)(s, y), (scores, head.weight))


def test_crammer_singer_is_torchs_multi_margin_loss_up_to_averaging() -> None:
    scores, y = problem(d=4)
    theirs = nn.MultiMarginLoss(p=2, reduction="none")(scores, y) * 4
    torch.testing.assert_close(hinge(scores, y, "crammer-singer"), theirs)


def test_hinge_by_loops() -> None:
    scores, y = problem(n=9, d=4)
    for kind, power in (("squared", 2), ("l1", 1)):
        expected = [
            sum(max(0.0, 1 - (1 if k == int(label) else -1) * float(s)) ** power for k, s in enumerate(row))
            for row, label in zip(scores, y, strict=True)
        ]
        torch.testing.assert_close(hinge(scores, y, kind), torch.tensor(expected, dtype=torch.float64))


def test_two_classes_with_one_score() -> None:
    scores = torch.tensor([0.5, -2.0, 3.0])
    y = torch.tensor([1, 0, 0])
    assert hinge(scores, y).tolist() == [0.25, 0.0, 16.0]
    both = torch.stack([-scores, scores], dim=1)
    torch.testing.assert_close(hinge(both, y), 2 * hinge(scores, y))


def test_only_the_last_layer_is_regularised_and_not_owned() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    loss = L2SVM(reg=2.0, last_layer=net[2])
    assert list(loss.parameters()) == []
    assert list(loss.state_dict()) == []
    loss.regularizer().backward()
    assert net[0].weight.grad is None
    torch.testing.assert_close(net[2].weight.grad, 2.0 * net[2].weight.detach())
    assert net[2].bias.grad is None


def test_class_weights() -> None:
    scores, y = problem(d=4)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(L2SVM(weight=weight)(scores, y), (weight[y] * hinge(scores, y)).mean())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"C": 0.0}, "C is 0.0"), ({"reg": -1.0}, "reg is -1.0"), ({"kind": "l3"}, "kind is 'l3'")],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        L2SVM(**settings)


def test_bad_labels_and_one_class() -> None:
    with pytest.raises(ValueError, match=r"the label 4; with 4 classes labels are 0 \.\. 3"):
        L2SVM()(torch.zeros(2, 4), torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="the label -1"):
        L2SVM()(torch.zeros(2), torch.tensor([0, -1]))
    with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
        L2SVM()(torch.zeros(2, 1), torch.tensor([0, 0]))
    with pytest.raises(TypeError, match=r"torch\.float32"):
        L2SVM()(torch.zeros(2, 4), torch.zeros(2))


def test_trains_on_the_bench_with_the_models_last_layer() -> None:
    data = open_dataset("breast-cancer").prepare(0)
    run = fit("cnn-svm(C=10.0)", data, 1, training=Training(epochs=5))
    head = last_layer(run.model)
    assert run.loss.regularizer().item() == pytest.approx(0.5 * head.weight.square().sum().item())
    assert accuracy(run.model, data.test) > 0.9


def test_example() -> None:
    assert doctest.testmod(cnn_svm).failed == 0


def test_one_label_a_row_is_asked_for() -> None:
    scores = torch.zeros(4, 3)
    for target in (torch.zeros(4, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"\(4, 3\) and .*one label a row"):
            hinge(scores, target)
    labels = torch.tensor([0, 2, 1, 0])
    assert torch.equal(hinge(scores, labels[:, None]), hinge(scores, labels))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_does_not_overflow(kind: str) -> None:
    scores, y = problem()
    low = (200 * scores[:, :4]).half().requires_grad_()
    high = low.detach().float().requires_grad_()
    L2SVM(kind=kind)(high, y).backward()
    found = hinge(low.detach(), y, kind)
    assert found.dtype == torch.float16
    value = L2SVM(kind=kind, C=1e-3)(low, y)
    assert torch.isfinite(value)
    value.backward()
    torch.testing.assert_close(low.grad.float(), 1e-3 * high.grad, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_label_are_left_out(kind: str) -> None:
    scores, y = problem()
    scores, y = scores[:, :4], y.clone()
    y[::4] = -100
    kept = y != -100
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0])
    for loss in (L2SVM(kind=kind), L2SVM(kind=kind, weight=weight)):
        torch.testing.assert_close(loss(scores, y), loss(scores[kept], y[kept]))
    with pytest.raises(ValueError, match="the label -1"):
        hinge(scores, torch.where(kept, y, -1), kind)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("present", [[0, 2], [3], [0, 1, 3]])
def test_a_refit_gives_classes_without_rows_their_optimum_too(present: list[int], bias: bool) -> None:
    x, y = problem(n=40)
    y = torch.tensor(present)[y % len(present)]
    head, exact = (nn.Linear(6, 4, bias=bias).double() for _ in range(2))
    with torch.no_grad():
        exact.weight.fill_(9.0)  # nothing of what was there may stay
    refit_head(exact, x, y, C=20.0, reg=0.5)
    trained(head, x, y, L2SVM(C=20.0, reg=0.5, last_layer=head, penalise_bias=True))
    torch.testing.assert_close(exact.weight, head.weight, atol=1e-3, rtol=1e-2)
    if bias:
        torch.testing.assert_close(exact.bias, head.bias, atol=1e-3, rtol=1e-2)


def test_what_cannot_be_refitted() -> None:
    head = nn.Linear(6, 4).double()
    x, y = problem(n=5)
    for rows, labels, settings in ((x[:0], y[:0], {}), (x, y, {"C": 0.0}), (x, y, {"reg": 0.0})):
        with pytest.raises(ValueError, match="a row or more and positive numbers"):
            refit_head(head, rows, labels, **settings)
    with pytest.raises(ValueError, match="the label -100"):
        refit_head(head, x, torch.full_like(y, -100))


def test_copies_look_at_the_layer_of_the_network_that_was_copied_with_them() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    loss = L2SVM(reg=2.0, last_layer=net[1])
    alone = copy.deepcopy(loss)
    (first, one), (two, second) = copy.deepcopy((net, loss)), copy.deepcopy((loss, net))
    again, three = copy.deepcopy((second, two))
    third, four = pickle.loads(pickle.dumps((net, loss)))
    gc.collect()
    for i, model in enumerate((net, first, second, again, third)):
        with torch.no_grad():
            model[1].weight.fill_(i + 1.0)
    assert [float(x.regularizer().detach()) for x in (loss, alone, one, two, three, four)] == [8, 8, 32, 72, 128, 200]
    assert copy.deepcopy(L2SVM()).regularizer() == 0.0


def test_the_norm_of_a_layer_in_half_precision_is_summed_in_float32() -> None:
    head = nn.Linear(300, 300).half()
    with torch.no_grad():
        head.weight.fill_(1.5)
        head.bias.fill_(100.0)
    loss = L2SVM(reg=1e-4, last_layer=head, penalise_bias=True)
    assert float(loss.regularizer().detach()) == pytest.approx(0.5e-4 * (300 * 300 * 2.25 + 300 * 1e4))
    value = loss(torch.zeros(2, 300, dtype=torch.float16), torch.tensor([0, 1]))
    assert (value.dtype, float(value.detach())) == (torch.float16, pytest.approx(460.125, rel=1e-3))
    value.backward()
    torch.testing.assert_close(head.weight.grad, torch.full_like(head.weight, 1.5e-4))


def test_one_score_is_of_two_classes() -> None:
    with pytest.raises(ValueError, match=r"the label 2; with 2 classes"):
        hinge(torch.zeros(3), torch.tensor([0, 1, 2]))
    ignored = hinge(torch.tensor([0.5, 0.5]), torch.tensor([-100, 0]))
    assert ignored.tolist() == [0.0, 2.25]
