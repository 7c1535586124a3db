"""h-calibration against brute force, closed forms and netcal."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from probatum.numerics.calibration.temperature import fit_temperature
from probatum.techniques.posthoc.h_calibration.h_calibration import (
    CALIBRATORS,
    WEIGHTINGS,
    HCalibration,
    cluster_edges,
    h_calibration_loss,
    weighted_error,
    window_errors,
)

D = torch.float64


def sample(n: int = 400, classes: int = 4, sharp: float = 4.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    honest = 1.5 * torch.randn(n, classes, dtype=D, generator=generator)
    return sharp * honest, torch.multinomial(honest.softmax(1), 1, generator=generator).squeeze(1)


def test_window_errors_by_hand() -> None:
    p = torch.tensor([0.1, 0.2, 0.4, 0.7, 0.9], dtype=D)
    o = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0], dtype=D)
    d = p - o  # .1 -.8 .4 -.3 -.1
    first, second, third = abs(d[:3].mean()), abs(d[1:4].mean()), abs(d[2:].mean())
    torch.testing.assert_close(window_errors(p, o, 2), torch.stack([first, first, second, third, third]))
    ends = abs(d[:2].sum()) / 3, abs(d[3:].sum()) / 3
    torch.testing.assert_close(window_errors(p, o, 2, "zero"), torch.stack([ends[0], first, second, third, ends[1]]))


def test_window_over_everything_is_the_difference_of_means() -> None:
    logits, target = sample(30, 3)
    p = logits.softmax(1)
    loss = h_calibration_loss(p, target, window=89, leave_out=False, weighting="mean", scale=1.0)
    assert float(loss) == pytest.approx(abs(float(p.mean()) - 1 / 3), abs=1e-12)
    kept = target != 1  # leave-one-out sets have other means; look at one of them by brute force
    o = torch.nn.functional.one_hot(target[kept], 3).to(D)
    flat, rank = p[kept].flatten().sort()
    errors = window_errors(flat, o.flatten()[rank], len(flat) - 1)
    torch.testing.assert_close(errors, (p[kept].mean() - o.mean()).abs().expand_as(errors))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_order_of_the_rows_does_not_matter(weighting: str) -> None:
    logits, target = sample()
    p = logits.softmax(1).round(decimals=2)  # many ties
    shuffled = torch.randperm(len(p), generator=torch.Generator().manual_seed(1))
    ours = h_calibration_loss(p, target, window=50, weighting=weighting)
    other = h_calibration_loss(p[shuffled], target[shuffled], window=50, weighting=weighting)
    torch.testing.assert_close(ours, other, rtol=1e-9, atol=0)


def test_leaving_out_a_class_is_the_mean_over_filtered_sets() -> None:
    logits, target = sample(200, 3)
    p = logits.softmax(1)
    whole = h_calibration_loss(p, target, window=40)
    one_by_one = [h_calibration_loss(p[target != c], target[target != c], window=40, leave_out=False) for c in range(3)]
    torch.testing.assert_close(whole, torch.stack(one_by_one).mean())


def test_honest_probabilities_err_by_the_root_of_the_window() -> None:
    generator = torch.Generator().manual_seed(5)
    p = torch.rand(200_000, dtype=D, generator=generator).sort().values
    o = torch.bernoulli(p, generator=generator)
    means = [float(window_errors(p, o, m).mean()) * math.sqrt(m) for m in (100, 400, 1600)]
    # E|mean(p - o)| = sqrt(2 / pi) * E sqrt(p (1 - p)) / sqrt(m) with E sqrt(p (1 - p)) = pi / 8
    assert means == pytest.approx([math.sqrt(2 / math.pi) * math.pi / 8] * 3, rel=0.06)


def test_clusters_are_a_fixed_point_of_lloyd() -> None:
    drawn = torch.rand(550, dtype=D, generator=torch.Generator().manual_seed(3))
    p = torch.cat([drawn[:500] ** 8, drawn[500:]]).sort().values
    edges = cluster_edges(p, 6, rounds=500)
    centres = torch.stack([p[a:b].mean() for a, b in itertools.pairwise(edges)])
    nearest = (p[:, None] - centres).abs().argmin(1)
    assert torch.equal(nearest.bincount(minlength=6), edges.diff())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_gradient(weighting: str) -> None:
    logits, target = sample(25, 3, sharp=1.0)
    scale = torch.tensor(1.3, dtype=D, requires_grad=True)

    def loss(s: torch.Tensor) -> torch.Tensor:
        return h_calibration_loss((s * logits).softmax(1), target, window=10, weighting=weighting, scale=1.0)

    # "density" weighs by gaps that are held fixed, so finite differences see more than the gradient does
    if weighting == "density":
        loss(scale).backward()
        assert math.isfinite(float(scale.grad))
    else:
        assert torch.autograd.gradcheck(loss, (scale,))


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_fitted_map_lowers_the_loss_and_keeps_the_order(calibrator: str) -> None:
    logits, target = sample(400, 5)
    calibrate = HCalibration(calibrator, window=60, steps=25, lr=0.08).fit(logits, target)
    p = calibrate(logits)
    torch.testing.assert_close(p.sum(1), torch.ones(400, dtype=D))
    assert torch.equal(p.argsort(dim=1, stable=True), logits.argsort(dim=1, stable=True))
    assert float(calibrate.objective(p, target)) == pytest.approx(calibrate.best, rel=1e-9)
    assert calibrate.best < 0.5 * float(calibrate.objective(logits.softmax(1), target))
    outside, _ = sample(3000, 5, sharp=40.0, seed=9)  # far beyond the range seen in fit
    assert torch.equal(calibrate(outside.float()).argmax(1), outside.argmax(1))


@pytest.mark.filterwarnings("ignore")  # netcal and pyro warn of their own future
def test_temperature_agrees_with_maximum_likelihood_and_netcal() -> None:
    logits, target = sample(4000, 4)
    ours = math.exp(-float(HCalibration(steps=50, lr=0.1).fit(logits, target).map.log_scale))
    assert ours == pytest.approx(fit_temperature(logits, target), rel=0.05)
    netcal = pytest.importorskip("netcal.scaling", reason="netcal is the witness")
    theirs = netcal.TemperatureScaling()
    theirs.fit(logits.softmax(1).numpy(), target.numpy(), random_state=0)
    likelihood = torch.from_numpy(theirs.transform(logits[:5].softmax(1).numpy()))
    torch.testing.assert_close((logits[:5] / ours).softmax(1), likelihood.to(D), atol=0.05, rtol=0)


def test_neutral_is_softmax_bit_for_bit() -> None:
    logits, target = sample(100)
    small = logits.float()
    assert torch.equal(HCalibration(steps=0).fit(small, target)(small), small.softmax(1))


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_state_travels_to_a_map_that_was_never_fitted(calibrator: str) -> None:
    logits, target = sample(100)
    small = logits.float()
    fitted = HCalibration(calibrator, window=30, steps=5).fit(small, target)
    other = HCalibration(calibrator)
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(other(small), fitted(small))


def test_works_without_gradients_and_leaves_the_inputs() -> None:
    logits, target = sample(100)
    before = logits.clone()
    with torch.no_grad():
        HCalibration(window=30, steps=2).fit(logits, target)
    assert torch.equal(before, logits)


def test_bad_input() -> None:
    logits, target = sample(20, 3)
    with pytest.raises(ValueError, match=r"rows are probabilities"):
        HCalibration(window=10).fit(logits.softmax(1), target)
    with pytest.raises(ValueError, match=r"20 rows x 3 classes = 60 events .* 201"):
        HCalibration().fit(logits, target)
    with pytest.raises(ValueError, match="calibrator is 'isotonic'"):
        HCalibration("isotonic")
    with pytest.raises(ValueError, match="window is 0"):
        HCalibration(window=0)
    with pytest.raises(ValueError, match="not finite"):
        HCalibration(window=10).fit(logits / 0.0, target)
    with pytest.raises(ValueError, match=r"logits \(0, 3\) .* n > 0"):
        HCalibration().fit(logits[:0], target[:0])
    with pytest.raises(ValueError, match="one label a row"):
        HCalibration(window=10).fit(logits, target[:5])


def test_labels_in_a_column_missing_and_outside() -> None:
    logits, target = sample(60, 3)
    settings = {"window": 10, "steps": 3}
    expected = HCalibration(**settings).fit(logits[:40], target[:40])(logits)
    assert torch.equal(HCalibration(**settings).fit(logits[:40], target[:40, None])(logits), expected)
    missing = torch.cat([target[:40], torch.full((20,), -100)])
    assert torch.equal(HCalibration(**settings).fit(logits, missing)(logits), expected)
    with pytest.raises(ValueError, match="the label 3"):
        HCalibration(**settings).fit(logits, target + 1)
    found = HCalibration(**settings).fit(logits[:40], target[:40])(logits.bfloat16())
    assert found.dtype == torch.bfloat16


def test_weightings_by_hand() -> None:
    error = torch.tensor([0.4, 0.1, 0.3, 0.2, 0.8], dtype=D)
    p = torch.tensor([0.05, 0.1, 0.45, 0.6, 0.95], dtype=D)
    top = torch.tensor([0.45, 0.95, 0.97, 0.99], dtype=D)
    found = {w: float(weighted_error(error, p, top, w, 2)) for w in WEIGHTINGS}
    halves = (0.4 + 0.1 + 0.3) / 3, (0.2 + 0.8) / 2
    assert found["mean"] == pytest.approx(1.8 / 5)
    assert found["clusters"] == pytest.approx(sum(halves) / 2)  # two means: 0.05 0.1 0.45 | 0.6 0.95
    assert found["ace"] == pytest.approx(sum(halves) / 2)
    assert found["ece"] == pytest.approx(halves[0] / 4 + halves[1] * 3 / 4)
    reach = [0.1 - 0.0, 0.45 - 0.05, 0.6 - 0.1, 0.95 - 0.45, 1.0 - 0.6]
    assert found["density"] == pytest.approx(sum(e * r / 2 for e, r in zip(error.tolist(), reach, strict=True)))
    thirds = [float(weighted_error(error, p, top, w, 3)) for w in ("ace", "ece")]
    in_thirds = (0.4 + 0.1) / 2, (0.3 + 0.2) / 2, 0.8
    assert thirds == pytest.approx([sum(in_thirds) / 3, in_thirds[1] / 4 + in_thirds[2] * 3 / 4])
    assert float(weighted_error(error, p, top, "ace", 10)) == pytest.approx((0.4 + 0.1 + 0.3 + 0.2 + 0.8) / 5)


def test_loss_by_loops_with_ties_tolerance_and_a_class_left_out() -> None:
    logits, target = sample(12, 3, sharp=1.0)
    p = logits.softmax(1).round(decimals=1)
    found = h_calibration_loss(p, target, window=4, tolerance=0.05, weighting="mean", scale=7.0)
    losses = []
    for left in target.unique().tolist():
        events = [(float(p[i, c]), float(target[i] == c)) for i in range(12) for c in range(3) if target[i] != left]
        shared = {v: sum(o for u, o in events if u == v) / sum(u == v for u, _ in events) for v, _ in events}
        ordered = sorted(v for v, _ in events)
        gaps = [v - shared[v] for v in ordered]
        starts = [min(max(i - 2, 0), len(gaps) - 5) for i in range(len(gaps))]
        losses.append(sum(max(0.0, abs(sum(gaps[s : s + 5]) / 5) - 0.05) for s in starts) / len(gaps))
    assert float(found) == pytest.approx(7 * sum(losses) / len(losses))


def test_sets_smaller_than_the_window_take_one_window() -> None:
    logits, target = sample(10, 3)
    target[:9] = 0
    target[9] = 1
    p = logits.softmax(1)
    found = h_calibration_loss(p, target, window=25, weighting="mean", scale=1.0)
    o = torch.nn.functional.one_hot(target, 3).to(D)
    left = float((p[9:].mean() - o[9:].mean()).abs())  # without class 0 there are three events
    events, rank = p[:9].flatten().sort()
    rest = window_errors(events, o[:9].flatten()[rank], 25).mean()
    assert float(found) == pytest.approx((left + float(rest)) / 2)


def test_settings_at_their_ends_and_what_fit_looks_at() -> None:
    logits, target = sample(400, 3)
    HCalibration(window=1, clusters=1, steps=1).fit(logits, target)
    start = h_calibration_loss(logits.softmax(1), target, window=100)
    once = HCalibration(window=100, steps=1, lr=0.1).fit(logits.requires_grad_(), target)
    assert abs(float(once.map.log_scale)) == pytest.approx(0.1, rel=1e-6)  # one step of Adam, and it was better
    assert once.best < float(start)
    assert not any(p.requires_grad for p in once.parameters())
    flat = HCalibration("piecewise", window=10, steps=0).fit(0.001 * logits.detach(), target)
    assert float(flat.map.knots[-1]) == pytest.approx(math.log(3), rel=0.02)  # of even probabilities
    two = HCalibration("piecewise", window=10, steps=0).fit(0.001 * logits[:, :2].detach(), target % 2)
    assert float(two.map.knots[-1]) == 1.0  # at least so far
    deep = HCalibration("piecewise", window=10, steps=0).fit(logits.detach(), target)
    assert float(deep.map.knots[-1]) == pytest.approx(-logits.log_softmax(1).min().item())
