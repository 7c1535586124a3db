"""What is asked when images are read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Images in files.

    Attributes:
        size: height and width to which the images of a folder are resized.
    """

    size: int | None = None
