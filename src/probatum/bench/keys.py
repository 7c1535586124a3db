"""The key of a plan; apart from plans themselves, so that a store is opened without what trains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def key_of(plan: Mapping[str, Any]) -> str:
    """The content hash of a plan."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True, default=str).encode()).hexdigest()[:32]
