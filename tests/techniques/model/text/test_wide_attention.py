"""Wide attention: head counts, parameter formula, each kind of attention by loops, padding, costs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from probatum.claims.model.text.wide_attention import evaluate, list_operations, sentence
from probatum.spec import Spec
from probatum.techniques.model.text import wide_attention
from probatum.techniques.model.text.wide_attention import (
    KINDS,
    Aspect,
    Mixing,
    WideTransformer,
    aspects,
    build,
    compare,
    kept_for_backward,
    latency,
    visible,
    widen,
)

pytestmark = pytest.mark.fast


def text(kind: str = "softmax", aspect: Aspect | None = None, **settings: object) -> WideTransformer:
    torch.manual_seed(0)
    aspect = aspect or Aspect(2, 3, width=12, head_size=4, hidden=20)
    return WideTransformer(aspect, vocabulary=30, outputs=3, length=9, kind=kind, window=2, **settings).eval()


IDS = torch.tensor([[5, 7, 2, 9, 4, 6, 3, 8], [3, 8, 11, 2, 0, 0, 0, 0]])


def test_layouts_keep_the_heads_and_all_other_sizes() -> None:
    deep = Aspect(6, 4, width=10, head_size=3, hidden=7)
    found = aspects(deep)
    assert [(a.layers, a.heads) for a in found] == [(1, 24), (2, 12), (3, 8), (4, 6), (6, 4), (8, 3), (12, 2), (24, 1)]
    assert {(a.total_heads, a.width, a.head_size, a.hidden) for a in found} == {(24, 10, 3, 7)}
    assert widen(deep, 6) == deep
    single = Aspect(1, 24, width=10)
    assert widen(single) == single


@pytest.mark.parametrize("layers", [1, 2, 6])
def test_parameter_formula_is_the_count(layers: int) -> None:
    aspect = widen(Aspect(6, 4, width=10, head_size=3, hidden=7), layers)
    blocks = text(aspect=aspect).blocks
    assert aspect.parameters == sum(p.numel() for p in blocks.parameters())
    matrices = sum(p.numel() for p in blocks.parameters() if p.ndim == 2)
    assert matrices == layers * (4 * 10 * aspect.heads * 3 + 2 * 10 * 7)


def test_a_block_of_the_usual_width_is_multi_head_attention() -> None:
    aspect = Aspect(1, 3, width=12, head_size=4, hidden=20)
    block = text(aspect=aspect).blocks[0]
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([block.query.weight, block.key.weight, block.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([block.query.bias, block.key.bias, block.value.bias]))
        theirs.out_proj.weight.copy_(block.out.weight)
        theirs.out_proj.bias.copy_(block.out.bias)
    x, seen = torch.randn(2, 8, 12), IDS != 0
    normed = block.norm1(x)
    mixed, weights = theirs(normed, normed, normed, key_padding_mask=~seen, average_attn_weights=False)
    y = x + mixed
    torch.testing.assert_close(block(x, seen), y + block.mlp(block.norm2(y)))
    torch.testing.assert_close(block.maps(x, seen), weights)


@pytest.mark.parametrize("kind", ["local", "sparse", "longformer"])
def test_patterns_by_loops(kind: str) -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, 2, 8, 3) for _ in range(3))
    seen = IDS != 0
    found = Mixing(kind, 2, 9, 2)(q, k, v, seen)
    for n, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(8)).tolist():
        sees = {j for j in range(8) if abs(i - j) <= 2 and seen[n, j]} | {i}
        if kind == "sparse":
            sees |= {j for j in range(0, 8, 2) if seen[n, j]}
        if kind == "longformer":
            sees |= {0} if i else {j for j in range(8) if seen[n, j]}
        scores = torch.tensor([float(q[n, h, i] @ k[n, h, j]) / math.sqrt(3) for j in sorted(sees)])
        expected = scores.softmax(0) @ v[n, h, sorted(sees)]
        torch.testing.assert_close(found[n, h, i], expected)


def test_linear_linformer_and_synthesizer_by_their_formulas() -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, 2, 8, 3) for _ in range(3))
    seen = torch.arange(8)[None] < 6

    def phi(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x + 1, x.exp())

    weights = (phi(q) @ phi(k).transpose(2, 3)) * seen[:, None, None, :]
    torch.testing.assert_close(Mixing("linear", 2, 9, 2)(q, k, v, seen), weights / weights.sum(-1, keepdim=True) @ v)
    former = Mixing("linformer", 2, 9, 2)
    keys, values = former.shorten[0][:, :6] @ k[:, :, :6], former.shorten[1][:, :6] @ v[:, :, :6]
    expected = (q @ keys.transpose(2, 3) / math.sqrt(3)).softmax(-1) @ values
    torch.testing.assert_close(former(q, k, v, seen), expected)
    random = Mixing("synthesizer", 2, 9, 2)
    torch.testing.assert_close(random(q, k, v, seen), random.scores[:, :8, :6].softmax(-1) @ v[:, :, :6])


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_count_and_every_weight_learns(kind: str) -> None:
    model = text(kind)
    torch.testing.assert_close(model(IDS)[1:], model(IDS[1:, :4]), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.embed.weight[0] = 7.0  # whatever stands at padding
    torch.testing.assert_close(model(IDS)[1:], model(IDS[1:, :4]), rtol=1e-4, atol=1e-5)
    model(IDS).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_maps_are_weights_of_the_layer() -> None:
    maps = text(aspect=Aspect(1, 5, width=12, head_size=4)).maps(IDS)
    assert [tuple(found.shape) for found in maps] == [(2, 5, 8, 8)]
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(2, 5, 8))
    assert float(maps[0][1, :, :, 4:].abs().max()) == 0


def test_words_begin_with_their_places_and_small_ones() -> None:
    model = text(aspect=Aspect(1, 2, width=300, head_size=4))
    assert float(model.place.detach().std()) == pytest.approx(0.02, rel=0.1)
    words, seen = model.begin(IDS)
    assert torch.equal(words, model.embed.weight[IDS] + model.place[None, :8])
    assert torch.equal(seen, IDS > 0)
    blank = model.begin(torch.zeros(1, 3, dtype=torch.int64))[1]
    assert bool(blank.all())  # a text of padding counts whole


def test_maps_are_without_dropout_in_either_mode() -> None:
    model = text(dropout=0.5)
    still = model.maps(IDS)
    model.train()
    model.blocks[1].eval()
    for found, expected in zip(model.maps(IDS), still, strict=True):
        assert torch.equal(found, expected)
    assert [model.training, model.blocks[0].training, model.blocks[1].training] == [True, True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_maps_times_values_is_what_attention_gives(kind: str) -> None:
    model = text(kind)
    words, seen = model.begin(IDS)
    block = model.blocks[0]
    q, k, v = block.parts(words)
    torch.testing.assert_close(model.maps(IDS)[0] @ v, block.attend(q, k, v, seen), rtol=1e-4, atol=1e-5)
    if kind != "linformer":
        torch.testing.assert_close(model.maps(IDS)[0].sum(-1), torch.ones(2, 3, 8))


def test_costs() -> None:
    rows = compare(Aspect(2, 2, width=8, head_size=4, hidden=8), IDS, vocabulary=30, outputs=3, length=9)
    assert [(row["layers"], row["heads"]) for row in rows] == [(1, 4), (2, 2), (4, 1)]
    assert all(row["seconds"] > 0 for row in rows)
    assert rows[0]["parameters"] < rows[1]["parameters"] < rows[2]["parameters"]
    layer = nn.Linear(6, 5)
    x = torch.randn(7, 6, requires_grad=True)
    assert kept_for_backward(layer, x) == x.numel() * 4
    threads = torch.get_num_threads()
    model = text().train()
    assert latency(model, IDS, repeats=3) > 0
    assert torch.get_num_threads() == threads
    assert model.training


def test_latency_is_the_median_of_the_measured_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, spent = [100.0], iter([9.0, 7.0, 0.5, 0.2, 0.9])  # two passes that warm up, three that count

    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            clock[0] += next(spent)
            return x

    monkeypatch.setattr(wide_attention, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert latency(Slow(), IDS, repeats=3, warmup=2) == pytest.approx(0.5)


def test_costs_are_of_one_text_and_of_training_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(wide_attention, "latency", lambda _model, x: asked.append(("latency", len(x))) or 0.25)
    monkeypatch.setattr(wide_attention, "kept_for_backward", lambda _model, x: asked.append(("bytes", len(x))) or 8)
    rows = compare(Aspect(1, 2, width=8, head_size=4, hidden=8), IDS, vocabulary=30, outputs=3, length=9)
    assert asked == [("latency", 1), ("bytes", 2)] * 2
    assert [(row["layers"], row["heads"], row["seconds"], row["training_bytes"]) for row in rows] == [
        (1, 2, 0.25, 8),
        (2, 1, 0.25, 8),
    ]


def test_build_lays_its_heads_out() -> None:
    spec = Spec("text", "classes", (9,), 3, vocabulary=30)
    model = build(spec, layers=2, total_heads=6, width=12, head_size=5, hidden=7, kind="local", window=3, dropout=0.3)
    assert model.aspect == Aspect(2, 3, 12, 5, 7)
    assert (model.length, model.embed.num_embeddings, model.head.out_features) == (9, 30, 3)
    assert {(block.attend.kind, block.attend.window, block.dropout.p) for block in model.blocks} == {("local", 3, 0.3)}


def test_list_operations_are_evaluated_right() -> None:
    known = {"[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]": 5, "[SM 9 9 [SM 1 2 ] ]": 1, "[MED 1 2 3 8 ]": 2}
    for words, value in known.items():
        assert evaluate(words.split()) == value
    data = list_operations(1, train=50, other=20)
    assert data.spec.shape == (14,)
    assert len(data.train.y) == 50
    for part in (data.train, data.valid, data.test):
        for ids, y in zip(part.x[:20], part.y[:20], strict=True):
            assert evaluate(sentence(ids)) == int(y)
    rows = {tuple(row) for row in torch.cat([data.train.x, data.valid.x, data.test.x]).tolist()}
    assert len(rows) == 90, "a row is in two parts"


def test_misuse() -> None:
    with pytest.raises(ValueError, match=r"layers is 5, which does not divide 24 heads; use one of 1, 2, 3, 4, 6"):
        widen(Aspect(6, 4), 5)
    with pytest.raises(ValueError, match="head_size is 0"):
        Aspect(6, 4, head_size=0)
    spec = Spec("text", "classes", (9,), 3, vocabulary=30)
    for settings, told in (({"kind": "wide"}, "kind is 'wide'"), ({"dropout": 1.0}, "dropout is 1.0")):
        with pytest.raises(ValueError, match=told):
            build(spec, **settings)
    with pytest.raises(ValueError, match="window is 0"):
        build(spec, window=0)
    with pytest.raises(ValueError, match=r"1 .. 9 tokens"):
        text()(torch.ones(1, 10, dtype=torch.int64))
    assert visible("softmax", 4, 2) is None


def test_latency_leaves_frozen_modules_in_evaluation() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    model[1].eval()
    latency(model, torch.randn(3, 4), repeats=1, warmup=0)
    assert [m.training for m in model.modules()] == [True, True, False]
