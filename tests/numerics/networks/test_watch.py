"""Watching layers: what they give before an in-place activation, in every mode, and nothing left behind."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.networks.last_layer import find_last_layer, head_of, last_layers
from probatum.numerics.networks.modes import evaluating, modes_kept, still
from probatum.numerics.networks.roles import parameter_roles
from probatum.numerics.networks.watch import (
    HeadInputs,
    Watch,
    by_place,
    changed_in_place,
    choose_layers,
    hidden_layers,
    hooked,
    is_output,
    last_features,
    look,
    outputs_of,
    pass_through,
)

pytestmark = pytest.mark.fast


def hooks(net: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in net.modules() for kind in kinds)


def inplace() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))


class HeadFirst(nn.Module):
    """The head is registered before the body, and there is control flow on shapes alone."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.head = nn.Linear(width, 2)
        self.body = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Dynamic(HeadFirst):
    """The same with control flow on values, which cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x if float(x.sum()) > 1e9 else x + 0))


class OneActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.act, self.head = nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.act(layer(x))
        return self.head(x)


class PreActivation(nn.Module):
    """A block that begins by changing its input in place, as the second ResNet's do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x += self.layer(F.relu(x, inplace=True))
        return self.head(x)


class Drawing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x) + torch.randn(x.shape))


# what layers give


def test_outputs_before_an_activation_in_place() -> None:
    net, x = inplace(), torch.randn(6, 4)
    seen = hidden_layers(net, x)
    by_hand = F.linear(x, net[0].weight, net[0].bias)
    torch.testing.assert_close(seen["0"], by_hand)
    assert float(seen["0"].min()) < 0 <= float(seen["1"].min())
    assert changed_in_place(net, x, ["0", "1"]) == {"0"}


def test_outputs_before_a_functional_change_in_place() -> None:
    net, x = PreActivation(), torch.randn(6, 4)
    seen = hidden_layers(net, x)
    torch.testing.assert_close(seen["stem"], net.stem(x))
    _, (stem,) = pass_through(net, x, net.stem)
    torch.testing.assert_close(stem, net.stem(x))
    assert changed_in_place(net, x, ["stem", "layer"]) == {"stem"}


def test_nothing_is_copied_where_nothing_changes() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 4)
    ran = []
    with hooked(net, {"head": net[2]}, lambda *_: ran.append(1)):
        hidden_layers(net, x)
    assert len(ran) == 1
    assert changed_in_place(net, x, ["0", "1"]) == set()
    net.insert(2, nn.Dropout(0.1, inplace=True))
    assert changed_in_place(net, x, ["0", "1"]) == {"0", "1"}  # it acts in training alone


def test_runs_of_one_module_have_names_of_their_own() -> None:
    net, x = OneActivation(), torch.randn(5, 8)
    seen = hidden_layers(net, x)
    assert [name for name in seen if name.startswith("act")] == ["act", "act:2", "act:3", "act:4"]
    expected = x
    for turn, layer in enumerate(net.layers, start=1):
        expected = layer(expected).relu()
        torch.testing.assert_close(seen["act" if turn == 1 else f"act:{turn}"], expected)
    assert choose_layers(net, seen, None) == ["act", "act:2", "act:3"]
    with pytest.raises(KeyError, match="act:4"):
        choose_layers(net, seen, ["act:5"])


def test_gradient_at_a_layer_before_an_activation_in_place() -> None:
    net, x = inplace(), torch.randn(6, 4)
    output, (at,) = pass_through(net, x, net[0])
    (found,) = torch.autograd.grad(output.sum(), at)
    torch.testing.assert_close(at, net[0](x))
    expected = net[2].weight.sum(dim=0) * (at > 0)
    torch.testing.assert_close(found, expected)
    _, (given,) = pass_through(net, x, net[2], inputs=True)
    torch.testing.assert_close(given, net[0](x).relu())


def test_a_network_that_changes_its_input_in_place_changes_none_of_ours() -> None:
    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.mul_(2)).relu_())

    net, x = Doubling(), torch.randn(3, 4)
    before, expected = x.clone(), net.body(2 * x)
    torch.testing.assert_close(hidden_layers(net, x)["body"], expected)
    torch.testing.assert_close(last_features(net, x).features, expected.relu())
    torch.testing.assert_close(pass_through(net, x, net.body)[1][0], expected)
    find_last_layer(net, x)
    assert torch.equal(x, before)


class DropsInPlace(nn.Module):
    """Dropout in place that acts in training alone, by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.norm(self.body(x)), 0.5, self.training, inplace=True))


def test_what_acts_in_training_alone_is_told_and_watched_right() -> None:
    net, x = DropsInPlace().train(), torch.randn(64, 4)
    names = ["body", "norm"]
    watch = Watch(net, names, changed_in_place(net, x, names)).attach()
    net(x)
    assert int((watch.seen["norm"] == 0).sum()) == 0
    torch.testing.assert_close(watch.seen["norm"].mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)


def test_a_pass_through_moves_statistics_and_draws_once() -> None:
    net, x = DropsInPlace().train(), torch.randn(64, 4)
    torch.manual_seed(3)
    expected = net(x)
    after, state = torch.get_rng_state(), copy.deepcopy(net.state_dict())
    net.norm.reset_running_stats()
    torch.manual_seed(3)
    output, (seen,) = pass_through(net, x, net.norm)
    assert torch.equal(output, expected)
    assert int((seen == 0).sum()) == 0
    assert torch.equal(torch.get_rng_state(), after)
    assert int(net.norm.num_batches_tracked) == 1
    torch.testing.assert_close(net.norm.running_mean, state["norm.running_mean"])


def test_tuples_are_kept_tensor_by_tensor() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            output, _ = self.cell(x)
            return self.head(output.mul_(2)[:, -1])

    net, x = Recurrent(), torch.randn(5, 6, 4)
    expected = net.cell(x)[0]
    torch.testing.assert_close(hidden_layers(net, x)["cell"][0], expected)
    output, ((seen, _),) = pass_through(net, x, net.cell)
    torch.testing.assert_close(seen, expected)
    torch.testing.assert_close(output, net.head(2 * expected[:, -1]))


# modes, statistics, streams, hooks


def test_parts_kept_in_evaluation_are_watched_in_training_passes() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).train(), torch.randn(6, 4)
    net[0].eval()
    net[2].eval()
    watch, inputs = Watch(net, ["0"]).attach(), HeadInputs(net[2])
    inputs.attach(net)
    output = net(x)
    assert watch.missing() is None
    torch.testing.assert_close(watch.seen["0"], net[0](x))
    torch.testing.assert_close(inputs.take(6, output), net[0](x).relu())
    watch.seen.clear()
    with evaluating(net):
        net(x)
    assert watch.missing() == "0"
    with pytest.raises(ValueError, match="did not run"):
        inputs.take(6)


def test_parts_of_attention_never_run_and_are_refused() -> None:
    net = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 5, 8)
    for use in (
        lambda: pass_through(net, x, net.self_attn.out_proj),
        lambda: Watch(net, ["self_attn.out_proj"]).attach(),
    ):
        with pytest.raises(ValueError, match=r"'self_attn.out_proj' is a part of nn.MultiheadAttention"):
            use()
    assert hooks(net) == 0


def test_outputs_of_a_network_that_changes_its_input_in_place() -> None:
    net, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)), torch.randn(9, 4)
    before = x.clone()
    torch.testing.assert_close(outputs_of(net, x, block=4), net[1](before.relu()))
    assert torch.equal(x, before)


def test_a_look_leaves_modes_statistics_and_streams() -> None:
    net, x = nn.Sequential(Drawing(), nn.BatchNorm1d(2), nn.Linear(2, 2)).train(), torch.randn(9, 4)
    other, rows = Dynamic(), torch.randn(2, 6)
    net[1].eval()
    modes, stream = [m.training for m in net.modules()], torch.get_rng_state()
    state = copy.deepcopy(net.state_dict())
    last_features(net, x)
    hidden_layers(net, x)
    outputs_of(net, x)
    find_last_layer(other, rows)
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert hooks(net) == 0


def test_modes_are_kept_after_an_exception_and_train_is_not_called() -> None:
    class Loud(nn.Linear):
        def train(self, mode: bool = True) -> Loud:
            raise AssertionError("train was called")

    net = nn.Sequential(Loud(2, 2), nn.Dropout())
    net[1].training = False
    with pytest.raises(RuntimeError), still(net):
        net(torch.zeros(1, 5))
    assert [net.training, net[0].training, net[1].training] == [True, True, False]
    ordinary = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ordinary[1].eval()
    with evaluating(ordinary):
        assert not ordinary[0].training
    with modes_kept(ordinary):
        ordinary.eval()
    assert [m.training for m in ordinary.modules()] == [True, True, False]


def test_hooks_are_gone_after_an_exception() -> None:
    net = inplace()
    for use in (
        lambda x: hidden_layers(net, x),
        lambda x: last_features(net, x),
        lambda x: pass_through(net, x, net[0]),
        lambda x: look(net, x, {"0": net[0]}, lambda *_: None),
    ):
        with pytest.raises(RuntimeError):
            use(torch.zeros(2, 7))
        assert hooks(net) == 0
        assert net.training


def test_a_watched_encoder_is_off_its_fast_path_for_the_look_alone() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    x, mask = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 4 + [True]])
    ran = []
    with hooked(net, {"inner": net.layers[1].linear1}, lambda _n, _i, output: ran.append(output)), torch.no_grad():
        net(x, src_key_padding_mask=mask)
    assert [tuple(output.shape) for output in ran] == [(2, 5, 16)]
    assert net.use_nested_tensor
    assert net.layers[1].activation_relu_or_gelu == 1


# the last layer


@pytest.mark.parametrize("kind", [HeadFirst, Dynamic])
def test_a_head_registered_first_is_found_by_running(kind: type[HeadFirst]) -> None:
    net, x = kind(), torch.randn(7, 6)
    assert find_last_layer(net, x) is net.head
    seen = last_features(net, x, block=3)
    torch.testing.assert_close(seen.features, net.body(x))
    torch.testing.assert_close(net.head(seen.features), seen.logits)


def test_without_rows_it_is_found_by_tracing_or_by_order() -> None:
    assert find_last_layer(net := HeadFirst()) is net.head
    assert find_last_layer(net := Dynamic()) is net.body[2]  # neither rows nor a trace: what was registered last
    assert (
        find_last_layer(net := nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))) is net[1][0]
    )
    assert find_last_layer(nn.Sequential(nn.ReLU())) is None
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    assert find_last_layer(conv) is conv[1]
    with pytest.raises(ValueError, match=r"no nn\.Linear"):
        head_of(conv)


def test_one_candidate_costs_no_pass() -> None:
    class Never(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the network was run")

    net = Never()
    assert find_last_layer(net, torch.zeros(2, 1, 4, 4)) is net.head


def test_attention_inside_is_no_last_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.attention = nn.Linear(4, 2), nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0].mean(dim=1))

    net = Net()
    assert find_last_layer(net) is net.head


def test_the_branch_whose_output_is_the_networks_is_taken() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.aside = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(x)
            output = self.head(h)
            self.told = self.aside(h)
            return output

    net = Aside()
    assert find_last_layer(net, torch.randn(2, 4)) is net.head


class SqueezeAndExcite(nn.Module):
    """The only linear layers weigh channels; the network ends in a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.stem = nn.Conv2d(4, 3, 1), nn.Conv2d(1, 4, 3, padding=1)
        self.squeeze, self.excite = nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        weight = self.excite(self.squeeze(h.mean(dim=(2, 3))).relu()).sigmoid()
        return self.head(h * weight[:, :, None, None]).mean(dim=(2, 3))


class TwoHeads(nn.Module):
    """An auxiliary head that runs last, and what the network does with it."""

    def __init__(self, joined: str) -> None:
        super().__init__()
        self.aside, self.head, self.body, self.joined = nn.Linear(5, 2), nn.Linear(5, 2), nn.Linear(4, 5), joined

    def forward(self, x: Tensor) -> Any:
        h = self.body(x).relu()
        output = self.head(input=h) if self.joined == "by name" else self.head(h)
        other = self.aside(h)
        if self.joined == "cat":
            return torch.cat([output, other], dim=1)
        if self.joined == "pair":
            return {"logits": output.view(other.shape[0], -1), "aside": other}
        return output.log_softmax(dim=1) if self.joined == "softmax" else output.relu_()


class Mean(nn.Module):
    """Code that takes no tensors with gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(4, 2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.from_numpy(self.body(x).numpy()))


@pytest.mark.parametrize("rows", [True, False])
def test_the_layer_that_the_output_comes_from_is_the_last(rows: bool) -> None:
    images, flat = (torch.randn(3, 1, 6, 6), torch.randn(3, 4)) if rows else (None, None)
    net = SqueezeAndExcite()
    assert find_last_layer(net, images) is net.head
    with pytest.raises(ValueError, match=r"no nn\.Linear"):
        head_of(net, images)
    for joined in ("pair", "softmax", "in place", "by name"):
        net = TwoHeads(joined)
        assert last_layers(net, flat) == [net.head]
    net = TwoHeads("cat")
    assert last_layers(net, flat) == ([net.head, net.aside])
    assert find_last_layer(net, flat) is net.aside
    roles = parameter_roles(net)
    assert [roles[f"{name}.weight"] for name in ("head", "aside", "body")] == ["last", "last", "matrix"]


def test_the_last_layer_under_frozen_weights_fast_paths_and_no_gradients() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    net, x = nn.Sequential(nn.Linear(4, 8), encoder).eval().requires_grad_(False), torch.randn(3, 5, 4)
    with torch.inference_mode():
        assert find_last_layer(net, x) is encoder.layers[1].linear2
    assert not encoder.layers[1].linear2.weight.requires_grad
    assert hooks(net) == 0
    net = Mean()
    assert find_last_layer(net, torch.randn(3, 6)) is net.head
    with pytest.raises(RuntimeError):
        find_last_layer(net, torch.randn(3, 5))
    assert hooks(net) == 0
    assert net.training


def test_a_parametrised_last_layer_keeps_its_role() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)))
    roles = parameter_roles(net)
    assert [roles[f"2.parametrizations.weight.original{k}"] for k in (0, 1)] == ["last", "last"]
    assert (roles["0.weight"], roles["2.bias"]) == ("matrix", "vector")


# features before it


def test_features_of_a_head_that_is_called_by_name() -> None:
    net, x = TwoHeads("by name"), torch.randn(6, 4)
    h = net.body(x).relu()
    seen = last_features(net, x, ends=False)
    torch.testing.assert_close(seen.features, h)
    _, (given,) = pass_through(net, x, net.head, inputs=True)
    torch.testing.assert_close(given, h)
    inputs = HeadInputs(net.head)
    inputs.attach(net)
    net(x)
    torch.testing.assert_close(inputs.take(6), h)
    with pytest.raises(ValueError, match="goes on behind its last linear layer"):
        last_features(TwoHeads("cat"), x)


class GoesOn(nn.Module):
    def __init__(self, change: str) -> None:
        super().__init__()
        self.body, self.head, self.change = nn.Linear(4, 5), nn.Linear(5, 3), change

    def forward(self, x: Tensor) -> Tensor:
        output = self.head(self.body(x))
        if self.change == "in place":
            return output.relu_()
        return output.log_softmax(dim=1) if self.change == "softmax" else torch.cat([output, self.head(x[:, :1] + 0 * output[:, :1].expand(-1, 5))])  # fmt: skip


@pytest.mark.parametrize("change", ["in place", "softmax"])
def test_a_network_that_goes_on_is_told_and_may_be_allowed(change: str) -> None:
    net, x = GoesOn(change), torch.randn(6, 4)
    with pytest.raises(ValueError, match="goes on behind its last linear layer"):
        last_features(net, x)
    torch.testing.assert_close(last_features(net, x, ends=False).features, net.body(x))


def test_a_layer_that_runs_twice_or_sees_no_rows_is_refused() -> None:
    shared = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="ran 2 times"):
        last_features(nn.Sequential(shared, nn.ReLU(), shared), torch.randn(3, 4))
    with pytest.raises(ValueError, match="one vector a row"):
        last_features(nn.Linear(4, 2), torch.randn(3, 5, 4))


def test_no_rows_give_no_features() -> None:
    seen = last_features(inplace(), torch.zeros(0, 4))
    assert (tuple(seen.features.shape), tuple(seen.logits.shape)) == ((0, 8), (0, 3))


def test_outputs_in_another_precision_count_as_the_layers() -> None:
    own = torch.randn(5, 3)
    assert is_output(own, own.bfloat16())
    assert is_output(own.bfloat16(), own.bfloat16().float())
    assert not is_output(own, own + 1)
    assert not is_output(own, own[:, :2])
    assert is_output(torch.tensor([float("nan")]), torch.tensor([float("nan")]))


# training


def test_a_watch_keeps_what_was_before_the_activation_and_its_gradient() -> None:
    net, x = inplace(), torch.randn(6, 4)
    watch = Watch(net, ["0"], changed_in_place(net, x, ["0"])).attach()
    net(x).sum().backward()
    torch.testing.assert_close(watch.seen["0"], F.linear(x, net[0].weight, net[0].bias))
    net.zero_grad()
    net(x)
    watch.seen["0"].sum().backward()
    torch.testing.assert_close(net[0].bias.grad, torch.full((8,), 6.0))
    watch.detach()
    assert hooks(net) == 0
    assert not watch.seen


def test_a_watch_sees_training_passes_alone_and_may_end_with_one() -> None:
    net, x = OneActivation(), torch.randn(5, 8)
    watch = Watch(net, ["act", "act:3"]).attach(once=True)
    assert watch.attached
    net(x)
    assert hooks(net) == 0
    first = net.layers[0](x).relu()
    torch.testing.assert_close(watch.seen["act"], first)
    third = net.layers[2](net.layers[1](first).relu()).relu()
    torch.testing.assert_close(watch.seen["act:3"], third)
    watch.detach()
    watch.attach()
    with evaluating(net):
        net(x)
    assert watch.missing() == "act"
    net(x)
    net(x)  # runs are counted pass by pass
    torch.testing.assert_close(watch.seen["act:3"], third)
    watch.detach()
    watch.attach(once=True)
    with pytest.raises(RuntimeError):
        net(torch.randn(5, 3))
    assert hooks(net) == 0


def test_a_copy_of_a_watched_network_is_watched_by_a_copy() -> None:
    net, x = inplace(), torch.randn(6, 4)
    watch, head = Watch(net, ["1"]).attach(), HeadInputs(net[2])
    head.attach()
    net(x)
    kept = watch.seen["1"]
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert hooks(copied) == hooks(net)
        copied(2 * x)
        assert watch.seen["1"] is kept
    torch.testing.assert_close(head.take(6), kept)
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_head_inputs_are_those_of_the_pass_that_ended_in_the_output() -> None:
    net, x, other = inplace(), torch.randn(6, 4), torch.randn(6, 4)
    inputs = HeadInputs(net[2])
    inputs.attach()
    output, _ = net(x), net(other)
    torch.testing.assert_close(inputs.take(6, output), net[1](net[0](x)))
    inputs.begin()
    _, output = net(other), net(x)  # what another method passed before
    torch.testing.assert_close(inputs.take(6, output, ends=False), net[1](net[0](x)))
    inputs.begin()
    net(x), net(other)
    torch.testing.assert_close(inputs.take(6, output + 1, ends=False), net[1](net[0](x)))  # goes on behind: the first
    net(other)
    inputs.begin()
    with pytest.raises(ValueError, match="did not run"):
        inputs.take(6)


def test_head_inputs() -> None:
    net, x = inplace(), torch.randn(6, 4)
    inputs = HeadInputs(net[2])
    inputs.attach()
    with pytest.raises(ValueError, match="did not run"):
        inputs.take(6)
    output = net(x)
    torch.testing.assert_close(inputs.take(6, output.bfloat16()), net[1](net[0](x)))
    net(x)
    with pytest.raises(ValueError, match="goes on behind"):
        inputs.take(6, output + 1)
    with evaluating(net):
        net(x)
    with pytest.raises(ValueError, match="did not run"):
        inputs.take(6)
    net(x)
    with pytest.raises(ValueError, match="one vector a row"):
        inputs.take(5)
    inputs.detach()
    assert hooks(net) == 0
    with pytest.raises(TypeError, match="Conv2d"):
        HeadInputs(nn.Conv2d(1, 1, 1))


def test_inference_tensors_are_copied() -> None:
    net, x = inplace(), torch.randn(3, 4)
    with torch.inference_mode(), warnings.catch_warnings():
        seen = hidden_layers(net, x)
    assert float(seen["0"].min()) < 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_pass_through_a_network_of_half_precision(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).to(dtype)
    x = torch.randn(5, 3, requires_grad=True)
    output, (seen,) = pass_through(net, x, net[0])
    assert torch.equal(output, net(x.to(dtype)))
    assert torch.equal(seen, net[0](x.to(dtype)))
    output.sum().backward()  # through the change of precision
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert pass_through(net.float(), x.detach().to(dtype), net[0])[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_looks_take_rows_of_another_precision(dtype: torch.dtype) -> None:
    net, x = nn.Linear(3, 2).to(dtype), torch.randn(5, 3)
    expected = net(x.to(dtype)).detach()
    assert torch.equal(look(net, x, {}), expected)
    assert torch.equal(outputs_of(net, x, 2), expected)
    wide = net.float()(x.to(dtype).float()).detach()
    torch.testing.assert_close(look(net, x.to(dtype), {}), wide)
    torch.testing.assert_close(outputs_of(net, x.to(dtype), 2), wide)


class Compiled(nn.Module):
    """Its `forward` is not written in Python, so that nobody can say what its arguments are called."""

    forward = staticmethod(torch.relu)


def test_calls_without_names_ask_nothing_of_the_module() -> None:
    x = torch.randn(2, 3)
    assert by_place(Compiled(), (x,), {}) == ((x,), {})
    given, left = by_place(nn.Linear(3, 2), (), {"input": x})
    assert given[0] is x
    assert left == {}
