"""Encoded row groups of one part of a table: held while they are used, and read ahead in a thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from probatum.errors import InputError


class GroupCache:
    """The row groups read last, up to a size; a thread may read those that come next.

    Args:
        load: group -> its rows, encoded.
        sizes: bytes of each group.
        capacity: bytes held; a group in use or read ahead stays in any case.
        lead: bytes that the thread may read before they are asked for.
    """

    def __init__(self, load: Callable[[int], Tensor], sizes: np.ndarray, capacity: int, lead: int) -> None:
        self._load, self._sizes, self._capacity, self._lead = load, sizes, capacity, lead
        self._held: OrderedDict[int, Tensor] = OrderedDict()
        self._fresh: set[int] = set()  # read ahead and not yet asked for
        self._loading: set[int] = set()
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def peek(self, group: int) -> Tensor | None:
        """The group if it is held."""
        with self._change:
            return self._held.get(group)

    def get(self, group: int) -> Tensor:
        """The group, read now if nobody has; a thread that is reading it is waited for."""
        with self._change:
            while group in self._loading:
                self._change.wait()
            found = self._held.get(group)
            if found is not None:
                self._held.move_to_end(group)
                self._fresh.discard(group)
                self._change.notify_all()
                return found
            self._loading.add(group)
        return self._read(group, fresh=False)

    def drop_before(self, group: int) -> None:
        """Forget the groups before this one, for reading from first to last."""
        with self._change:
            for held in [g for g in self._held if g < group]:
                del self._held[held]
                self._fresh.discard(held)
            self._change.notify_all()

    def follow(self, coming: Callable[[], Iterable[int]]) -> None:
        """Start a thread that reads these groups ahead, in order; a former one is stopped first."""
        self._halt()
        stopped = self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(coming, stopped), name="row groups", daemon=True)
        self._thread.start()

    @property
    def following(self) -> bool:
        """Whether a thread is reading ahead."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Stop the thread and forget all groups."""
        self._halt()
        with self._change:
            self._held.clear()
            self._fresh.clear()

    def _halt(self) -> None:
        thread, self._thread = self._thread, None
        with self._change:
            self._stopped.set()
            self._change.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._change:
            self._fresh.clear()

    def _run(self, coming: Callable[[], Iterable[int]], stopped: threading.Event) -> None:
        for group in coming():
            with self._change:
                while not stopped.is_set() and self._fresh and self._ahead() + self._sizes[group] > self._lead:
                    self._change.wait()
                if stopped.is_set():
                    return
                if group in self._held or group in self._loading:
                    continue
                self._loading.add(group)
            try:
                self._read(group, fresh=True)
            except InputError:
                return  # whoever asks for the group meets the same error, where it can be told

    def _ahead(self) -> int:
        return int(sum(self._sizes[group] for group in self._fresh))

    def _read(self, group: int, fresh: bool) -> Tensor:
        try:
            found = self._load(group)
        except BaseException:
            with self._change:
                self._loading.discard(group)
                self._change.notify_all()
            raise
        with self._change:
            self._loading.discard(group)
            self._held[group] = found
            if fresh:
                self._fresh.add(group)
            self._shrink(group)
            self._change.notify_all()
        return found

    def _shrink(self, keep: int) -> None:
        total = sum(int(self._sizes[group]) for group in self._held)
        for group in [g for g in self._held if g not in self._fresh and g != keep]:
            if total <= self._capacity:
                return
            total -= int(self._sizes[group])
            del self._held[group]


class Plan:
    """Batches in the order in which they will be asked for, gathered many at a time."""

    def __init__(self, batches: Sequence[Tensor], gather: Callable[[Tensor], Tensor], row: int, most: int) -> None:
        size = max(1, len(batches[0])) if batches else 1
        self.block = max(1, min(64, most // (size * row)))
        self._batches, self._gather = batches, gather
        self._next = self._first = 0
        self._rows = torch.empty(0)
        self._ends: list[int] = [0]

    def take(self, index: Tensor) -> Tensor | None:
        """Rows of the batch if it is the next one of the plan, else None."""
        if self._next >= len(self._batches) or self._batches[self._next] is not index:
            return None
        place = self._next - self._first
        if self._next == 0 or place == len(self._ends) - 1:
            block = self._batches[self._next : self._next + self.block]
            self._rows = self._gather(torch.cat(list(block)))
            self._first, place = self._next, 0
            self._ends = [0, *np.cumsum([len(batch) for batch in block]).tolist()]
        self._next += 1
        return self._rows[self._ends[place] : self._ends[place + 1]]


def groups_of(batches: Sequence[Tensor], block: int, group_of: Callable[[Tensor], Tensor]) -> Iterable[int]:
    """Groups that these batches need, in the order of the blocks that need them first."""
    last: set[int] = set()
    for first in range(0, len(batches), block):
        needed = dict.fromkeys(group_of(torch.cat(list(batches[first : first + block]))).tolist())
        yield from (group for group in needed if group not in last)
        last = set(needed)
