"""How well scores of rows find the rows whose labels were changed."""

from __future__ import annotations

from torch import Tensor

from probatum.measure.base import Measure

_CLASSES = ("classes",)
MEASURES = (
    Measure(
        "flip-auroc",
        "detection",
        True,
        0.01,
        tasks=_CLASSES,
        about="area under the ROC curve: are flipped labels scored lower than clean ones",
    ),
    Measure(
        "flip-precision",
        "detection",
        True,
        0.02,
        tasks=_CLASSES,
        about="share of flipped labels among as many lowest scores as there are flips",
    ),
    Measure(
        "cleaned-accuracy",
        "quality",
        True,
        0.01,
        tasks=_CLASSES,
        about="test accuracy of the baseline trained without the lowest-scored rows",
    ),
    Measure(
        "relabelled-accuracy",
        "quality",
        True,
        0.01,
        tasks=_CLASSES,
        about="test accuracy of the baseline after the lowest-scored rows were given their right labels",
    ),
)


def detection(scores: Tensor, flipped: Tensor) -> dict[str, float]:
    """scores (n,), higher = cleaner; flipped (n,) bool -> "flip-auroc" and "flip-precision"."""
    from sklearn.metrics import roc_auc_score

    count = int(flipped.sum())
    if not 0 < count < len(flipped):
        raise ValueError(f"{count} of {len(flipped)} rows are flipped; detection needs some of both")
    lowest = scores.argsort()[:count]
    return {
        "flip-auroc": float(roc_auc_score(flipped.numpy(), -scores.double().numpy())),
        "flip-precision": float(flipped[lowest].float().mean()),
    }
