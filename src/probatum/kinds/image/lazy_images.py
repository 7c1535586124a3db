"""A folder of images larger than memory: decoded as they are asked for, ahead of training in worker processes."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from probatum.data.dataset import Dataset, make_dataset
from probatum.data.lazy.memory import Sizes, told
from probatum.data.lazy.rows import LazyRows
from probatum.data.lazy.scan import mix, salt_of, units_of
from probatum.data.pipeline import pipeline_from
from probatum.data.read import image_mode, read_image
from probatum.data.target import Target
from probatum.errors import InputError
from probatum.kinds.image.encode import ImageEncoder, RawImages, channel_names, raw_images
from probatum.spec import Data

WORKERS = 4
AHEAD = 4
"""Batches that every worker process decodes before they are asked for."""
BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Images that stay in their files.

    Attributes:
        files: one image each.
        resize: height and width they are resized to, or None.
        mode: Pillow's mode all are read in, "L" or "RGB".
        shape: height, width, channels of every image.
        keys: (n, 16) bytes; files with equal bytes have equal keys.
        sizes: what may be held at a time.
    """

    files: tuple[Path, ...]
    resize: int | None
    mode: str
    shape: tuple[int, int, int]
    keys: np.ndarray = field(repr=False)
    sizes: Sizes
    streamed: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.files)

    @property
    def whole(self) -> float:
        """Bytes of all images, encoded."""
        return images_size(len(self), self.shape)

    @property
    def opened_with(self) -> int:
        """A limit in bytes with which the files are opened as they are now."""
        return min(self.sizes.grain, int(self.whole / 2))

    def prepared(self, dataset: Any, parts: Sequence[np.ndarray], seed: int) -> Data:
        """The split encoded: x of every part is a `probatum.spec.Rows`; shape and scale are read off a few training rows."""
        encoder = ImageEncoder.fit(self.take(self.sample(parts[0], seed)))
        pipeline = pipeline_from(dataset.kind, encoder, dataset.targets, parts[0])
        train, valid, test = (dataset.with_targets(pipeline, rows, self.rows(encoder, rows)) for rows in parts)
        return Data(pipeline.spec, train, valid, test, pipeline)

    def take(self, rows: np.ndarray) -> RawImages:
        """The rows with these numbers, in memory; raises InputError where they would not fit."""
        size = images_size(len(rows), self.shape)
        if size > self.sizes.most:
            raise InputError(
                f"{len(rows)} images take {told(size)}, and they are streamed because memory is limited; take fewer, "
                "or raise memory= (--memory, PROBATUM_MEMORY)"
            )
        return raw_images(stacked([self.files[row] for row in rows], self.resize, self.mode))

    def digest(self, sha: hashlib._Hash) -> None:
        """Feed size, mode and the digests of the files to a hash."""
        sha.update(json.dumps(["streamed", self.resize, self.mode, self.shape]).encode())
        sha.update(self.keys.tobytes())

    def describe(self) -> list[dict[str, Any]]:
        """Name and kind of each channel."""
        return [
            {"name": name, "kind": "channel", "missing": 0, "n_unique": None} for name in channel_names(self.shape[2])
        ]

    def sample(self, train: np.ndarray, seed: int) -> np.ndarray:
        """Training rows the encoder is fitted on: one, since it keeps but size and scale."""
        return train[:1]

    def rows(self, encoder: ImageEncoder, rows: np.ndarray) -> Tensor:
        """These rows as a `probatum.spec.Rows`."""
        return cast(Tensor, ImageRows(self, encoder, rows))


class ImageRows(LazyRows):
    """Encoded images of one part, decoded by worker processes for announced batches and for slices from first to last."""

    def __init__(self, raw: StreamedImages, encoder: ImageEncoder, rows: np.ndarray) -> None:
        height, width, channels = raw.shape
        super().__init__(
            (len(rows), *encoder.shape), max(raw.sizes.most, 1024 * 4 * height * width * channels), raw.whole
        )
        self._raw, self._encoder = raw, encoder
        self._rows = rows
        self._chunk = max(1, raw.sizes.piece // (height * width * channels))
        self._coming: Sequence[Tensor] = ()
        self._next = self._end = 0
        self._loader: Iterator[Any] | None = None

    def ahead(self, batches: Sequence[Tensor]) -> None:
        """Decode these batches ahead in worker processes."""
        self.close()
        self._coming = batches
        self._start()

    def read_index(self, index: Tensor) -> Tensor:
        """Images of the announced batch from the workers; others are decoded here."""
        if self._next < len(self._coming) and self._coming[self._next] is index:
            self._next += 1
            return self._encode(self._from_workers(index))
        return self._encode(self._decode(index))

    def read_slice(self, first: int, last: int) -> Tensor:
        """Images first .. last - 1; slices that follow one another come from the workers."""
        if first == last:
            return torch.empty((0, *self.shape[1:]))
        if self._loader is None and not self._coming and first == self._end > 0 and last < len(self):
            step = last - first
            bounds = [(a, min(len(self), a + step)) for a in range(first, len(self), step)]
            self._coming = [part for a, b in bounds for part in torch.arange(a, b).split(self._chunk)]
            self._next = 0
            self._start()
        out = []
        for index in torch.arange(first, last).split(self._chunk):
            due = self._coming[self._next] if self._next < len(self._coming) else None
            if due is not None and torch.equal(due, index):
                self._next += 1
                out.append(self._from_workers(index))
            else:
                out.append(self._decode(index))
        self._end = last
        found = self._encode(np.concatenate(out))
        if last == len(self) and self._next == len(self._coming):
            self.close()
        return found

    def close(self) -> None:
        """Stop the worker processes."""
        self._loader = None  # the iterator ends its processes when it goes
        self._coming, self._next, self._end = (), 0, 0

    def _start(self) -> None:
        pictures = _Pictures([str(self._raw.files[row]) for row in self._rows], self._raw.resize, self._raw.mode)
        loader: DataLoader[Any] = DataLoader(
            cast(Any, pictures),
            batch_sampler=_Lists(self._coming),
            num_workers=min(WORKERS, _processors()),
            prefetch_factor=AHEAD,
            collate_fn=_same,
            generator=torch.Generator(),  # its own, so that the global random state stays as it is
        )
        self._loader = iter(loader)

    def _from_workers(self, index: Tensor) -> np.ndarray:
        if self._loader is None:
            return self._decode(index)
        try:
            found = next(self._loader)
        except (RuntimeError, OSError) as error:
            said = str(error).splitlines()[0]
            warnings.warn(
                f"a process that decodes images ended ({said}); going on without", RuntimeWarning, stacklevel=2
            )
            self._loader = None
            return self._decode(index)
        if isinstance(found, str):
            self.close()
            raise InputError(found)
        return found

    def _decode(self, index: Tensor) -> np.ndarray:
        files = [self._raw.files[row] for row in self._rows[index.numpy()]]
        return stacked(files, self._raw.resize, self._raw.mode)

    def _encode(self, pixels: np.ndarray) -> Tensor:
        return self._encoder.encode(raw_images(pixels))


class _Pictures:
    """What the worker processes decode: a batch of positions -> pixels, or the words that say what is wrong."""

    def __init__(self, files: list[str], resize: int | None, mode: str) -> None:
        self.files = np.array(files)  # one object: a list would be copied into every worker as its counts are touched
        self.resize, self.mode = resize, mode

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, rows: list[int]) -> np.ndarray | str:
        try:
            return stacked([Path(str(self.files[row])) for row in rows], self.resize, self.mode)
        except InputError as problem:
            return str(problem)


class _Lists:
    """Batches as lists, made one at a time."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def stacked(files: Sequence[Path], resize: int | None, mode: str) -> np.ndarray:
    """(n, height, width, channels) uint8 of these files; raises InputError that names one that is no image."""
    images = [np.asarray(read_image(path, resize).convert(mode)) for path in files]
    for path, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise InputError(f"{str(path)!r} has changed its size since the folder was opened; open it again")
    found = np.stack(images)
    return found[..., None] if found.ndim == 3 else found


def look(files: Sequence[Path], resize: int | None) -> tuple[tuple[int, int, int], str]:
    """Height, width and channels of these images and the mode they are read in, from their headers alone.

    Raises InputError for a file that is no image, and for sizes that differ.
    """
    from PIL import Image

    first, grey = None, True
    for path in files:
        try:
            with Image.open(path) as opened:
                size = opened.size if resize is None else (resize, resize)
                grey = grey and image_mode(opened) == "L"
        except OSError as error:
            raise InputError(f"{str(path)!r} is not a readable image; mend or remove it") from error
        first = first or size
        if size != first:
            raise InputError(
                f"image sizes differ: {str(files[0])!r} is {first[0]} x {first[1]}, {str(path)!r} is "
                f"{size[0]} x {size[1]}; resize them, or pass size="
            )
    if first is None:
        raise InputError("there are no images; give .png or .jpg files")
    return (first[1], first[0], 1 if grey else 3), "L" if grey else "RGB"


def file_keys(files: Sequence[Path]) -> np.ndarray:
    """(n, 16) uint8: a digest of each file's bytes."""
    keys = np.empty((len(files), 16), dtype=np.uint8)
    for row, path in enumerate(files):
        sha = hashlib.blake2b(digest_size=16)
        try:
            with path.open("rb") as opened:
                while block := opened.read(BLOCK):
                    sha.update(block)
        except OSError as error:
            raise InputError(f"{str(path)!r} cannot be read: {error}") from error
        keys[row] = np.frombuffer(sha.digest(), dtype=np.uint8)
    return keys


def images_size(n: int, shape: tuple[int, int, int]) -> float:
    """Bytes of n images in memory: 1 a pixel and channel as read, 4 encoded."""
    return 5.0 * n * shape[0] * shape[1] * shape[2]


def _same(batch: Any) -> Any:
    return batch


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stream_images(
    files: Sequence[Path], size: int | None, limit: float, values: Target, name: str, given: np.ndarray | None
) -> Dataset | None:
    """A dataset of images that stay in their files; None where they fit in memory.

    Every header is looked at; files with equal bytes count as duplicates.
    """
    first, _ = look(files[:1], size)
    if images_size(len(files), (*first[:2], 3)) <= limit:
        return None
    shape, mode = look(files, size)
    whole = images_size(len(files), shape)
    if whole <= limit:
        return None
    keys = file_keys(files)
    raw = StreamedImages(tuple(files), size, mode, shape, keys, Sizes.of(limit))
    labels = np.ascontiguousarray(values.values, dtype=np.int64).view(np.uint64)
    hashes = mix(keys[:, :8].copy().view(np.uint64)[:, 0], 0) + mix(labels, salt_of(values.names[0]))
    notices = [f"{told(whole)} in memory: images are decoded as they are used"]
    return make_dataset(
        name, "image", raw, values, values.names[0], given=given, notices=notices, units=units_of(hashes)
    )
