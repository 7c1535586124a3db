"""Images: pixels (channels, height, width)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from probatum.recipe import Training
from probatum.rooms.kind import Kind, NamedSet, Toy

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from torch import Tensor, nn

    from probatum.spec import Spec


class Image(Kind):
    """Pictures of one size."""

    NAME = "image"
    ABOUT = "images, as a folder with a subfolder of .png or .jpg files a class, or arrays (n, channels, height, width)"
    ORDER = 40
    EXAMPLE = "digits"

    def options(self) -> type:
        """The size that files are brought to."""
        from probatum.kinds.image.options import Options

        return Options

    def sets(self) -> Mapping[str, NamedSet]:
        """Digits, and the sets of the folder of data."""
        from probatum.kinds.image.sets import sets

        return sets()

    def opens(self, door: Any) -> bool:
        """Folders, and arrays of four dimensions or of bytes."""
        if not door.asked(self):
            return False
        said = door.reading.modality != "auto"
        if door.arrays is not None:
            from probatum.kinds.image.read import looks_like_images

            return said or looks_like_images(door.arrays.x)
        return said or door.folder is not None

    def open(self, door: Any) -> Any:
        """Images in memory, or files that are decoded as they are used."""
        from probatum.kinds.image.read import from_arrays, from_folder

        return from_folder(door) if door.arrays is None else from_arrays(door.arrays, door.reading)

    def read_new(self, path: Any) -> Any:
        """The images of a folder or an .npz file, or the rows of a table, which are none."""
        from probatum.kinds.image.read import read_new

        return read_new(path)

    def fit(self, raw: Any) -> Any:
        """Shape and scale."""
        from probatum.kinds.image.encode import ImageEncoder

        return ImageEncoder.fit(raw)

    def restore(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
        """As it was saved."""
        from probatum.kinds.image.encode import ImageEncoder

        return ImageEncoder.from_state(meta, arrays)

    def describe(self, encoder: Any) -> dict[str, Any]:
        """Channels, height, width."""
        from probatum.kinds.image.encode import channel_names

        return {"shape": encoder.shape, "features": channel_names(encoder.shape[0])}

    def new_rows(self, encoder: Any, source: Any, exclude: Sequence[str] = ()) -> tuple[Any, pl.DataFrame]:
        """Images as an array; a row number stands beside them."""
        from probatum.kinds.image.read import new_rows

        return new_rows(encoder, source)

    def as_new(self, raw: Any) -> np.ndarray:
        """The pixels (n, channels, height, width)."""
        return raw.pixels

    def training(self, task: str) -> Training:
        """Chosen on validation rows of development seeds, see decisions/baselines.md."""
        return Training(epochs=20, least_steps=400, batch_size=64, lr=4e-3, weight_decay=1e-2)

    def network(self, spec: Spec) -> nn.Module:
        """Three residual stages."""
        from probatum.kinds.image.network import SmallResNet

        return SmallResNet(spec)

    def toy(self, hidden: Tensor, generator: Any) -> Toy:
        """Noise with two bright columns that tell the class."""
        from probatum.kinds.image.toy import toy

        return toy(hidden, generator)


KIND = Image()
