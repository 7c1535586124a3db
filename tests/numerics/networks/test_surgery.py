"""Surgery on nasty networks: shared modules, tied, frozen and parametrised weights, fast paths, failures half-way."""

from __future__ import annotations

import copy
import io
import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from probatum.numerics.networks import surgery
from probatum.numerics.networks.surgery import (
    OffFastPath,
    all_or_nothing,
    check_plain,
    layers,
    paths_of,
    places,
    swap,
    swapped,
    ties,
)

pytestmark = pytest.mark.fast


class Twice(nn.Module):
    """One layer under two names, and inside a list too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.parts = nn.ModuleList([nn.Linear(3, 3), self.first])
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.parts[1](self.parts[0](self.first(x))))


class Doubled(nn.Module):
    """The old layer's outputs times two."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


def encoder(depth: int = 1) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, depth) if depth > 1 else layer


class Shifted(nn.Module):
    """A layer norm with everything that the fast path reads, which adds one: a swap that is passed by shows."""

    def __init__(self, old: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.shape = old.weight, old.bias, old.eps, old.normalized_shape

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.shape, self.weight, self.bias, self.eps) + 1


def test_places_by_hand() -> None:
    net = Twice()
    assert [place.path for place in places(net)] == ["first", "parts", "parts.0", "parts.1", "second"]
    assert paths_of(net, net.first) == ["first", "parts.1", "second"]
    ordinary = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Tanh())
    assert [place.path for place in places(ordinary)] == [name for name, _ in ordinary.named_modules() if name]


def test_a_module_in_several_places_is_swapped_in_all_by_the_same() -> None:
    net, x = Twice(), torch.randn(4, 3)
    old, expected = net.first, net.parts[0](net.first(x) * 2) * 1
    done = swap(net, {old: Doubled(old)})
    assert done.count == 3
    assert net.first is net.second is net.parts[1]
    inner = net.parts[0](2 * old(x))
    torch.testing.assert_close(net(x), 2 * old(2 * old(inner)))
    torch.testing.assert_close(inner, expected)
    done.undo()
    assert paths_of(net, old) == ["first", "parts.1", "second"]
    done.undo()


def test_the_network_itself_is_refused_or_handed_on() -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"itself the Linear to be replaced.*nn\.Sequential"):
        swap(net, {net: nn.Identity()})
    made = nn.Sequential(net)
    assert swapped(net, {net: made}) is made
    outer = nn.Sequential(nn.ReLU())
    assert swapped(outer, {outer[0]: nn.Tanh()}) is outer
    with pytest.raises(ValueError, match="a Tanh is no part"):
        swap(outer, {nn.Tanh(): nn.ReLU()})


def test_order_of_the_tree_and_keys_stay() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    swap(net, {net[0]: nn.Linear(2, 2)})
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


# tied weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_ties_are_told() -> None:
    assert list(ties(Tied()).values()) == [["embed.weight", "head.weight"]]
    assert ties(Twice()) == {}  # one module in two places ties nothing


def test_a_tie_that_would_break_is_refused_with_both_places() -> None:
    net = Tied()
    before = net.head
    with pytest.raises(ValueError, match=r"'head\.weight' and 'embed\.weight' are one tied parameter"):
        swap(net, {net.head: nn.Linear(3, 5)})
    assert net.head is before
    two = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    two[1].weight = two[0].weight
    with pytest.raises(ValueError, match=r"'0\.weight' and '1\.weight'"):
        swap(two, {two[0]: nn.Linear(3, 3), two[1]: nn.Linear(3, 3)})


def test_ties_that_the_new_modules_keep_are_welcome() -> None:
    net = Tied()
    swap(net, {net.head: Doubled(net.head)})
    assert net.head.inner.weight is net.embed.weight
    two = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    two[1].weight = two[0].weight
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    assert swap(two, {two[0]: a, two[1]: b}).count == 2
    gone = Tied()
    assert swap(gone, {gone.head: nn.Identity()}).count == 1  # what has no weights has none that come apart


# flags


def test_training_and_frozen_flags_carry_over() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[2].requires_grad_(False)
    made = nn.Linear(2, 2)
    new_head = nn.Sequential(nn.Linear(2, 4), nn.Dropout(), nn.Linear(4, 2))
    swap(net, {net[0]: made, net[1]: nn.LayerNorm(2), net[2]: new_head})
    assert (made.weight.requires_grad, made.bias.requires_grad) == (False, True)
    assert not any(p.requires_grad for p in new_head.parameters())
    assert [module.training for module in net] == [True, False, True]
    assert new_head[1].training


def test_a_part_that_is_kept_keeps_its_own_mode() -> None:
    block = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    block[1].eval()
    net = nn.Sequential(block)
    swap(net, {block: Doubled(block)})
    assert net[0].training
    assert not net[0].inner[1].training


def test_carry_false_leaves_new_parameters_trainable() -> None:
    net = nn.Sequential(nn.Linear(2, 2)).requires_grad_(False)
    swap(net, {net[0]: nn.Linear(2, 2)}, carry=False)
    assert net[0].weight.requires_grad


# parametrised weights


def parametrised(kind: str) -> nn.Module:
    layer = nn.Linear(3, 3)
    if kind == "new":
        return parametrizations.weight_norm(layer)
    if kind == "prune":
        return prune.random_unstructured(layer, "weight", 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weight_norm(layer) if kind == "old" else spectral_norm(layer)


@pytest.mark.parametrize("kind", ["new", "old", "spectral", "prune"])
def test_parametrised_weights_are_refused_by_name(kind: str) -> None:
    layer = parametrised(kind)
    net = nn.Sequential(nn.ReLU(), layer)
    with pytest.raises(TypeError, match=r"'1' has a parametrised weight"):
        swap(net, {layer: nn.Identity()})
    assert net[1] is layer
    assert swap(net, {layer: Doubled(layer)}).count == 1  # it lives on inside
    with pytest.raises(TypeError, match="here"):
        check_plain(layer, "here")


def test_layers_are_found_by_what_they_were() -> None:
    plain, other = nn.Linear(3, 3), parametrised("new")

    class Own(nn.Linear):
        pass

    net = nn.ModuleDict({"a": plain, "b": other, "c": plain, "d": Own(3, 3), "e": nn.MultiheadAttention(4, 2)})
    assert list(layers(net, [nn.Linear])) == ["a", "b"]
    assert list(layers(plain, [nn.Linear])) == [""]


# torch's encoders


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_a_swap_inside_an_encoder_acts_in_evaluation_without_gradients(depth: int, padded: bool) -> None:
    net, x = encoder(depth).eval(), torch.randn(2, 5, 8)
    mask = {"src_key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])} if padded else {}
    plain = net(x, **mask)
    norms = layers(net, [nn.LayerNorm]).values()
    done = swap(net, {norm: Shifted(norm) for norm in norms})
    slow = net(x, **mask)
    assert not torch.allclose(slow, plain, atol=0.1)
    with torch.no_grad():
        fast = net(x, **mask)
        copied, loaded = copy.deepcopy(net)(x, **mask), pickle.loads(pickle.dumps(net))(x, **mask)
    for found in (fast, copied, loaded):
        torch.testing.assert_close(found, slow, rtol=1e-5, atol=1e-5)
    done.undo()
    with torch.no_grad():
        torch.testing.assert_close(net(x, **mask)[0], plain[0], rtol=1e-5, atol=1e-5)
    for module in net.modules():
        assert "_off_fast_path" not in vars(module)
        if isinstance(module, nn.TransformerEncoderLayer):
            assert module.activation_relu_or_gelu == 1


def test_a_norm_that_the_fast_path_could_not_read_does_not_crash() -> None:
    net = encoder().eval()
    swap(net, {norm: nn.Identity() for norm in layers(net, [nn.LayerNorm]).values()})
    with torch.no_grad():
        assert torch.isfinite(net(torch.randn(2, 5, 8))).all()  # torch reads norm1.eps before it looks for hooks


def test_two_holders_keep_an_encoder_off_until_both_let_go() -> None:
    net = encoder()
    first, second = swap(net, {net.norm1: nn.Identity()}), OffFastPath(net, [net.norm2])
    first.undo()
    assert net.activation_relu_or_gelu == 0
    second.undo()
    assert net.activation_relu_or_gelu == 1
    whole = nn.Sequential(net)
    swap(whole, {net: nn.Identity()})
    assert net.activation_relu_or_gelu == 1  # replaced as a whole, there is nothing to pass by


def test_parts_of_multihead_attention_are_refused() -> None:
    net = encoder()
    with pytest.raises(ValueError, match=r"self_attn\.out_proj.*MultiheadAttention"):
        swap(net, {net.self_attn.out_proj: nn.Linear(8, 8)})
    assert list(layers(net, [nn.Linear, type(net.self_attn.out_proj)])) == ["linear1", "linear2"]


# all or nothing


def test_an_exception_in_the_middle_leaves_everything_as_it_was() -> None:
    net = nn.Sequential(encoder(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).train()
    net[2].eval()
    before = [(m, type(m), m.training) for m in net.modules()]
    flags = [p.requires_grad for p in net.parameters()]
    state = {name: value.clone() for name, value in net.state_dict().items()}

    def fails() -> None:
        with all_or_nothing(net):
            swap(net, {net[0].norm1: nn.Identity(), net[1]: nn.Linear(8, 8)})
            net.requires_grad_(False)
            net[2].__class__ = nn.BatchNorm2d
            net[2].train()
            del net[3]._parameters["bias"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert [(m, type(m), m.training) for m in net.modules()] == before
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert net[0].activation_relu_or_gelu == 1


def test_a_refusal_after_other_places_were_changed_undoes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    old = list(net)

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(surgery, "_carry_over", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        swap(net, {net[0]: nn.Linear(2, 2), net[1]: nn.Tanh()})
    assert list(net) == old


def test_state_dict_round_trip_while_swapped() -> None:
    net, x = Twice(), torch.randn(2, 3)
    swap(net, {net.first: Doubled(net.first)})
    other = Twice()
    swap(other, {other.first: Doubled(other.first)})
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), net(x))


def test_techniques_leave_surgery_modes_and_streams_to_these_rooms() -> None:
    folder = Path(surgery.__file__).parents[2] / "techniques"
    own_way = re.compile(r"fork_rng|\.forward = |__class__ = |\.training = (?:mode|training)|\.train\(was\)")
    found = {path.name: own_way.findall(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py")}
    assert {name: uses for name, uses in found.items() if uses} == {}


def test_layers_tied_in_two_parameters_do_not_come_apart_in_one() -> None:
    class Factored(nn.Module):
        """Keeps the bias of the old layer and gets a weight of its own."""

        def __init__(self, old: nn.Linear, weight: nn.Parameter | None = None) -> None:
            super().__init__()
            self.own, self.bias = nn.Parameter(old.weight.detach() / 2) if weight is None else weight, old.bias

    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[2].weight, net[2].bias = net[0].weight, net[0].bias
    first, second = net[0], net[2]
    with pytest.raises(ValueError, match=r"'0\.weight' and '2\.weight' are one tied parameter"):
        surgery.swap(net, {first: Factored(first), second: Factored(second)})
    assert net[0] is first
    both = nn.Parameter(torch.ones(3, 3))
    surgery.swap(net, {first: Factored(first, both), second: Factored(second, both)})
    assert net[0].own is net[2].own
    assert net[0].bias is net[2].bias is first.bias
