"""How much memory data may take before they are streamed from disk, and how large the pieces then are."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from probatum.errors import InputError

VARIABLE = "PROBATUM_MEMORY"
SHARE = 4
"""Without a limit data may take one part in so many of what is free: reading and encoding make copies."""
UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
SIZE = re.compile(r"^([0-9]*\.?[0-9]+)\s*([kmgt]?i?b)?$", re.IGNORECASE)
MEBIBYTE = 2**20
LARGEST = 2**30
UNKNOWN_MACHINE = 4e9


def memory_limit(memory: float | str | None) -> float:
    """Bytes that decoded data may take: the given limit, else PROBATUM_MEMORY, else a quarter of what is free.

    Raises InputError for anything but a positive number of bytes or words such as 2GB.
    """
    if memory is not None:
        return as_bytes(memory, "memory")
    named = os.environ.get(VARIABLE, "").strip()
    return as_bytes(named, VARIABLE) if named else available() / SHARE


def available() -> float:
    """Bytes of memory that are free, or can be freed, on this machine; 4 GB where it does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) / 2
    except (AttributeError, OSError, ValueError):
        return UNKNOWN_MACHINE


def told(size: float) -> str:
    """Bytes as people write them: 5.0 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"


def as_bytes(size: float | str, what: str) -> float:
    """A size as bytes; InputError, by the name of what it is for, where it is none."""
    number = 0.0
    if isinstance(size, str):
        match = SIZE.match(size.strip())
        if match:
            number = float(match[1]) * UNITS[(match[2] or "b").lower()]
    elif not isinstance(size, bool):
        number = float(size)
    if not 0 < number < float("inf"):
        raise InputError(f"{what} is {size!r}; give a number of bytes above 0, or words such as 500MB or 2GB")
    return number


@dataclass(frozen=True)
class Sizes:
    """Sizes of what is held at one time while data are streamed, all from the memory limit.

    `grain` is the limit rounded down to a power of two, between 8 MiB and 1 GiB: so the same sizes, and with them the
    same order of visits, come from limits that differ a little, as that of a machine does from hour to hour.
    """

    grain: int

    @classmethod
    def of(cls, limit: float) -> Sizes:
        """The sizes for a limit in bytes."""
        grain = 8 * MEBIBYTE
        while grain * 2 <= min(limit, LARGEST):
            grain *= 2
        return cls(grain)

    @property
    def window(self) -> int:
        """Bytes of encoded rows that are mixed with one another; two windows are held, one in use and one read ahead."""
        return self.grain // 16

    @property
    def piece(self) -> int:
        """Bytes of cells decoded at a time."""
        return max(2 * MEBIBYTE, self.grain // 64)

    @property
    def most(self) -> int:
        """Bytes of encoded rows that may be asked for at once."""
        return max(2 * self.window, 16 * MEBIBYTE)

    def fit_rows(self, columns: int) -> int:
        """Training rows that the pipeline is fitted on: 200 000, fewer for many columns, never under 20 000."""
        return int(min(200_000, max(20_000, self.grain // 4 // (8 * columns))))

    def valid_rows(self, width: int) -> int:
        """Validation rows that are kept, encoded: 100 000, fewer for many columns, never under 20 000."""
        return int(min(100_000, max(20_000, self.grain // 8 // (4 * width))))
