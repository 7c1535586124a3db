"""What the store keeps: trials and studies as rows of text, their checksums, and whether a row is still what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from probatum.bench.keys import key_of
from probatum.bench.packed_rows import unpack

ROWS = "rows"
"""Name of the blob that holds a trial's test rows."""
REMARK = "remark"
"""Key, in what is stored of a trial's timing, of a sentence about how it was run."""
CHECKSUM_DIGITS = 32
TRIAL_COLUMNS = ("key", "study", "arm", "seed", "kind", "status", "plan", "record", "timing", "created")
_DECODER = json.JSONDecoder()
STATUSES = ("ok", "failed", "not applicable")
PUT_OFF = "put off"
"""What a trial is that was stopped because it takes too long to come first: no result, and nowhere stored."""


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Trial:
    """One stored trial.

    Attributes:
        key: content hash of the trial's plan.
        study: key of the study that ran it.
        arm: name of the arm.
        seed: the paired seed.
        kind: what sort of trial it is, e.g. ``"fit"`` or ``"confirm"``.
        status: ok, failed or not applicable.
        plan: everything that decides the record; JSON values.
        record: what came out, the same whenever the plan is run again; JSON values.
        timing: what may differ from run to run; JSON values.
        created: UTC time, ISO 8601.
        rows: what is kept of its test rows (`probatum.bench.packed_rows`); b"" = nothing.
    """

    key: str
    study: str
    arm: str
    seed: int
    kind: str
    status: str
    plan: Mapping[str, Any]
    record: Mapping[str, Any]
    timing: Mapping[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=now)
    rows: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class StudyRecord:
    """One stored study: its key, its frozen plan (JSON values) and when it was created (UTC, ISO 8601)."""

    key: str
    plan: Mapping[str, Any]
    created: str


@dataclass(frozen=True)
class Damage:
    """A record that is not believed: of which table, under which key, whose it says it is, and what is wrong with it."""

    table: str
    key: str
    whose: str
    why: str

    def words(self) -> str:
        """The record and the reason, in a few words."""
        return f"{self.whose} ({self.why})"


CHANGED = "changed since it was written"


def as_stored(trial: Trial) -> Trial:
    """The trial as it is read again, so that what is told of a study does not hang on when it was interrupted."""
    return replace(trial, record=_loaded(dumped(trial.record)), timing=_loaded(dumped(trial.timing)))


def trial_row(trial: Trial) -> dict[str, Any]:
    """A trial as a row of the table, its checksum with it."""
    texts = {"plan": dumped(trial.plan), "record": dumped(trial.record), "timing": dumped(trial.timing)}
    row = {**{name: value for name, value in vars(trial).items() if name != "rows"}, **texts}
    packed = blob_checksum(trial.key, ROWS, trial.rows) if trial.rows else ""
    return {**row, "checksum": trial_checksum(row, packed)}


def study_row(key: str, plan: Mapping[str, Any]) -> dict[str, Any]:
    """A study as a row of the table, its checksum with it."""
    row = {"key": key, "plan": dumped(plan), "created": now()}
    return {**row, "checksum": study_checksum(row)}


def blob_row(key: str, name: str, data: bytes) -> dict[str, Any]:
    """Bytes as a row of the table, their checksum with them."""
    return {"key": key, "name": name, "bytes": data, "checksum": blob_checksum(key, name, data)}


def trial_checksum(row: Mapping[str, Any], packed: str) -> str:
    """Of all columns of a trial, and of its rows by their own checksum; "" = it has none."""
    texts = [row["key"], row["study"], row["arm"], str(row["seed"]), row["kind"], row["status"]]
    return _checksum("trial", [*texts, row["plan"], row["record"], row["timing"], row["created"], packed])


def study_checksum(row: Mapping[str, Any]) -> str:
    """Of all columns of a study."""
    return _checksum("study", [row["key"], row["plan"], row["created"]])


def blob_checksum(key: str, name: str, data: bytes) -> str:
    """Of bytes, and of what they are kept under."""
    return _checksum("blob", [key, name], data)


def trial_of(row: Mapping[str, Any], key: str | None = None) -> Trial | Damage:
    """The trial that a row holds, beside it its blob as ``rows`` and ``rows_checksum``; or why it is not believed.

    Rows without a checksum come from earlier versions. Of these only what a change would break is known: the key, which
    is a hash of the plan, JSON, and the compressed rows.

    Args:
        row: as it was read.
        key: under which it was looked up; None = whatever it says.
    """
    packed = row["rows"]
    if not isinstance(packed, bytes | None) or not isinstance(row["seed"], int) or key not in (None, row["key"]):
        return _changed_trial(row, key)
    try:
        own = "" if packed is None else blob_checksum(row["key"], ROWS, packed)
        if row["rows_checksum"] not in (None, own):
            return _changed_trial(row, key)
        told = row["checksum"]
        # where rows came later than the trial, from a process that ran it too, its checksum does not tell of them
        if told is not None and told != trial_checksum(row, own) and not (own and told == trial_checksum(row, "")):
            return _changed_trial(row, key)
        values = {"plan": _loaded(row["plan"]), "record": _loaded(row["record"]), "timing": _loaded(row["timing"])}
        if told is None and not _plausible(row, values):
            return _changed_trial(row, key)
    except (ValueError, TypeError, RecursionError):  # bytes that are no text, text that is no JSON, broken rows
        return _changed_trial(row, key)
    whose = (row["key"], row["study"], row["arm"], row["seed"], row["kind"], row["status"])
    return Trial(*whose, values["plan"], values["record"], values["timing"], row["created"], packed or b"")


def study_of(row: Mapping[str, Any]) -> StudyRecord | Damage:
    """The study that a row holds, or why it is not believed."""
    wrong = Damage("studies", str(row["key"]), _printable(f"study {str(row['key'])[:8]}"), CHANGED)
    try:
        if row["checksum"] not in (None, study_checksum(row)):
            return wrong
        plan = _loaded(row["plan"])
        if row["checksum"] is None and (
            not {"plan", "summary", "keys"} <= plan.keys() or key_of(plan["plan"]) != row["key"]
        ):
            return wrong
    except (ValueError, TypeError, AttributeError, RecursionError):
        return wrong
    return StudyRecord(row["key"], plan, row["created"])


def blob_of(row: Mapping[str, Any]) -> bytes | Damage:
    """The bytes that a row holds, or why they are not believed; earlier versions wrote no checksum."""
    wrong = Damage("blobs", str(row["key"]), _printable(f"{row['name']!r} of {str(row['key'])[:8]}"), CHANGED)
    try:
        sound = isinstance(row["bytes"], bytes) and row["checksum"] in (
            None,
            blob_checksum(row["key"], row["name"], row["bytes"]),
        )
    except (ValueError, TypeError):
        return wrong
    return row["bytes"] if sound else wrong


def dumped(value: Mapping[str, Any]) -> str:
    """JSON values as text, always the same text."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:  # half a character, as names of files may hold, and errors that tell of these
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    return text


def _changed_trial(row: Mapping[str, Any], key: str | None) -> Damage:
    whose = f"{row['arm']}, seed {row['seed']}" + (f", {row['kind']}" if row["kind"] != "fit" else "")
    return Damage("trials", str(key or row["key"]), _printable(whose), CHANGED)


def _plausible(row: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether a trial without a checksum can be what was written; ValueError for rows that cannot be read."""
    record = values["record"]
    texts = all(isinstance(row[name], str) and row[name].isprintable() for name in ("study", "arm", "kind", "created"))
    if not texts or row["status"] not in STATUSES or not all(isinstance(value, dict) for value in values.values()):
        return False
    if row["rows"]:
        unpack(row["rows"])
    measured = row["status"] != "ok" or row["kind"] == "timing" or isinstance(record.get("measures"), dict)
    return measured and key_of(values["plan"]) == row["key"]


def _checksum(kind: str, texts: Sequence[str], data: bytes = b"") -> str:
    """Hex digits; the lengths go in too, so that no two lists of texts are one."""
    found = hashlib.sha256(f"{kind} {list(map(len, texts))} {''.join(texts)}".encode())
    found.update(data)
    return found.hexdigest()[:CHECKSUM_DIGITS]


def _loaded(text: str) -> Any:
    """JSON as `dumped` wrote it, without space around it; ValueError for anything else."""
    value, end = _DECODER.raw_decode(text)
    if end != len(text):
        raise ValueError("there is more than one value")
    return value


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:80]
