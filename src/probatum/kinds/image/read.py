"""Arrays, .npz files and folders as images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from probatum.data.arrays import Arrays, given_rows
from probatum.data.dataset import Dataset, make_dataset
from probatum.data.joined import parts_of
from probatum.data.read import IMAGE_SUFFIXES, class_folders, read_images, read_rows
from probatum.data.target import read_target
from probatum.errors import InputError
from probatum.kinds.image.encode import ImageEncoder, RawImages, raw_images
from probatum.kinds.image.lazy_images import stream_images
from probatum.settings import Reading


def looks_like_images(x: Any) -> bool:
    """Whether an array has four dimensions, or three and holds bytes."""
    dimensions = getattr(x, "ndim", 0)
    return dimensions == 4 or (dimensions == 3 and x.dtype == np.uint8)


def from_arrays(arrays: Arrays, reading: Reading) -> Dataset:
    """Images from (n, height, width), (n, channels, height, width) or (n, height, width, channels)."""
    values = arrays.targets(reading.task, small_integers=True)
    raw = raw_images(arrays.numbers("image"))
    return make_dataset(arrays.name, "image", raw, values, arrays.target, given=arrays.given)


def from_folder(door: Any) -> Dataset:
    """Images from a folder with a subfolder a class; decoded as they are used where they take too much memory."""
    if door.folder is None:
        raise InputError("images come as arrays, .npz files or folders, not as data frames")
    said, size = door.reading, door.options.get("size")
    files, labels = class_folders(door.folder)
    given = None if said.split is None else given_rows(said.split, len(files))
    if door.test is not None:
        if door.test.folder is None:
            raise InputError(
                f"the data are a folder of images, and the test rows are not; give a folder ({door.test.told})"
            )
        more, theirs = class_folders(door.test.folder)
        given, files, labels = parts_of(len(files), len(more)), files + more, labels + theirs
    values = read_target(labels, said.target or "class", "classes")
    streamed = stream_images(files, size, door.limit, values, door.name, given)
    if streamed is not None:
        return streamed
    pixels = read_images(files, door.folder, size)
    return make_dataset(door.name, "image", raw_images(pixels), values, values.names[0], given=given)


def read_new(path: Path) -> Any:
    """New images: all files below a folder, or the array of an .npz file."""
    if not path.is_dir():
        return read_rows(path)
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    return read_images(files, path, None)


def new_rows(encoder: ImageEncoder, source: Any) -> tuple[RawImages, pl.DataFrame]:
    """New images, and their numbers as a frame."""
    if not isinstance(source, np.ndarray):
        raise InputError(f"new images come as {type(source).__name__}; give an array, an .npz file or a folder")
    raw = encoder.read(source)
    return raw, pl.DataFrame({"row": np.arange(len(raw))})
