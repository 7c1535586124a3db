"""Readers: files and foreign data frames become Polars frames or NumPy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from probatum.errors import InputError

TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
SUFFIXES = (*TABLE_SUFFIXES, ".npz")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def read_rows(path: Path) -> pl.DataFrame | np.ndarray:
    """New rows: a table or text file as a frame, an .npz as its array of examples."""
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder; give a file ({', '.join(SUFFIXES)})")
    if path.suffix == ".npz":
        arrays = read_npz(path)
        for key in ("x", "X", "x_test", "data", "images"):
            if key in arrays:
                return arrays[key]
        raise InputError(f"{str(path)!r} holds {', '.join(arrays)}; name the array of examples x")
    return read_table(path)


def read_table(path: Path) -> pl.DataFrame:
    """A .csv, .tsv (also .gz) or .parquet file; CSV cells stay words, so that "null" in a text stays text."""
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            frame = pl.read_parquet(path)
        else:
            separator = "\t" if ".tsv" in name else ","
            frame = _read_csv(path, separator)
            if frame.width == 1 and ";" in frame.columns[0]:
                frame = _read_csv(path, ";")
    except pl.exceptions.NoDataError as error:
        raise InputError(f"{str(path)!r} is empty; give a file with a header and rows") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is not UTF-8; save it in that encoding") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{str(path)!r} cannot be read: {first}; check that every row has as many cells") from error
    if frame.height == 0:
        raise InputError(f"{str(path)!r} has a header but no rows")
    return frame


def _read_csv(path: Path, separator: str) -> pl.DataFrame:
    return pl.read_csv(path, separator=separator, infer_schema=False)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; raises InputError for files that need pickle."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}; save plain arrays with numpy.savez") from error


def class_folders(folder: Path) -> tuple[list[Path], list[str]]:
    """Image files and their classes (names of the subfolders), both in alphabetical order."""
    files, labels = [], []
    for inner in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        found = sorted(p for p in inner.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        files += found
        labels += [inner.name] * len(found)
    if not files:
        raise InputError(f"{str(folder)!r} holds no images; give one subfolder of .png or .jpg files a class")
    return files, labels


def read_images(files: list[Path], folder: Path, size: int | None) -> np.ndarray:
    """(n, height, width, channels) uint8, channels 1 if all are grey, else 3; `size` resizes to size x size.

    Raises InputError for a file that is no image, and for sizes that differ.
    """
    if not files:
        raise InputError(f"{str(folder)!r} holds no .png or .jpg files")
    images = [read_image(path, size) for path in files]
    for path, image in zip(files, images, strict=True):
        if image.size != images[0].size:
            (a, b), (c, d) = images[0].size, image.size
            raise InputError(
                f"image sizes differ: {str(files[0])!r} is {a} x {b}, {str(path)!r} is {c} x {d}; "
                "resize them, or pass size="
            )
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    stacked = np.stack([np.asarray(image.convert(mode)) for image in images])
    return stacked[..., None] if stacked.ndim == 3 else stacked


def read_image(path: Path, size: int | None) -> Any:
    """A Pillow image, grey ("L") or "RGB"; raises InputError for a file that is no image."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            kept = opened.convert(image_mode(opened))
    except OSError as error:
        raise InputError(f"{str(path)!r} is not a readable image; mend or remove it") from error
    return kept if size is None else kept.resize((size, size), Image.Resampling.BILINEAR)


def image_mode(image: Any) -> str:
    """The mode that a Pillow image is read in: "L" for grey ones, else "RGB"."""
    return "L" if image.mode in ("1", "L", "I", "I;16", "F") else "RGB"


def to_polars(source: Any) -> pl.DataFrame:
    """A pandas, Polars or other data frame (through Narwhals) as Polars; raises InputError for anything else."""
    if isinstance(source, pl.DataFrame):
        return source
    if isinstance(source, pl.LazyFrame):
        return source.collect()
    import narwhals as nw

    try:
        frame = nw.from_native(source, eager_only=True)
    except TypeError as error:
        raise InputError(
            f"cannot read data from {type(source).__name__}; give a name, a path, a data frame or arrays (X, y)"
        ) from error
    return pl.DataFrame([_column(series, str(series.name)) for series in frame.iter_columns()])


def _column(series: Any, name: str) -> pl.Series:
    import narwhals as nw

    if series.dtype.is_numeric() and series.null_count() == 0:
        return pl.Series(name, series.to_numpy())
    cells = [None if cell is None or cell != cell else cell for cell in series.to_list()]
    if series.dtype == nw.Categorical or series.dtype == nw.Enum or series.dtype == nw.String:
        return pl.Series(name, [None if c is None else str(c) for c in cells], dtype=pl.String)
    if series.dtype == nw.Object and not all(c is None or isinstance(c, (bool, int, float)) for c in cells):
        return pl.Series(name, [None if c is None else str(c) for c in cells], dtype=pl.String)
    return pl.Series(name, cells, strict=False)
