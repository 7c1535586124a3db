"""SSA: gathered attention against masked dense attention, draws, phases of training, self-ensembles."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from probatum.kinds.language.network import Decoder
from probatum.numerics.attention.causal import CausalMixing, CausalSelfAttention
from probatum.spec import Spec
from probatum.techniques.method.ssa import (
    SubsampledAttention,
    SubsampledMixing,
    attend_in_windows,
    attend_to,
    draw_sources,
    draw_windows,
    score_cost,
    self_ensemble,
)

pytestmark = pytest.mark.fast

SPEC = Spec("text", "next-token", (12,), 20, vocabulary=20)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def qkv(t: int = 11) -> list[torch.Tensor]:
    return [draw(2, 3, t, 4, seed=seed) for seed in range(3)]


def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
    """Dense attention whose other scores are minus infinity; sees (t, t)."""
    t = q.shape[2]
    sees = (sees | torch.eye(t, dtype=torch.bool)) & torch.ones(t, t, dtype=torch.bool).tril()
    scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).masked_fill(~sees, float("-inf"))
    return scores.softmax(-1) @ v


def net(seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(SPEC, width=16, depth=3, heads=2)


@pytest.mark.parametrize("sources", [[0], [10], [2, 3, 7], list(range(11))])
def test_gathered_sources_equal_masked_dense_attention(sources: list[int]) -> None:
    q, k, v = qkv()
    chosen = torch.tensor(sources)
    sees = torch.zeros(11, 11, dtype=torch.bool)
    sees[:, chosen] = True
    torch.testing.assert_close(attend_to(q, k, v, chosen), masked(q, k, v, sees))


@pytest.mark.parametrize("ratio", [1.5, 3.0, 4.0, 11.0])
def test_windows_equal_masked_dense_attention(ratio: float) -> None:
    q, k, v = qkv()
    windows = draw_windows(11, ratio, seeded())
    size = windows.shape[1]
    assert size == math.ceil(11 / ratio)
    assert sorted(windows[windows >= 0].tolist()) == list(range(11))
    sees = torch.zeros(11, 11, dtype=torch.bool)
    for i in range(11):
        sees[i, [j for j in windows[i // size].tolist() if j >= 0]] = True
    torch.testing.assert_close(attend_in_windows(q, k, v, windows), masked(q, k, v, sees))


def test_all_sources_are_dense_attention() -> None:
    q, k, v = qkv()
    dense = CausalMixing()(q, k, v)
    torch.testing.assert_close(attend_to(q, k, v, torch.arange(11)), dense, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(attend_in_windows(q, k, v, torch.arange(11)[None]), dense, rtol=1e-6, atol=1e-6)
    assert torch.equal(SubsampledMixing(CausalMixing(), 1.0, "uniform", seeded()).train()(q, k, v), dense)


def test_dropped_tokens_do_not_matter_and_gradients_are_right() -> None:
    q, k, v = qkv(6)
    chosen = torch.tensor([1, 3])
    other_k, other_v = k.clone(), v.clone()
    other_k[:, :, [0, 2, 4]] += 5
    other_v[:, :, [0, 2, 4]] -= 5
    found, moved = attend_to(q, k, v, chosen), attend_to(q, other_k, other_v, chosen)
    torch.testing.assert_close(found[:, :, [1, 3, 5]], moved[:, :, [1, 3, 5]])
    assert not torch.allclose(found[:, :, [0, 2, 4]], moved[:, :, [0, 2, 4]])
    parts = [part[:1, :1].requires_grad_() for part in qkv(5)]
    assert torch.autograd.gradcheck(lambda *x: attend_to(*x, chosen), parts)
    assert torch.autograd.gradcheck(lambda *x: attend_in_windows(*x, draw_windows(5, 2.0, seeded())), parts)


def test_uniform_draws() -> None:
    generator = seeded()
    counts = torch.zeros(12)
    for _ in range(3000):
        drawn = draw_sources(12, 4.0, generator)
        assert len(set(drawn.tolist())) == 3
        counts[drawn] += 1
    assert float((counts / 3000 - 0.25).abs().max()) < 4 * math.sqrt(0.25 * 0.75 / 3000)
    for _ in range(20):
        assert draw_sources(12, 4.0, generator, keep=2)[:2].tolist() == [0, 1]
    assert draw_sources(12, 12.0, generator).shape == (1,)
    assert draw_sources(12, 1.0, generator).tolist() == list(range(12))


def test_local_draws_meet_near_tokens_more_often_than_far_ones() -> None:
    generator, met = seeded(), torch.zeros(64, 64)
    for _ in range(300):
        windows = draw_windows(64, 4.0, generator)
        for i in range(64):
            met[i, windows[i // 16]] += 1 / 300
    distance = (torch.arange(64)[:, None] - torch.arange(64)).abs()
    near, far = met[distance <= 4].mean(), met[(distance > 16) & (distance <= 28)].mean()
    assert float(near) > 0.6
    assert 0 < float(far) < 0.2
    assert torch.equal(draw_windows(64, 4.0, generator, reach=0.0).flatten(), torch.arange(64))


def test_layers_draw_on_their_own_and_evaluation_is_dense() -> None:
    model, x = net(), torch.arange(12)[None]
    plain = copy.deepcopy(model).eval()(x)
    seen: list[torch.Tensor] = []
    ssa = SubsampledAttention(ratio=3.0, generator=seeded()).attach(model)
    for block in model.blocks:
        mixing = block.attention.attend
        mixing.register_forward_hook(lambda module, given, out: seen.append(module.generator.get_state()))
    assert torch.equal(model.eval()(x), plain)
    first, second = model.train()(x), model(x)
    assert not torch.equal(first, second)
    assert len({tuple(state.tolist()) for state in seen[3:6]}) == 3
    ssa.detach()
    assert torch.equal(model(x), plain)
    assert all(type(block.attention.attend) is CausalMixing for block in model.blocks)


def test_phases() -> None:
    ssa = SubsampledAttention(ratio=4.0, dense_share=0.25, total_steps=100)
    assert [ssa.ratio_at(step) for step in (0, 74, 75, 99)] == [4.0, 4.0, 1.0, 1.0]
    falling = SubsampledAttention(ratio=4.0, dense_share=0.5, schedule="linear", total_steps=100)
    assert [falling.ratio_at(step) for step in (0, 25, 50)] == [4.0, 2.5, 1.0]
    assert SubsampledAttention(ratio=4.0).ratio_at(10**9) == 4.0
    assert score_cost(128, 1.0) == 1.0
    assert 1 / score_cost(128, 4.0) > 3


def test_as_a_method_it_counts_its_work_and_resumes() -> None:
    model = net()
    ssa = SubsampledAttention(3.0, dense_share=0.5, spec=SPEC, total_steps=4, generator=seeded())
    run = type("Run", (), {"model": model})()
    ssa.prepare(run)
    mixing = model.blocks[0].attention.attend
    ratios = []
    for _ in range(4):
        ratios.append(mixing.ratio)
        ssa.step_end(run)
    assert ratios == [3.0, 3.0, 1.0, 1.0]
    assert ssa.report() == {"ssa: attention scores over dense ones": pytest.approx((2 * 5 / 12 + 2) / 4)}
    again = SubsampledAttention(3.0, dense_share=0.5, spec=SPEC, total_steps=4)
    again.load_state_dict(ssa.state_dict())
    assert again.ratio_at(again.step) == 1.0
    assert torch.equal(draw_sources(12, 3.0, again.generator), draw_sources(12, 3.0, ssa.generator))


def test_self_ensemble_is_the_mean_of_its_passes() -> None:
    model, x = net().train(), torch.arange(24).view(2, 12) % 20
    mean, spread = self_ensemble(model, x, passes=5, ratio=3.0, generator=seeded(1))
    assert model.training
    assert all(type(block.attention.attend) is CausalMixing for block in model.blocks)
    ssa = SubsampledAttention(3.0, generator=seeded(1)).attach(model)
    found = torch.stack([model(x).softmax(-1) for _ in range(5)]).detach()
    ssa.detach()
    torch.testing.assert_close(mean, found.mean(0))
    torch.testing.assert_close(spread, found.double().std(0, correction=0).float(), atol=1e-9, rtol=1e-5)
    dense, none = self_ensemble(model, x, passes=2, ratio=1.0, read=lambda output: output)
    torch.testing.assert_close(dense, model(x).detach())
    assert float(none.max()) == 0.0


@pytest.mark.parametrize(("kind", "keep", "reach"), [("local", 0, 1.5), ("uniform", 0, 0.5), ("uniform", 3, 0.5)])
def test_self_ensembles_take_every_setting(kind: str, keep: int, reach: float) -> None:
    model, x = net().eval(), torch.arange(24).view(2, 12) % 20
    mean, spread = self_ensemble(
        model, x, 3, 4.0, kind, reach, generator=seeded(1), read=lambda output: 3000 + output, keep=keep
    )
    own, found = seeded(1), []
    ssa = SubsampledAttention(4.0, kind, reach=reach, keep=keep, generator=own).attach(model)
    for mixing in ssa.mixings:
        mixing.active = True
    for _ in range(3):
        found.append(model(x).detach())
    ssa.detach()
    values = torch.stack([3000 + one for one in found]).double()
    torch.testing.assert_close(mean, values.mean(0).float())
    # an offset costs the spread no digits: a sum of squares would be off by some tenths here
    torch.testing.assert_close(spread, values.std(0, correction=0).float(), atol=1e-9, rtol=1e-5)
    assert len({float(one.double().sum()) for one in found}) == 3


def test_the_kinds_draw_differently() -> None:
    model, x = net().eval(), torch.arange(24).view(2, 12) % 20
    assert not torch.equal(self_ensemble(model, x, 2, 4.0, "local")[0], self_ensemble(model, x, 2, 4.0, "uniform")[0])
    means = [self_ensemble(model, x, 2, 4.0, "uniform", keep=keep)[0] for keep in (0, 3)]
    assert not torch.equal(*means)


def test_self_ensembles_in_half_precision_are_summed_in_float32() -> None:
    model, x = nn.Sequential(CausalSelfAttention(16, 4)).bfloat16(), draw(2, 8, 16).bfloat16()
    found = []
    mean, spread = self_ensemble(
        model, x, 40, 2.0, generator=seeded(1), read=lambda output: (found.append(output.clone()), output)[1]
    )
    values = torch.stack(found).float()
    assert mean.dtype == spread.dtype == torch.bfloat16
    torch.testing.assert_close(mean, values.mean(0).bfloat16(), atol=1e-6, rtol=1e-2)
    torch.testing.assert_close(spread, values.std(0, correction=0).bfloat16(), atol=1e-6, rtol=1e-2)


def test_misuse() -> None:
    for settings, told in (
        ({"ratio": 0.5}, r"ratio is 0.5; it must lie in \[1, 12\]"),
        ({"ratio": 13.0}, r"ratio is 13.0; it must lie in \[1, 12\]"),
        ({"dense_share": 1.5}, "dense_share is 1.5"),
        ({"reach": -1.0}, "reach is -1.0"),
        ({"keep": 12}, "keep is 12"),
        ({"kind": "far"}, "kind is 'far'"),
        ({"schedule": "steep"}, "schedule is 'steep'"),
    ):
        with pytest.raises(ValueError, match=told):
            SubsampledAttention(spec=SPEC, **settings)
    model = net().train()
    SubsampledAttention(13.0).attach(model)
    with pytest.raises(ValueError, match=r"ratio is 13\.0 for 12 tokens"):
        model(torch.arange(12)[None])
    with pytest.raises(TypeError, match="Linear has no attention that can be subsampled"):
        SubsampledAttention().attach(nn.Linear(3, 2))
    ssa = SubsampledAttention().attach(nn.Sequential(CausalSelfAttention(8, 2)))
    with pytest.raises(ValueError, match="already attached"):
        ssa.attach(nn.Sequential(CausalSelfAttention(8, 2)))
    with pytest.raises(ValueError, match="passes is 0"):
        self_ensemble(net(), torch.arange(12)[None], passes=0)


def test_one_mixing_in_two_places_is_subsampled_in_both_and_given_back() -> None:
    model = nn.Sequential(CausalSelfAttention(16, 4), CausalSelfAttention(16, 4))
    model[1].attend = dense = model[0].attend
    method = SubsampledAttention(2.0).attach(model)
    assert model[0].attend is model[1].attend is not dense
    copied, x = copy.deepcopy(model), draw(2, 8, 16).float()
    torch.testing.assert_close(copied.eval()(x), model.eval()(x))
    method.detach()
    assert model[0].attend is model[1].attend is dense


def test_a_self_ensemble_leaves_every_mode_after_an_exception() -> None:
    model = nn.Sequential(CausalSelfAttention(16, 4), nn.Dropout(0.1)).train()
    model[1].eval()
    with pytest.raises(RuntimeError):
        self_ensemble(model, torch.zeros(2, 8, 3), passes=2)
    assert [m.training for m in model] == [True, False]
    assert type(model[0].attend) is CausalMixing


@pytest.mark.parametrize("kind", ["uniform", "local"])
def test_draws_in_a_recomputed_pass_are_refused(kind: str) -> None:
    model = nn.Sequential(CausalSelfAttention(16, 4))
    method = SubsampledAttention(3.0, kind).attach(model)
    found = checkpoint(model, torch.randn(2, 12, 16), use_reentrant=False)
    with pytest.raises(RuntimeError, match="activation checkpointing"):
        found.sum().backward()
    method.detach()
    checkpoint(model, torch.randn(2, 12, 16), use_reentrant=False).sum().backward()


def test_local_windows_keep_no_tokens() -> None:
    with pytest.raises(ValueError, match=r"keep is 2, but local windows .* kind='uniform'"):
        SubsampledAttention(3.0, keep=2)


def test_copies_draw_as_the_original_would_and_leave_it_alone() -> None:
    model = nn.Sequential(CausalSelfAttention(16, 4), nn.Linear(16, 2)).train()
    ssa, rows = SubsampledAttention(2.0, generator=seeded()).attach(model), draw(2, 8, 16).float()
    copies = [copy.deepcopy((ssa, model)), pickle.loads(pickle.dumps((ssa, model)))]
    dense, first, second = model.eval()(rows), model.train()(rows), model(rows)
    for own, copied in copies:
        assert torch.equal(copied.train()(rows), first)
        assert torch.equal(copied(rows), second)
        own.detach()
        torch.testing.assert_close(copied(rows), dense)
        with torch.no_grad():
            copied[1].weight.zero_()
    assert type(model[0].attend) is SubsampledMixing
    assert torch.equal(model.eval()(rows), dense)
