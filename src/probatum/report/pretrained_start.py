"""What a fine-tuning study started from, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def started_from(about: Mapping[str, Any]) -> list[str]:
    """Sentences on the pretrained weights and what was copied of them; [] where nothing was pretrained.

    Args:
        about: `StudyPlan.pretrained`.
    """
    if not about:
        return []
    line = f"starts from {about['on']}"
    if "steps" in about:
        line = f"pretrained on {about['on']}: {about['rows']} rows, {about['steps'] or 'the usual'} steps"
        line += "".join(
            f", {name} {about[name]:.3f} on its own test rows" for name in ("accuracy", "rmse") if name in about
        )
    found = [f"{line}; {100 * about['copied']:.0f} % of the body copied, the last layer is new"]
    fresh = [f"{name} {'x'.join(map(str, shape))}" for name, shape in about["fresh"].items()]
    found.append(f"  new: {', '.join(fresh[:6])}" + (f" and {len(fresh) - 6} more" if len(fresh) > 6 else ""))
    if about["converted"]:
        found.append(f"  turned from grey to colour or back: {', '.join(about['converted'])}")
    if about.get("shared_rows"):
        found.append(
            f"  warning: {about['shared_rows']} rows of the target stand in the data of pretraining too, test rows perhaps "
            "among them"
        )
    return found
