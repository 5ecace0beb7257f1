"""Delay against CPU as an SVG picture, in a light and a dark version. Sans-I/O.

Both axes are logarithmic, because the programs differ by factors; less is better on both, so the
best place is the lower left corner. Each program is a point with a label, at the median of its
runs, and a bar up to the 95th percentile of its delay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple


class Point(NamedTuple):
    """A program: CPU in ms per call-second, median and 95th percentile of the round trip in ms."""

    name: str
    cpu_ms: float
    p50_ms: float
    p95_ms: float
    highlighted: bool = False


class Colours(NamedTuple):
    """The colours of one version, as CSS writes them."""

    ground: str
    grid: str
    text: str
    faint: str
    point: str
    highlight: str


LIGHT: Final = Colours("#ffffff", "#e3e6ea", "#1f2328", "#59636e", "#8c959f", "#0969da")
DARK: Final = Colours("#0d1117", "#262c34", "#e6edf3", "#9198a1", "#7d8590", "#58a6ff")

WIDTH: Final = 700
HEIGHT: Final = 400
LEFT: Final = 78
RIGHT: Final = 30
TOP: Final = 58
BOTTOM: Final = 64

_FONT: Final = "-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
_STEPS: Final = (1, 2, 5)
_STEP: Final = 8  # between places that are tried for a label
_LETTER: Final = 16  # height of a label
_CHARACTER: Final = 7.6  # width of a letter of a label, on average
_GAP: Final = 6  # around a label

Box = tuple[float, float, float, float]
"""Left, right, top and bottom of something drawn."""


def chart(points: Sequence[Point], title: str, colours: Colours) -> str:
    """Draw the points. Raises ValueError without any."""
    if not points:
        raise ValueError("nothing to draw")
    across = _ticks([point.cpu_ms for point in points])
    upwards = _ticks([ms for point in points for ms in (point.p50_ms, point.p95_ms)])

    def x(value: float) -> float:
        return LEFT + _share(value, across) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - _share(value, upwards) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="{escape(_FONT)}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{colours.ground}"/>',
        _text(LEFT, 26, title, colours.text, size=16, weight=600),
        _text(LEFT, 44, "less is better on both axes; both are logarithmic", colours.faint),
    ]
    for tick in across:
        at = x(tick)
        parts.append(_line(at, TOP, at, HEIGHT - BOTTOM, colours.grid))
        parts.append(_text(at, HEIGHT - BOTTOM + 18, f"{tick:g}", colours.faint, anchor="middle"))
    for tick in upwards:
        at = y(tick)
        parts.append(_line(LEFT, at, WIDTH - RIGHT, at, colours.grid))
        parts.append(_text(LEFT - 8, at + 4, f"{tick:g}", colours.faint, anchor="end"))
    parts.append(
        _text(
            (LEFT + WIDTH - RIGHT) / 2,
            HEIGHT - 16,
            "CPU of the server, ms per second of call",
            colours.text,
            anchor="middle",
            size=13,
        )
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<g transform="translate(22 {middle:.1f}) rotate(-90)">'
        + _text(0, 0, "round trip, ms: median to p95", colours.text, anchor="middle", size=13)
        + "</g>"
    )
    taken = [(x(one.cpu_ms), x(one.cpu_ms), y(one.p95_ms), y(one.p50_ms)) for one in points]
    for point in sorted(points, key=lambda point: not point.highlighted):
        colour = colours.highlight if point.highlighted else colours.point
        at, low, high = x(point.cpu_ms), y(point.p50_ms), y(point.p95_ms)
        parts.append(_line(at, low, at, high, colour, width=2))
        parts.append(_line(at - 5, high, at + 5, high, colour, width=2))
        radius = 7 if point.highlighted else 5
        parts.append(f'<circle cx="{at:.1f}" cy="{low:.1f}" r="{radius}" fill="{colour}"/>')
        box = _place(at, low, _CHARACTER * len(point.name), taken)
        taken.append(box)
        shade = colours.highlight if point.highlighted else colours.text
        weight = 600 if point.highlighted else 400
        left, _, _, base = box
        parts.append(_text(left, base, point.name, shade, size=13, weight=weight))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _place(x: float, y: float, width: float, taken: Sequence[Box]) -> Box:
    """Place a label beside a point: as near as possible, right before left, on nothing drawn."""
    boxes = [
        (left, left + width, y + 4 + up * _STEP - _LETTER, y + 4 + up * _STEP)
        for up in (0, -1, 1, -2, 2, -3, 3)
        for left in (x + 12, x - 12 - width)
    ]
    inside = [
        box
        for box in boxes
        if box[0] > LEFT and box[1] < WIDTH and box[2] > TOP and box[3] < HEIGHT - BOTTOM
    ]
    free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
    return next(iter([*free, *inside, *boxes]))


def _overlap(one: Box, other: Box) -> bool:
    across = one[0] - _GAP < other[1] and other[0] - _GAP < one[1]
    return across and one[2] < other[3] and other[2] < one[3]


def _ticks(values: Sequence[float]) -> list[float]:
    """Round values, 1, 2 or 5 times a power of ten, from below the least to above the greatest."""
    least, greatest = 0.9 * min(values), 1.15 * max(values)
    first = math.floor(math.log10(least))
    last = math.floor(math.log10(greatest))
    steps = [step * 10.0**power for power in range(first, last + 2) for step in _STEPS]
    start = max(step for step in steps if step <= least)
    end = min(step for step in steps if step >= greatest)
    return [step for step in steps if start <= step <= end]


def _share(value: float, ticks: Sequence[float]) -> float:
    """The place of a value between the first tick (0) and the last (1)."""
    return math.log(value / ticks[0]) / math.log(ticks[-1] / ticks[0])


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width:g}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    colour: str,
    *,
    anchor: str = "start",
    size: int = 12,
    weight: int = 400,
) -> str:
    style = f'text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
