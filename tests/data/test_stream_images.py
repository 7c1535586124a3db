"""Image folders streamed through worker processes beside the same folders in memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from probatum.data import open_dataset
from probatum.data.dataset import Dataset
from probatum.data.lazy.rows import TooLarge
from probatum.errors import InputError
from probatum.settings import Reading
from processes import PATIENCE

CLASSES = ("cat", "dog")


def fill(folder: Path, n: int = 60, side: int = 12, mode: str = "RGB") -> Path:
    rng = np.random.default_rng(0)
    for kind in CLASSES:
        (folder / kind).mkdir(parents=True)
        for number in range(n // len(CLASSES)):
            pixels = rng.integers(0, 256, (side, side, 3) if mode == "RGB" else (side, side), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{number:03d}.png")
    (folder / "cat" / "copy.png").write_bytes((folder / "cat" / "000.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def nothing_left():  # type: ignore[no-untyped-def]
    yield
    for process in multiprocessing.active_children():  # they have been told to end
        process.join(PATIENCE)
    assert not multiprocessing.active_children()


def both(folder: Path, size: int | None = None) -> tuple[Dataset, Dataset]:
    resident, streamed = (
        open_dataset(folder, Reading(options={"size": size})),
        open_dataset(folder, Reading(memory=1000, options={"size": size})),
    )
    assert not resident.streamed
    assert streamed.streamed
    return resident, streamed


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_streamed_images_are_the_images_in_memory(tmp_path: Path, size: int | None, mode: str) -> None:
    resident, streamed = both(fill(tmp_path / "set", mode=mode), size)
    assert streamed.notices[1:] == resident.notices
    assert streamed.notices[0].endswith("images are decoded as they are used")
    assert streamed.summary()["split"] == resident.summary()["split"]
    state = torch.random.get_rng_state()
    a, b = resident.prepare(1), streamed.prepare(1)
    assert a.spec == b.spec
    for name in ("train", "valid", "test"):
        mine, theirs = getattr(a, name), getattr(b, name)
        assert torch.equal(mine.rows, theirs.rows)
        assert torch.equal(mine.y, theirs.y)
        slices = [theirs.x[i : i + 5] for i in range(0, len(theirs), 5)]
        assert torch.equal(mine.x, torch.cat(slices))
        theirs.x.close()
    assert torch.equal(state, torch.random.get_rng_state())


def test_batches_come_from_the_workers_in_order(folder: Path) -> None:
    resident, streamed = (dataset.prepare(0).train.x for dataset in both(folder))
    order = streamed.order(torch.Generator().manual_seed(3))  # type: ignore[attr-defined]
    assert torch.equal(order, torch.randperm(len(resident), generator=torch.Generator().manual_seed(3)))
    batches = list(order.split(7))
    state = torch.random.get_rng_state()
    for _ in range(2):
        streamed.ahead(batches)  # type: ignore[attr-defined]
        assert multiprocessing.active_children()
        for batch in batches:
            assert torch.equal(streamed[batch], resident[batch])
            assert torch.equal(streamed[batch.flip(0)], resident[batch.flip(0)])
    assert torch.equal(state, torch.random.get_rng_state())
    streamed.ahead(batches)  # type: ignore[attr-defined]
    assert torch.equal(streamed[batches[0]], resident[batches[0]])
    streamed.close()  # type: ignore[attr-defined]
    assert torch.equal(streamed[batches[1]], resident[batches[1]])


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set")
    broken = folder / "dog" / "005.png"
    streamed = open_dataset(folder, Reading(memory=1000))
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])  # its header is still right
    data = streamed.prepare(0)
    part = next(p for p in (data.train, data.valid, data.test) if any(streamed.raw.files[r] == broken for r in p.rows))  # type: ignore[union-attr]
    batches = list(torch.arange(len(part)).split(4))
    part.x.ahead(batches)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"dog/005\.png' is not a readable image"):
        [part.x[batch] for batch in batches]
    with pytest.raises(InputError, match=r"dog/005\.png' is not a readable image"):
        [part.x[i : i + 3] for i in range(0, len(part), 3)]
    part.x.close()  # type: ignore[attr-defined]
    broken.write_bytes(b"no image at all")
    with pytest.raises(InputError, match=r"dog/005\.png' is not a readable image"):
        open_dataset(folder, Reading(memory=1000))


def test_images_of_other_sizes_are_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set")
    Image.fromarray(np.zeros((5, 9, 3), dtype=np.uint8)).save(folder / "dog" / "odd.png")
    with pytest.raises(InputError, match=r"000\.png' is 12 x 12, .*odd\.png' is 9 x 5"):
        open_dataset(folder, Reading(memory=1000))
    assert open_dataset(folder, Reading(memory=1000, options={"size": 6})).prepare(0).spec.shape == (3, 6, 6)


def test_killed_workers_are_survived(folder: Path) -> None:
    resident, streamed = (dataset.prepare(0).train.x for dataset in both(folder))
    batches = list(torch.arange(len(resident)).split(1))
    streamed.ahead(batches)  # type: ignore[attr-defined]
    assert torch.equal(streamed[batches[0]], resident[batches[0]])
    found, said = [], ""
    workers = multiprocessing.active_children()
    steps = [lambda worker=worker: os.kill(worker.pid or 0, signal.SIGKILL) for worker in workers]
    steps += [lambda worker=worker: worker.join(PATIENCE) for worker in workers]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in (*steps, *(lambda batch=batch: found.append(streamed[batch]) for batch in batches[1:])):
            try:
                step()
            except RuntimeError as problem:  # torch tells the death of a worker wherever the main thread then is
                said = str(problem)
                step()
    assert torch.equal(torch.cat(found), resident[1:])
    assert said or any("decodes images ended" in str(warning.message) for warning in caught)
    streamed.close()  # type: ignore[attr-defined]


def test_too_many_images_at_once_are_refused(folder: Path) -> None:
    x = open_dataset(folder, Reading(memory=1000)).prepare(0).train.x
    with pytest.raises(TooLarge, match="as a whole"):
        x.mean()
    x._most = 10_000  # type: ignore[attr-defined]
    with pytest.raises(TooLarge, match="30 of"):
        x[:30]
