"""The prototype autoencoder against its definition (arXiv:1710.04806)."""

from __future__ import annotations

import copy
import doctest

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.tools import accuracy, fit
from probatum.data.open import open_dataset
from probatum.numerics.images.codes import halvings
from probatum.recipe import Training
from probatum.spec import Spec
from probatum.techniques.model.images import prototype_autoencoder
from probatum.techniques.model.images.prototype_autoencoder import (
    Deform,
    PrototypeAutoencoder,
    build,
    elastic,
    explain,
    prototype_report,
    squared_distances,
)

pytestmark = pytest.mark.fast

SPEC = Spec("image", "classes", (1, 8, 8), 3)


def batch(n: int = 30) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)


def model(**settings: float) -> PrototypeAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(SPEC, **{"prototypes": 6, "width": 8, "deform": 0.0} | settings)


def test_distances_equal_cdist() -> None:
    generator = torch.Generator().manual_seed(1)
    z, p = torch.randn(40, 12, generator=generator), torch.randn(7, 12, generator=generator)
    torch.testing.assert_close(squared_distances(z, p), torch.cdist(z, p).square(), atol=1e-5, rtol=1e-5)
    near = 1e3 + 1e-4 * z
    assert float(squared_distances(near, near).min()) >= 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_distances_in_half_precision_are_those_of_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    z, p = (torch.rand(n, 40, generator=generator).to(dtype) for n in (30, 6))
    found = squared_distances(z, p)
    assert found.dtype == dtype
    expected = (z.double()[:, None] - p.double()).square().sum(dim=2)
    torch.testing.assert_close(found.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


def test_logits_depend_on_distances_alone() -> None:
    net = model(prototypes=5).eval()
    z = net.encoder(batch()[0]).double()
    p = net.prototypes.double()
    basis = torch.linalg.qr((p[1:] - p[0]).T).Q  # directions the prototypes span
    inside = p[0] + (z - p[0]) @ basis @ basis.T
    mirrored = 2 * inside - z
    assert float((mirrored - z).detach().norm(dim=1).min()) > 0.1
    head = net.head.weight.double()
    torch.testing.assert_close(squared_distances(mirrored, p) @ head.T, squared_distances(z, p) @ head.T)


def test_objective_by_hand() -> None:
    net, (x, y) = model(class_weight=2.0, reconstruction=3.0, near_example=5.0, near_prototype=7.0), batch()
    output = net(x)
    code = net.encoder(x)
    d = torch.stack([torch.stack([(z - p).square().sum() for p in net.prototypes]) for z in code])
    expected = 2 * F.cross_entropy(d @ net.head.weight.T, y)
    expected = expected + 3 * sum((net.decoder(code)[i] - x[i]).square().sum() for i in range(len(x))) / len(x)
    expected = expected + 5 * d.amin(0).mean() + 7 * d.amin(1).mean()
    torch.testing.assert_close(net.objective(x, output, y, F.cross_entropy), expected)


def test_without_the_extra_terms_it_trains_like_a_plain_distance_head() -> None:
    net, (x, y) = model(class_weight=1.0, reconstruction=0.0, near_example=0.0, near_prototype=0.0), batch()
    encoder, head = copy.deepcopy(net.encoder), copy.deepcopy(net.head)
    prototypes = nn.Parameter(net.prototypes.detach().clone())
    ours = torch.optim.SGD(net.parameters(), lr=0.1)
    theirs = torch.optim.SGD([*encoder.parameters(), *head.parameters(), prototypes], lr=0.1)
    for _ in range(4):
        for optimizer, loss in (
            (ours, lambda: net.objective(x, net(x), y, F.cross_entropy)),
            (theirs, lambda: F.cross_entropy(head(squared_distances(encoder(x), prototypes)), y)),
        ):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    assert torch.equal(net.prototypes, prototypes)
    assert torch.equal(net.head.weight, head.weight)
    assert all(torch.equal(a, b) for a, b in zip(net.encoder.parameters(), encoder.parameters(), strict=True))


def test_gradients_of_the_distance_head() -> None:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    p = torch.randn(2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(squared_distances, (z, p))


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (9, 13), (7, 5)])
def test_the_decoder_gives_images_of_the_input_s_size(size: tuple[int, int]) -> None:
    net = build(Spec("image", "classes", (3, *size), 2), prototypes=4, width=4)
    x = torch.rand(12, 3, *size, generator=torch.Generator().manual_seed(3))
    assert net(x).decoded.shape == x.shape
    assert net.prototype_images().shape == (4, 3, *size)


def test_the_paper_s_sizes() -> None:
    assert halvings(28, 28) == [(28, 28), (14, 14), (7, 7), (4, 4), (2, 2)]
    net = build(Spec("image", "classes", (1, 28, 28), 10), act="sigmoid")
    assert net.prototypes.shape == (15, 40)
    assert [m.out_channels for m in net.encoder if isinstance(m, nn.Conv2d)] == [32, 32, 32, 10]


def test_elastic_deformation() -> None:
    x, _ = batch()
    state = torch.get_rng_state()
    first, second = (elastic(x, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(elastic(x, torch.Generator(), 0.0), x, atol=1e-5, rtol=0)
    weak, strong = (float((elastic(x, torch.Generator().manual_seed(4), s) - x).abs().mean()) for s in (0.5, 2.0))
    assert 0 < weak < strong
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1


@pytest.mark.parametrize("strength", [1.0, 1.7])
def test_elastic_deformation_is_that_of_scipys_filters(strength: float) -> None:
    x = torch.rand(2, 1, 12, 10, generator=torch.Generator().manual_seed(5))
    found = elastic(x, torch.Generator().manual_seed(6), strength)
    sigma, alpha, reach = 4 * 10 / 28, 20 * (10 / 28) ** 2 * strength, 5  # three sigmas, rounded up
    draws = 2 * torch.rand(4, 1, 12, 10, generator=torch.Generator().manual_seed(6)) - 1
    smooth = [ndimage.gaussian_filter(d[0].numpy(), sigma, mode="constant", truncate=reach / sigma) for d in draws]
    rows, columns = np.mgrid[:12, :10].astype(float)
    for n in range(2):
        places = [rows + alpha * smooth[2 * n + 1], columns + alpha * smooth[2 * n]]
        expected = ndimage.map_coordinates(x[n, 0].numpy(), places, order=1, mode="nearest")
        torch.testing.assert_close(found[n, 0], torch.from_numpy(expected), atol=1e-4, rtol=1e-4)


def test_every_batch_is_deformed_anew() -> None:
    x, _ = batch()
    deform = Deform().train()
    assert not torch.equal(deform(x), deform(x))


def test_the_clean_image_is_reconstructed_from_the_deformed_one() -> None:
    net, (x, y) = model(deform=2.0, class_weight=0.0, near_example=0.0, near_prototype=0.0), batch()
    stream = net.deform.stream.clone()
    output = net(x)
    generator = torch.Generator()
    generator.set_state(stream)
    deformed = elastic(x, generator, 2.0)
    torch.testing.assert_close(output.code, net.encoder(deformed))
    expected = (net.decoder(net.encoder(deformed)) - x).square().flatten(1).sum(1).mean()
    torch.testing.assert_close(net.objective(x, output, y, F.cross_entropy), expected)


def test_deformation_resumes_from_the_state_dict() -> None:
    x, _ = batch()
    first = Deform()
    first(x)
    second = Deform()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    assert torch.equal(first.eval()(x), x)


def test_bank_lengthens_the_batch_of_r1() -> None:
    settings = {"class_weight": 0.0, "reconstruction": 0.0, "near_prototype": 0.0}
    net, (x, y) = model(bank=30, **settings), batch()
    first = net.objective(x[:15], net(x[:15]), y[:15], F.cross_entropy)
    torch.testing.assert_close(first, net(x[:15]).distances.amin(0).mean())
    second = net.objective(x[15:], net(x[15:]), y[15:], F.cross_entropy)
    torch.testing.assert_close(second, net(x).distances.amin(0).mean())
    with pytest.warns(UserWarning, match="batch of 4 for 6 prototypes"):
        model(**settings).objective(x[:4], model()(x[:4]), y[:4], F.cross_entropy)


def test_explanations() -> None:
    net, (x, _) = model().eval(), batch()
    with torch.no_grad():
        net.head.weight.copy_(torch.eye(3).repeat(1, 2).neg())
        net.prototypes[4] = net.encoder(x[7:8])[0]
    found = explain(net, x[:10], k=2)
    assert found.index[7, 0] == 4
    assert float(found.distances[7, 0]) < 1e-5
    assert found.classes[7, 0] == 1  # column 4 is most negative at class 1
    torch.testing.assert_close(found.weights[7, 0], torch.tensor([0.0, -1.0, 0.0]))
    torch.testing.assert_close(found.images[7, 0], net.decoder(net.encoder(x[7:8]))[0].detach())
    with pytest.raises(ValueError, match="k is 7"):
        explain(net, x, k=7)


def test_report_names_dead_and_twin_prototypes() -> None:
    net, (x, _) = model().eval(), batch()
    with torch.no_grad():
        net.prototypes[:4] = net.encoder(x[:4])
        net.prototypes[4] = net.prototypes[0] + 1e-3
        net.prototypes[5] = 50.0
    found = prototype_report(net, x, alike=0.002)
    assert 5 in found["dead"]
    assert (0, 4) in found["alike"]
    assert sum(found["examples"]) == len(x)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="prototypes is 2; with 3 classes"):
        build(SPEC, prototypes=2)
    net, (x, y) = model(), batch()
    with pytest.raises(ValueError, match=r"scale to \[0, 1\]"):
        net.objective(255 * x, net(255 * x), y, F.cross_entropy)
    with pytest.raises(ValueError, match=r"scale to \[0, 1\]"):
        net.objective(x * float("nan"), net(x), y, F.cross_entropy)
    with pytest.raises(TypeError, match=r"call model\.train"):
        net.objective(x, net.eval()(x), y, F.cross_entropy)
    for setting, value in (("class_weight", -1.0), ("deform", -0.5), ("bank", -1), ("act", "tanh"), ("width", 0)):
        with pytest.raises(ValueError, match=f"{setting} is {value!r}"):
            build(SPEC, **{"prototypes": 6, setting: value})


def test_trains_on_the_bench() -> None:
    data = open_dataset("digits").prepare(1)
    run = fit("prototype-autoencoder(width=16)", data, 1, training=Training(epochs=15, lr=1e-2))
    assert accuracy(run.model, data.test) > 0.8
    again = build(data.spec, width=16).eval()
    again.load_state_dict(run.model.state_dict())
    assert torch.equal(again(data.test.x), run.model(data.test.x))


def test_example() -> None:
    assert doctest.testmod(prototype_autoencoder).failed == 0


def test_images_outside_the_range_are_told_with_it_at_any_batch() -> None:
    net, (x, y) = model().train(), batch()
    net.objective(x, net(x), y, F.cross_entropy)
    for wrong, words in ((x * 255, "to 2"), (x - 3, "from -3|from -2"), (torch.full_like(x, float("nan")), "nan")):
        with pytest.raises(ValueError, match=words):
            net.objective(wrong, net(x), y, F.cross_entropy)
        net.objective(x, net(x), y, F.cross_entropy)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
def test_a_step_on_an_accelerator_does_not_wait() -> None:
    net, (x, y) = model().train().cuda(), (part.cuda() for part in batch())
    net.objective(x, net(x), y, F.cross_entropy)
    torch.cuda.set_sync_debug_mode("error")
    try:
        net._check_range(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
