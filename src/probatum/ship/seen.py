"""Which rows a shipped model was made from, as hashes: an audit must not take them for unseen ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from probatum.data.stored import read_tensors
from probatum.rooms.kind import kind_of
from probatum.spec import Data, Part

FILE = "seen.safetensors"


def row_hashes(x: Tensor, text: Sequence[str] | None = None) -> Tensor:
    """One int64 for each encoded row (n, ...), of its raw text where there is one; equal rows have equal numbers."""
    rows = x.detach().cpu().contiguous()
    values = (row.encode() for row in text) if text is not None else (row.tobytes() for row in rows.numpy())
    found = [int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little", signed=True) for row in values]
    return torch.tensor(found, dtype=torch.int64)


def save_seen(data: Data, folder: Path) -> bool:
    """Write the hashes of training and validation rows; False where they stay on disk (streamed) or are tokens."""
    parts = {"train": data.train, "valid": data.valid}
    windows = not kind_of(data.spec.modality, data.spec.task).ROWS
    if windows or not all(isinstance(part.x, Tensor) for part in parts.values()):
        return False
    save_file({name: row_hashes(part.x, part.text) for name, part in parts.items()}, folder / FILE)
    return True


def seen_rows(folder: Path, part: Part) -> np.ndarray | None:
    """Which rows of a part (n,) bool a shipped folder's model was made from; None where the folder does not say."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    known = torch.cat(list(read_tensors(path).values()))
    return torch.isin(row_hashes(part.x, part.text), known).numpy()
