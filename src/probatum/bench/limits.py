"""What a trial may take, by the user's word or by what there is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from probatum.data.lazy.memory import as_bytes, available
from probatum.errors import InputError
from probatum.settings import Running


def seconds(running: Running) -> float | None:
    """Seconds of a trial; None = nothing is said. InputError where that is no time."""
    minutes = running.trial_minutes
    if minutes is not None and minutes <= 0:
        raise InputError(f"trial_minutes is {minutes:g}; give the minutes that a trial may take, above 0")
    return None if minutes is None else 60 * minutes


def memory(running: Running) -> float:
    """Bytes of a process that runs trials: by the user's word, or what is free now. InputError where that is no size."""
    return available() if running.trial_memory is None else as_bytes(running.trial_memory, "trial_memory")


def hold_to(memory: float) -> None:
    """Let this process take no more memory than that beside what it has; what asks for more fails, instead of the machine."""
    with suppress(ImportError, ValueError, OSError):  # not everywhere is there such a limit
        import resource

        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        has = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (has + int(memory), resource.getrlimit(resource.RLIMIT_DATA)[1]))
