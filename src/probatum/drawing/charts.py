"""Charts as inline SVG: plain strings, colours from the page's CSS variables, every text escaped, every chart titled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

REFERENCE = "reference"
WORD_CLASSES = {
    "helps": "good",
    "hurts": "bad",
    "no material difference": "same",
    "undecided": "open",
    "failed": "bad",
    "not applicable": "faint",
    REFERENCE: "faint",
}


@dataclass(frozen=True)
class Interval:
    """One line of a forest plot: values on the plotted scale, and what is written beside it."""

    label: str
    mean: float
    low: float
    high: float
    word: str
    text: str


def forest(rows: Sequence[Interval], margin: float, better: str, worse: str, title: str) -> str:
    """A forest plot: positive = better to the right, the region of practical equivalence shaded.

    Of an interval without ends the mean alone is drawn.
    """
    rows = [row for row in rows if math.isfinite(row.mean)]
    if not rows:
        return ""
    ends = [abs(v) for row in rows for v in (row.mean, row.low, row.high) if math.isfinite(v)]
    reach = max([margin * 1.5, *ends]) * 1.08 or 1.0
    width, left, right, line = 800, 210, 220, 30
    height = 46 + line * len(rows)
    span = width - left - right

    def at(value: float) -> float:
        return left + span * (value + reach) / (2 * reach)

    parts = [_open(width, height, title)]
    band = (at(-min(margin, reach)), at(min(margin, reach)))
    bottom = height - 26
    parts.append(
        f'<rect class="rope" x="{band[0]:.1f}" y="14" width="{band[1] - band[0]:.1f}" height="{bottom - 14}"/>'
    )
    parts.append(f'<line class="axis" x1="{at(0):.1f}" y1="14" x2="{at(0):.1f}" y2="{bottom}"/>')
    for i, row in enumerate(rows):
        y = 14 + line * i + line / 2
        kind = WORD_CLASSES.get(row.word, "open")
        parts.append(f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(_cut(row.label, 27))}</text>')
        if math.isfinite(row.low) and math.isfinite(row.high):
            parts.append(
                f'<line class="range {kind}" x1="{at(row.low):.1f}" y1="{y:.1f}" x2="{at(row.high):.1f}" y2="{y:.1f}"/>'
            )
        parts.append(
            f'<circle class="dot {kind}" cx="{at(row.mean):.1f}" cy="{y:.1f}" r="5"><title>{escape(row.label)}: {escape(row.text)}, {escape(row.word)}</title></circle>'
        )
        parts.append(f'<text class="small" x="{width - right + 10}" y="{y + 4:.1f}">{escape(row.text)}</text>')
    parts.append(f'<text class="small" x="{left}" y="{height - 8}">\u2190 {escape(worse)}</text>')
    parts.append(
        f'<text class="small" x="{width - right}" y="{height - 8}" text-anchor="end">{escape(better)} \u2192</text>'
    )
    return "".join((*parts, "</svg>"))


def scatter(points: Sequence[tuple[str, float, float, str]], x_label: str, y_label: str, title: str) -> str:
    """Points (label, x > 0, y, class) with a logarithmic x axis."""
    points = [p for p in points if 0 < p[1] < math.inf and math.isfinite(p[2])]
    if len(points) < 2:
        return ""
    width, height, left, bottom, top, right = 760, 340, 70, 48, 16, 150
    xs, ys = [math.log(p[1]) for p in points], [p[2] for p in points]
    x_range, y_range = _padded(min(xs), max(xs)), _padded(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (width - left - right) * (math.log(x) - x_range[0]) / (x_range[1] - x_range[0])
        up = height - bottom - (height - bottom - top) * (y - y_range[0]) / (y_range[1] - y_range[0])
        return across, up

    parts = [_open(width, height, title), *_frame(width - right, height, left, bottom, top)]
    for tick in _ticks(*y_range):
        _, y = place(math.exp(x_range[0]), tick)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>')
        parts.append(f'<text class="small" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in _log_ticks(math.exp(x_range[0]), math.exp(x_range[1])):
        x, _ = place(tick, y_range[0])
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{height - bottom}"/>')
        parts.append(
            f'<text class="small" x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{_short(tick)}</text>'
        )
    taken: list[float] = []
    for label, x, y, kind in sorted(points, key=lambda p: p[2]):
        cx, cy = place(x, y)
        text_y = cy + 4
        while any(abs(text_y - other) < 13 for other in taken):
            text_y -= 13
        taken.append(text_y)
        parts.append(
            f'<circle class="dot {kind}" cx="{cx:.1f}" cy="{cy:.1f}" r="6"><title>{escape(label)}: {y:.4g} at {_short(x)}</title></circle>'
        )
        parts.append(f'<text class="small" x="{cx + 10:.1f}" y="{text_y:.1f}">{escape(_cut(label, 26))}</text>')
    parts += _labels(width - right, height, left, x_label, y_label)
    return "".join((*parts, "</svg>"))


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, title: str) -> str:
    """Lines of (x, y) points, one colour each, with a legend."""
    lines = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in lines.items()}
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not lines:
        return ""
    width, height, left, bottom, top, right = 760, 320, 70, 48, 16, 190
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    x_range, y_range = (min(xs), max(xs) or 1.0), _padded(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (width - left - right) * (x - x_range[0]) / ((x_range[1] - x_range[0]) or 1)
        up = height - bottom - (height - bottom - top) * (y - y_range[0]) / (y_range[1] - y_range[0])
        return across, up

    parts = [_open(width, height, title), *_frame(width - right, height, left, bottom, top)]
    for tick in _ticks(*y_range):
        _, y = place(x_range[0], tick)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>')
        parts.append(f'<text class="small" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.3g}</text>')
    for tick in _ticks(*x_range):
        x, _ = place(tick, y_range[0])
        parts.append(
            f'<text class="small" x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{tick:.4g}</text>'
        )
    for i, (name, points) in enumerate(lines.items()):
        path = " ".join(
            f"{'M' if j == 0 else 'L'}{x:.1f} {y:.1f}" for j, (x, y) in enumerate(place(*p) for p in points)
        )
        parts.append(f'<path class="line c{i % 10}" d="{path}"><title>{escape(name)}</title></path>')
        y = top + 14 + 18 * i
        parts.append(
            f'<line class="line c{i % 10}" x1="{width - right + 12}" y1="{y - 4}" x2="{width - right + 32}" y2="{y - 4}"/>'
        )
        parts.append(f'<text class="small" x="{width - right + 38}" y="{y}">{escape(_cut(name, 22))}</text>')
    parts += _labels(width - right, height, left, x_label, y_label)
    return "".join((*parts, "</svg>"))


def reliability(bins: Mapping[str, Sequence[float]], title: str) -> str:
    """Accuracy against confidence by bin, the diagonal for comparison; bar widths say how many rows a bin holds."""
    width, height, left, bottom, top = 300, 300, 46, 42, 14
    side = width - left - 14

    def place(x: float, y: float) -> tuple[float, float]:
        return left + side * x, height - bottom - (height - bottom - top) * y

    parts = [_open(width, height, title), *_frame(left + side, height, left, bottom, top)]
    (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
    parts.append(f'<line class="axis dashed" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')
    most = max([*bins["count"], 1])
    for confidence, accuracy, count in zip(bins["confidence"], bins["accuracy"], bins["count"], strict=True):
        if not count or not math.isfinite(confidence) or not math.isfinite(accuracy):
            continue
        x, y = place(confidence, accuracy)
        _, ideal = place(confidence, confidence)
        parts.append(f'<line class="gap" x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{ideal:.1f}"/>')
        radius = 2.5 + 5 * math.sqrt(count / most)
        parts.append(
            f'<circle class="dot same" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>confidence {confidence:.3f}, right {accuracy:.3f}, {count:.0f} rows</title></circle>'
        )
    for tick in (0, 0.5, 1):
        x, y = place(tick, tick)
        parts.append(f'<text class="small" x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">{tick}</text>')
        parts.append(f'<text class="small" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
    parts += _labels(left + side, height, left, "confidence", "share right")
    return "".join((*parts, "</svg>"))


def confusion(matrix: Sequence[Sequence[float]], names: Sequence[str], title: str) -> str:
    """A confusion matrix (rows = truth), shares of each true class as shades."""
    n = len(matrix)
    if n == 0 or n > 30:
        return ""
    cell = max(14, min(40, 420 // n))
    left, top = 110, 14
    width, height = left + cell * n + 10, top + cell * n + 70
    parts = [_open(width, height, title)]
    for i, row in enumerate(matrix):
        total = sum(row) or 1
        parts.append(
            f'<text class="small" x="{left - 6}" y="{top + cell * i + cell / 2 + 4:.0f}" text-anchor="end">{escape(_cut(names[i], 15))}</text>'
        )
        for j, count in enumerate(row):
            share = count / total
            x, y = left + cell * j, top + cell * i
            kind = "hit" if i == j else "miss"
            shade = share if i == j else min(1.0, 4 * share)
            parts.append(
                f'<rect class="cell {kind}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" style="fill-opacity:{0.06 + 0.94 * shade:.3f}"><title>{escape(names[i])} called {escape(names[j])}: {count:.0f}</title></rect>'
            )
            if cell >= 26 and count:
                tone = "on" if shade > 0.55 else ""
                parts.append(
                    f'<text class="small {tone}" x="{x + cell / 2:.0f}" y="{y + cell / 2 + 4:.0f}" text-anchor="middle">{count:.0f}</text>'
                )
    for j, name in enumerate(names):
        x, y = left + cell * j + cell // 2, top + cell * n + 8
        parts.append(
            f'<text class="small" transform="translate({x:.0f} {y}) rotate(40)">{escape(_cut(name, 10))}</text>'
        )
    return "".join((*parts, "</svg>"))


def _open(width: float, height: float, title: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}" '
        f'style="max-width:{width:.0f}px" xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>'
    )


def _frame(right: float, height: float, left: float, bottom: float, top: float) -> list[str]:
    return [
        f'<line class="axis" x1="{left}" y1="{height - bottom}" x2="{right}" y2="{height - bottom}"/>',
        f'<line class="axis" x1="{left}" y1="{top}" x2="{left}" y2="{height - bottom}"/>',
    ]


def _labels(right: float, height: float, left: float, x_label: str, y_label: str) -> list[str]:
    return [
        f'<text class="small" x="{(left + right) / 2:.0f}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text class="small" transform="translate(14 {height / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]


def _padded(low: float, high: float) -> tuple[float, float]:
    space = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    return low - space, high + space


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    raw = (high - low) / count
    if raw <= 0:
        return [low]
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    first = math.ceil(low / step)
    return [round(step * k, 12) for k in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**d for d in decades for factor in ((1, 2, 5) if high / low < 100 else (1,))]
    return [tick for tick in ticks if low <= tick <= high]


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _cut(text: str, most: int) -> str:
    """A long text with its middle left out, since settings at the end tell arms of one technique apart."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return text[: most - 1 - tail] + "\u2026" + text[len(text) - tail :]
