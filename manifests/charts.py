"""Small charts as inline SVG: geometry only, labels are the page's text, colours are CSS classes of the page.

Every chart is stretched to its place (`preserveAspectRatio="none"`), so it has no text, no stroke and no round corner.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup

Part = tuple[str, float, str]
"""CSS class, amount, and what a pointer that rests on it shows."""


def bar(parts: Sequence[Part], total: float) -> Markup:
    """One horizontal bar: parts side by side, `total` is its full width."""
    x, rects = 0.0, []
    for name, amount, title in parts:
        width = 100 * amount / total if total else 0.0
        if width > 0:
            rects.append(_rect(name, x, 0, width, 10, title))
        x += width
    return _svg("bar", 100, 10, rects)


def histogram(bins: Sequence[Sequence[Part]]) -> Markup:
    """Bars side by side, each a pile of parts; the tallest is as high as the chart."""
    most = max((sum(amount for _, amount, _ in parts) for parts in bins), default=0) or 1
    rects = []
    for i, parts in enumerate(bins):
        y = 100.0
        for name, amount, title in parts:
            height = 100 * amount / most
            y -= height
            if height > 0:
                rects.append(_rect(name, i + 0.06, y, 0.88, height, title))
    return _svg("histogram", max(1, len(bins)), 100, rects)


def spread(name: str, low: float, middle: float, high: float, end: float, title: str) -> Markup:
    """A line from low to high with a mark at the middle, on a scale from 0 to `end`."""
    a, m, b = (
        100 * min(1.0, max(0.0, value / end)) if end else 0.0 for value in (low, middle, high)
    )
    return _svg(
        "spread",
        100,
        10,
        [
            _rect("track", 0, 4.5, 100, 1, ""),
            _rect(name, a, 3.2, max(b - a, 0.6), 3.6, title),
            _rect("middle", min(max(m - 0.5, 0), 99), 0.5, 1, 9, title),
        ],
    )


def nice(value: float) -> float:
    """The next round number (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8 times a power of ten) that is not below `value`."""
    if not value > 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        step * power
        for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
        if step * power >= value * (1 - 1e-9)
    )


def _rect(name: str, x: float, y: float, width: float, height: float, title: str) -> Markup:
    tip = Markup("<title>{}</title>").format(title) if title else ""
    return Markup(
        '<rect class="{}" x="{:.3f}" y="{:.3f}" width="{:.3f}" height="{:.3f}">{}</rect>'
    ).format(name, x, y, width, height, tip)


def _svg(name: str, width: float, height: float, rects: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="{}" viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    ).format(name, width, height, Markup("").join(rects))
