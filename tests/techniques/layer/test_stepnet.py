"""StepNet: fixed steps give the plain network and the identity, the index is that of a linear ODE, attention by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from probatum.spec import Spec
from probatum.techniques.layer.stepnet import Stepped, StepSize, apply, index_of, step_sizes, stiffness
from probatum.train.baselines import build

pytestmark = pytest.mark.fast

IMAGES = Spec("image", "classes", (1, 8, 8), 3)


class Unit(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        layers = [layer for _ in range(2) for layer in (nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width))]
        self.branch = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), Unit(), Unit(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
    return net.eval()


def sizes(net: nn.Module) -> list[StepSize]:
    return [module.size for module in net.modules() if isinstance(module, Stepped)]


def shares(f: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    rows = []
    for own, given in zip(f.detach().abs(), state.detach().abs(), strict=True):
        rows.append([float(a.mean() / (a.mean() + b.mean())) for a, b in zip(own, given, strict=True)])
    return torch.tensor(rows)


def test_attention_is_trained_where_the_norm_before_it_is_frozen() -> None:
    net = network()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    apply(net)
    assert all(p.requires_grad for size in sizes(net) for p in size.look.parameters())
    assert not any(p.requires_grad for m in net.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())


@pytest.mark.parametrize("kind", ["step", "se"])
def test_steps_of_one_are_the_plain_network_and_of_zero_the_identity(kind: str) -> None:
    plain = network()
    net, x = copy.deepcopy(plain), torch.randn(4, 1, 6, 6)
    assert apply(net, kind=kind) == 2
    for size in sizes(net):
        size.fixed = 1.0
    torch.testing.assert_close(net(x), plain(x))
    for size in sizes(net):
        size.fixed = 0.0
    bare = nn.Sequential(plain[0], plain[3], plain[4], plain[5])
    torch.testing.assert_close(net(x), bare(x))


def test_attention_by_hand() -> None:
    net, x = network(), torch.randn(4, 1, 6, 6)
    plain = copy.deepcopy(net)
    apply(net, reduction=2)
    size = sizes(net)[0]
    state = plain[0](x)
    f = plain[1].branch(state)
    u = torch.cat([state.mean((2, 3)), f.mean((2, 3)), shares(f, state)], dim=1)
    first, second = size.look[0], size.look[2]
    step = torch.sigmoid(second(torch.relu(first(u))))
    torch.testing.assert_close(net[1](state), state + step[:, :, None, None] * f)
    torch.testing.assert_close(step_sizes(net)["1"], step.detach())
    assert first.out_features == 4
    assert size.state is None


@pytest.mark.parametrize("training", [False, True])
def test_the_trial_step_looks_ahead(training: bool) -> None:
    net, x = network().train(training), torch.randn(4, 1, 6, 6)
    plain, other = copy.deepcopy(net), copy.deepcopy(net)
    apply(net, reduction=2, trial=True)
    size = sizes(net)[0]
    first, second = size.look[0], size.look[2]
    assert first.in_features == 4 * 8
    state = plain[0](x)
    f = plain[1].branch(state)

    def step(gap: torch.Tensor) -> torch.Tensor:
        known = [state.mean((2, 3)), f.mean((2, 3)), shares(f, state), gap]
        return torch.sigmoid(second(torch.relu(first(torch.cat(known, dim=1)))))[:, :, None, None]

    ahead = other[1].branch(state + step(torch.zeros(4, 8)) * f)
    expected = step((ahead - f).abs().mean(dim=(2, 3)))
    torch.testing.assert_close(net[1](state), state + expected * f)
    torch.testing.assert_close(step_sizes(net)["1"], expected[:, :, 0, 0].detach())
    assert (expected - step(torch.zeros(4, 8))).abs().max() > 1e-4
    assert size.state is size.gap is size.ahead is size.catch is None
    output = net(x)
    output.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_trial_step_moves_no_statistics() -> None:
    plain, x = network().train(), torch.randn(4, 1, 6, 6)
    net = copy.deepcopy(plain)
    apply(net, trial=True)
    state = plain[0](x)
    plain[1](state)
    net[1](state)
    for name, expected in plain[1].named_buffers():
        path = name.replace("branch.3.", "branch.3.norm.")
        torch.testing.assert_close(net[1].block.get_buffer(path), expected)
    counts = [int(m.num_batches_tracked) for m in net[1].modules() if isinstance(m, nn.BatchNorm2d)]
    assert counts == [1, 1]


def test_a_failed_trial_leaves_nothing_behind() -> None:
    net, x = network(), torch.randn(4, 1, 6, 6)
    apply(net, trial=True)
    norm = net[1].block.branch[1]
    runs: list[int] = []

    def fail(*_: object) -> None:
        runs.append(1)
        if len(runs) == 2:
            raise KeyboardInterrupt

    hook, before = norm.register_forward_pre_hook(fail), norm.running_mean
    with pytest.raises(KeyboardInterrupt):
        net(x)
    hook.remove()
    size = sizes(net)[0]
    assert size.state is size.gap is size.ahead is size.catch is None
    assert norm.running_mean is before


def test_the_index_is_that_of_a_linear_ode() -> None:
    torch.manual_seed(1)
    a, h = torch.randn(3, 3), 0.1

    class Euler(nn.Module):
        """x + h A x by 1 x 1 convolutions and norms that do nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm1 = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3, eps=0.0)
            self.two, self.norm2 = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3, eps=0.0)
            with torch.no_grad():
                self.one.weight.copy_(h * a[:, :, None, None])
                self.two.weight.copy_(torch.eye(3)[:, :, None, None])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.norm2(self.two(self.norm1(self.one(x))))

    net, x = nn.Sequential(Euler(), Euler()).eval(), torch.randn(5, 3, 1, 1)
    found = stiffness(net, x)
    flat = x.flatten(1)
    for path in ("0", "1"):
        torch.testing.assert_close(found[path], h * (flat @ a.T).norm(dim=1) / flat.norm(dim=1), rtol=1e-4, atol=1e-6)
        flat = flat + h * flat @ a.T
    apply(net)
    for size in sizes(net):
        size.fixed = 0.5
    halved = stiffness(net, x)["0"]
    torch.testing.assert_close(halved, 0.5 * found["0"], rtol=1e-4, atol=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    torch.testing.assert_close(index_of(x, 2 * x), torch.full((5,), 2.0))


def test_where_the_shape_changes_attention_sees_the_branch_alone() -> None:
    torch.manual_seed(0)
    net = build(IMAGES)
    assert len(stiffness(net, torch.rand(4, 1, 8, 8))) == 1, "two of the three blocks change the shape"
    assert apply(net) == 3
    assert [size.kind for size in sizes(net)] == ["step", "se", "se"]
    assert net(torch.rand(4, 1, 8, 8)).shape == (4, 3)
    assert len(stiffness(net, torch.rand(4, 1, 8, 8))) == 1


def test_chosen_blocks_copies_and_states() -> None:
    net = network()
    assert apply(net, blocks=[1]) == 1
    assert isinstance(net[2], Stepped)
    assert not isinstance(net[1], Stepped)
    x, copied = torch.randn(3, 1, 6, 6), copy.deepcopy(net)
    assert torch.equal(copied(x), net(x))
    assert copied[2].size is not net[2].size
    assert copied[2].size in list(copied.modules())
    other = network()
    apply(other, blocks=[1])
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))


def test_misuse() -> None:
    with pytest.raises(TypeError, match="no residual step found"):
        apply(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)))
    with pytest.raises(TypeError, match="no residual step found"):
        stiffness(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2))
    for settings, told in (
        ({"kind": "big"}, "kind is 'big'"),
        ({"reduction": 0}, "reduction is 0"),
        ({"blocks": [5]}, "has 2: use 0"),
    ):
        with pytest.raises(ValueError, match=told):
            apply(network(), **settings)
    with pytest.raises(ValueError, match="no state"):
        StepSize(nn.Identity(), 4, "step", 4, False)(torch.zeros(1, 4, 2, 2))


def test_a_block_named_twice_is_changed_once_and_a_shared_norm_is_refused() -> None:
    net = network()
    assert apply(net, blocks=[0, 0]) == 1
    assert len(sizes(net)) == 1
    other = network()
    last = [name for name, m in other.named_modules() if isinstance(m, nn.BatchNorm2d)]
    other.set_submodule(last[-1], other.get_submodule(last[1]))  # the second block ends in the first one's norm
    kinds = [type(m) for m in other.modules()]
    with pytest.raises(ValueError, match="one norm stands at"):
        apply(other)
    assert [type(m) for m in other.modules()] == kinds


class PreActivation(nn.Module):
    """A block that begins with an activation, perhaps in place, by which the shortcut changes too."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        layers = [layer for _ in range(2) for layer in (nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4))]
        self.act, self.branch = nn.ReLU(inplace=inplace), nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(self.act(x))


@pytest.mark.parametrize("inplace", [False, True])
def test_blocks_that_begin_in_place(inplace: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), PreActivation(inplace), nn.Flatten(), nn.Linear(144, 3)).eval()
    x = torch.randn(5, 1, 8, 8)
    state = net[0](x).detach()
    kept, f = state.relu() if inplace else state, net[1].branch(state.relu())
    moved = (kept + f - state).flatten(1).norm(dim=1) / state.flatten(1).norm(dim=1)
    torch.testing.assert_close(stiffness(net, x)["1"], moved)
    branch = copy.deepcopy(net[1].branch)
    apply(net, trial=True)
    size, seen = sizes(net)[0], []
    size.look.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    found = net[1](state.clone())
    first, last = (size.look[:](u)[:, :, None, None] for u in seen[:2])
    gap = (branch((state + first * f).relu()) - f).abs().mean(dim=(2, 3))
    torch.testing.assert_close(seen[1][:, :4], state.mean(dim=(2, 3)))
    torch.testing.assert_close(seen[1][:, 12:], gap)
    torch.testing.assert_close(found, kept + last * f)


def test_the_index_takes_in_what_stands_behind_the_addition() -> None:
    net, x = build(IMAGES).eval(), torch.rand(4, 1, 8, 8)
    before = net.stem(x)
    after = net.stages[0](before)
    assert isinstance(net.stages[0].act2, nn.ReLU)
    expected = (after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
    torch.testing.assert_close(stiffness(net, x)["stages.0"], expected.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_channel_that_is_zero_is_no_infinite_stiffness(dtype: torch.dtype) -> None:
    net = network()
    apply(net)
    size = sizes(net)[0]
    state = torch.rand(2, 8, 3, 3)
    state[:, ::2] = 0  # as behind a ReLU
    with torch.no_grad():
        expected = net[1](state)
        known = size.last
        found = copy.deepcopy(net).to(dtype)[1](state.to(dtype))
    assert ((known > 0.01) & (known < 0.99)).all()
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_states_of_zero_have_a_finite_index() -> None:
    state, moved = torch.zeros(2, 3), torch.tensor([[0.0, 0, 0], [3.0, 4, 0]])
    torch.testing.assert_close(index_of(state, moved), torch.tensor([0.0, 5 / 1e-6]))
    torch.testing.assert_close(index_of(moved[1:], moved[1:] * 0.3), torch.tensor([0.3]))


class Branch(nn.Module):
    """Two convolutions and no shortcut: what a U-Net is made of, or the branch of a step."""

    def __init__(self) -> None:
        super().__init__()
        layers = [layer for _ in range(2) for layer in (nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8))]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Branch())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.body(x)).relu()


def test_blocks_that_add_nothing_are_no_steps() -> None:
    x = torch.rand(3, 1, 6, 6)
    plain = nn.Sequential(nn.Conv2d(1, 8, 3), Branch(), nn.Flatten(), nn.Linear(128, 3))
    with pytest.raises(TypeError, match="no residual step found"):
        apply(plain)
    with pytest.raises(TypeError, match="no residual step found"):
        stiffness(plain, x)
    mixed = nn.Sequential(nn.Conv2d(1, 8, 3), Branch(), Unit(), nn.Flatten(), nn.Linear(128, 3))
    with pytest.raises(TypeError, match=r"'1' adds nothing .* blocks=\[1\]"):
        apply(mixed, blocks=[0, 1])
    assert not any(isinstance(module, Stepped) for module in mixed.modules())
    assert list(stiffness(mixed, x)) == ["2"]
    assert apply(mixed) == 1  # a stem of two pairs is no step
    assert [path for path, module in mixed.named_modules() if isinstance(module, Stepped)] == ["2"]


def test_a_branch_of_its_own_belongs_to_the_module_that_adds_it() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), Around(), Around(), nn.Flatten(), nn.Linear(128, 3)).eval()
    x = torch.rand(3, 1, 6, 6)
    first = net[0](x)
    second = net[1](first)
    expected = (second - first).flatten(1).norm(dim=1) / first.flatten(1).norm(dim=1)
    found = stiffness(net, x)
    assert list(found) == ["1", "2"]
    torch.testing.assert_close(found["1"], expected)
    whole = net(x)
    assert apply(net) == 2
    for size in sizes(net):
        size.fixed = 1.0
    torch.testing.assert_close(net(x), whole)
    torch.testing.assert_close(stiffness(net, x)["1"], expected)
    for size in sizes(net):
        size.fixed = 0.0
    torch.testing.assert_close(net[1](first), first.relu())


class Merge(nn.Module):
    def forward(self, state: torch.Tensor, grown: torch.Tensor) -> torch.Tensor:
        return state + grown


STEPS = {
    "+": lambda own, x, f: x + f,
    "-": lambda own, x, f: x - f,
    "add": lambda own, x, f: torch.add(x, f, alpha=0.5),
    "lerp": lambda own, x, f: torch.lerp(x, f, 0.5),
    "a scale": lambda own, x, f: torch.addcmul(x, f, own.scale),
    "a stack": lambda own, x, f: torch.stack([x, f]).sum(dim=0),
    "a child that adds": lambda own, x, f: own.merge(x, f),
}
NONE = {
    "a product": lambda own, x, f: x * f,
    "a bias": lambda own, x, f: f + own.scale,
    "its own mean": lambda own, x, f: f - f.mean(dim=(2, 3), keepdim=True),
    "a shifted input": lambda own, x, f: own.f(x + 1),
}


@pytest.mark.parametrize("form", [*STEPS, *NONE])
def test_a_step_adds_two_things_that_come_from_the_state_in_whatever_form(form: str) -> None:
    class Form(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)
            self.second, self.end = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)
            self.merge, self.scale = Merge(), nn.Parameter(torch.ones(1))

        def f(self, x: torch.Tensor) -> torch.Tensor:
            return self.end(self.second(self.norm(self.first(x)).relu()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return {**STEPS, **NONE}[form](self, x, self.f(x)).relu()

    net = nn.Sequential(nn.Conv2d(1, 8, 3), Form(), nn.Flatten(), nn.Linear(128, 3))
    if form in STEPS:
        assert apply(net) == 1
    else:
        with pytest.raises(TypeError, match="no residual step found"):
            apply(net)
