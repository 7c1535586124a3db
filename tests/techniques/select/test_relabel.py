"""Re-label: suspects by brute force, the cycle with somebody who knows, other tasks' disagreements, misuse."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

from probatum.numerics.labels.annotators import SimulatedAnnotator
from probatum.techniques.select import relabel
from probatum.techniques.select.relabel import (
    boxes_differ,
    clean,
    find_suspects,
    predict,
    rates_differ,
    residual_noise,
    score,
    tags_differ,
    texts_differ,
)

pytestmark = pytest.mark.fast


def problem(n: int = 120) -> tuple[Tensor, Tensor, Tensor]:
    """Three well-kept classes; rows, truth, and labels of which every fifth is wrong."""
    own = torch.Generator().manual_seed(0)
    truth = torch.arange(n) % 3
    x = nn.functional.one_hot(truth, 3).float() * 4 + torch.randn(n, 3, generator=own)
    y = truth.clone()
    y[::5] = (y[::5] + 1) % 3
    return x, truth, y


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 3)


def test_suspects_by_brute_force_and_sklearn() -> None:
    p = torch.randn(60, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(dim=1)
    y = torch.arange(60) % 4
    found = find_suspects(p, y)
    expected = sorted(
        (i for i in range(60) if int(p[i].argmax()) != int(y[i])), key=lambda i: float(p[i, y[i]] - p[i].max())
    )
    assert found.rows.tolist() == expected
    matrix = confusion_matrix(y.numpy(), p.argmax(dim=1).numpy())
    assert len(found.rows) == matrix.sum() - matrix.trace()
    assert torch.equal(find_suspects(p, y, budget=5).rows, found.rows[:5])
    assert len(find_suspects(p, p.argmax(dim=1)).rows) == 0


def test_score_is_the_margin_of_the_label() -> None:
    x, _, y = problem()
    own = {"folds": 3, "steps": 30, "lr": 0.05}
    p = predict(net, x, y, torch.Generator().manual_seed(2), **own)
    found = score(net, x, y, torch.Generator().manual_seed(2), **own)
    for i in range(0, 120, 17):
        others = [float(p[i, c]) for c in range(3) if c != int(y[i])]
        assert float(found[i]) == pytest.approx(float(p[i, y[i]]) - max(others), abs=1e-6)
    suspects = set(find_suspects(p, y).rows.tolist())
    assert suspects == set((found < 0).nonzero().squeeze(1).tolist())


def test_out_of_fold_networks_never_see_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, y = problem(30)
    x = torch.cat([x, torch.arange(30.0)[:, None]], dim=1)
    trained: list[set[float]] = []
    asked: list[set[float]] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, rows: Tensor) -> Tensor:
            if not self.training:
                asked.append(set(rows[:, 3].tolist()))
            return self.head(rows)

    def fit(model: nn.Module, rows: Tensor, labels: Tensor, *rest: object) -> nn.Module:
        trained.append(set(rows[:, 3].tolist()))
        return model.eval()

    monkeypatch.setattr(relabel, "fit_network", fit)
    predict(Spy, x, y, torch.Generator().manual_seed(0), folds=5)
    assert len(trained) == len(asked) == 5
    assert all(not (a & b) for a, b in zip(trained, asked, strict=True))
    assert [len(a) for a in trained] == [24] * 5  # all rows but one fold's
    assert set.union(*asked) == set(range(30))
    trained.clear()
    asked.clear()
    predict(Spy, x, y, torch.Generator().manual_seed(0), folds=1)
    assert trained == asked == [set(range(30))]


def test_the_cycle_corrects_what_it_flags_and_nothing_else() -> None:
    x, truth, y = problem()
    before = y.clone()
    oracle = SimulatedAnnotator(truth, 3, torch.Generator())
    found = clean(net, x, y, oracle, torch.Generator().manual_seed(0), rounds=2, steps=60, lr=0.05)
    assert torch.equal(y, before)
    changed = {change.row for change in found.log}
    for change in found.log:
        assert int(found.y[change.row]) == int(truth[change.row]) == change.after
        assert int(y[change.row]) == change.before
    untouched = torch.tensor([i for i in range(120) if i not in changed])
    assert torch.equal(found.y[untouched], y[untouched])
    assert len(changed) == len(found.log) == oracle.asked  # nobody is asked twice
    assert float((found.y != truth).float().mean()) < 0.25 * float((y != truth).float().mean())


def test_the_budget_is_kept() -> None:
    x, truth, y = problem()
    oracle = SimulatedAnnotator(truth, 3, torch.Generator())
    found = clean(net, x, y, oracle, torch.Generator(), rounds=2, budget=7, steps=60, lr=0.05)
    assert oracle.asked == len(found.log) == 7
    assert sum(change.round == 0 for change in found.log) == 4


def test_residual_noise_of_a_whole_sample_is_exact() -> None:
    _, truth, y = problem()
    found = residual_noise(y, SimulatedAnnotator(truth, 3, torch.Generator()), 120, torch.Generator())
    assert found.share == pytest.approx(0.2)
    assert found.low < 0.2 < found.high


def test_disagreement_of_other_tasks() -> None:
    assert tags_differ([{(0, 1, "PER")}, set()], [{(0, 1, "PER")}, {(2, 3, "LOC")}]) == [1]
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 7.0, 7.0]])
    classes = torch.tensor([0, 1])
    assert not boxes_differ(boxes.flip(0), classes.flip(0), boxes, classes)
    assert boxes_differ(boxes, classes.flip(0), boxes, classes)  # right places, wrong classes
    assert boxes_differ(boxes[:1], classes[:1], boxes, classes)
    assert boxes_differ(boxes + 1.5, classes, boxes, classes)
    bleu = pytest.importorskip("torchmetrics.functional.text").bleu_score

    def alike(a: str, b: str) -> float:
        return float(bleu([a], [[b]], n_gram=2))

    assert texts_differ(["the cat sat", "a dog ran off"], ["the cat sat", "no match at all"], alike, 0.5) == [1]
    assert rates_differ(torch.tensor([0.9, 0.1, 0.2]), torch.tensor([0.0, 0.0, 1.0])).tolist() == [0, 2]


def test_misuse() -> None:
    x, truth, y = problem()
    y[4], y[9] = 7, -1
    with pytest.raises(ValueError, match="2 labels lie outside 0 to 2: row 4: 7, row 9: -1"):
        find_suspects(torch.ones(120, 3) / 3, y)
    broken = torch.ones(120, 3) / 3
    broken[7, 1] = float("nan")
    with pytest.raises(ValueError, match="probabilities of 1 rows are not finite, row 7 first"):
        find_suspects(broken, truth)
    with pytest.raises(ValueError, match="not finite"):
        predict(net, x * 1e20, truth, torch.Generator(), folds=2, steps=2, lr=1e30)
    with pytest.raises(ValueError, match="folds is 80, but there are 120 rows"):
        predict(net, x, truth, torch.Generator(), folds=80)
    for size, refused in ((1, True), (2, False)):
        if refused:
            with pytest.raises(ValueError, match="batch_size is 1"):
                predict(net, x, truth, torch.Generator(), batch_size=size)
        else:
            assert len(predict(net, x[:8], truth[:8], torch.Generator(), folds=2, steps=1, batch_size=size)) == 8
    for differ in (tags_differ, lambda a, b: texts_differ(a, b, lambda *_: 1.0, 0.5)):
        with pytest.raises(ValueError, match="zip"):
            differ(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="budget is -1"):
        find_suspects(torch.ones(120, 3) / 3, truth, budget=-1)
    with pytest.raises(ValueError, match="gave \\(1,\\) answers"):
        clean(net, x, problem()[2], lambda rows, labels, shown: rows[:1] * 0, torch.Generator(), steps=60, lr=0.05)
