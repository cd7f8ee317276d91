"""Draws docs/performance.svg: the time of a call against the number of endpoints, for this library and the reference.

    python tests/benchmarks/plot.py [--json FILE]

FILE is what ``run.py --json FILE --sizes 10 100 1000 10000 100000`` wrote; without it the calls are measured now.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import run

HERE = Path(__file__).parent
SIZES = (10, 100, 1_000, 10_000, 100_000)

# The operations as run.py names them, how the plot names them, and a colour that the colour-blind can tell from the
# others (from the palette of Okabe and Ito).
LINES = (
    ("unregister(), register(), three aliases", "unregister, register, add three aliases", "#009e73"),
    ("route_for_context(None, n), fallback", "route by context, the largest answers", "#d55e00"),
    ("route(id)", "route by id", "#0072b2"),
)

# All in pixels, but the axes: powers of ten of endpoints and of nanoseconds.
WIDTH, HEIGHT = 760, 520
LEFT, RIGHT, TOP, BOTTOM = 84, 720, 130, 462
ENDPOINTS, NANOSECONDS = (1, 5), (1, 7)
TIMES = {1: "10 ns", 2: "100 ns", 3: "1 µs", 4: "10 µs", 5: "100 µs", 6: "1 ms", 7: "10 ms"}

Points = list[tuple[float, float]]


def x(endpoints: float) -> float:
    return LEFT + (RIGHT - LEFT) * (math.log10(endpoints) - ENDPOINTS[0]) / (ENDPOINTS[1] - ENDPOINTS[0])


def y(nanoseconds: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * (math.log10(nanoseconds) - NANOSECONDS[0]) / (NANOSECONDS[1] - NANOSECONDS[0])


def line(x1: float, y1: float, x2: float, y2: float, look: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {look}/>'


def text(at_x: float, at_y: float, words: str, look: str = "") -> str:
    return f'<text x="{at_x:.1f}" y="{at_y:.1f}" {look}>{words}</text>'


def mark(at_x: float, at_y: float, colour: str, ours: bool) -> str:
    """Return a filled circle for this library, or an empty square for the reference."""
    if ours:
        return f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="5" fill="{colour}"/>'
    look = f'width="9" height="9" fill="#ffffff" stroke="{colour}" stroke-width="2"'
    return f'<rect x="{at_x - 4.5:.1f}" y="{at_y - 4.5:.1f}" {look}/>'


def stroke(colour: str, ours: bool) -> str:
    return f'stroke="{colour}" stroke-width="{2.5 if ours else 1.5}"' + ("" if ours else ' stroke-dasharray="6 4"')


def axes() -> Iterator[str]:
    for power in range(ENDPOINTS[0], ENDPOINTS[1] + 1):
        yield line(x(10**power), TOP, x(10**power), BOTTOM, 'stroke="#dddddd"')
        yield text(x(10**power), BOTTOM + 20, f"{10**power:,}", 'text-anchor="middle"')
    for power in range(NANOSECONDS[0], NANOSECONDS[1] + 1):
        yield line(LEFT, y(10**power), RIGHT, y(10**power), 'stroke="#dddddd"')
        yield text(LEFT - 10, y(10**power) + 4, TIMES[power], 'text-anchor="end"')
    yield line(LEFT, BOTTOM, RIGHT, BOTTOM, 'stroke="#444444"')
    yield line(LEFT, TOP, LEFT, BOTTOM, 'stroke="#444444"')
    yield text((LEFT + RIGHT) / 2, BOTTOM + 44, "endpoints, each with one alias", 'text-anchor="middle"')
    middle = (TOP + BOTTOM) / 2
    yield text(18, middle, "time per call", f'text-anchor="middle" transform="rotate(-90 18 {middle:.1f})"')


def legend() -> Iterator[str]:
    yield text(LEFT, 32, "Time per call against the number of endpoints", 'font-size="17" font-weight="bold"')
    for i, (_, words, colour) in enumerate(LINES):
        yield f'<rect x="{LEFT}" y="{46 + 22 * i}" width="14" height="14" fill="{colour}"/>'
        yield text(LEFT + 22, 58 + 22 * i, words)
    for i, (words, ours) in enumerate((("bonsai_routing", True), ("the Rust reference, compiled", False))):
        at_x, at_y = LEFT + 380, 53 + 22 * i
        yield line(at_x, at_y, at_x + 44, at_y, stroke("#444444", ours))
        yield mark(at_x + 22, at_y, "#444444", ours)
        yield text(at_x + 54, at_y + 5, words)


def curve(points: Points, colour: str, ours: bool) -> Iterator[str]:
    path = " ".join(f"{x(endpoints):.1f},{y(nanoseconds):.1f}" for endpoints, nanoseconds in points)
    yield f'<polyline points="{path}" fill="none" {stroke(colour, ours)}/>'
    for endpoints, nanoseconds in points:
        yield mark(x(endpoints), y(nanoseconds), colour, ours)


def drawing(ours: dict[str, Points], reference: dict[str, Points]) -> str:
    """Return the plot as the text of an SVG file, on a background of its own for light and dark pages."""
    parts = [*axes(), *legend()]
    for operation, _, colour in LINES:
        parts += curve(reference[operation], colour, ours=False)
        parts += curve(ours[operation], colour, ours=True)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    look = 'font-family="Helvetica, Arial, sans-serif" font-size="14" fill="#222222" role="img"'
    title = "<title>Time per call against the number of endpoints, bonsai_routing and the Rust reference</title>"
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>'
    return "\n".join([f"{head} {look}>", title, background, *parts, "</svg>", ""])


def medians(file: Path) -> dict[str, Points]:
    """Return the medians in a JSON file, by operation."""
    points: dict[str, Points] = {operation: [] for operation, _, _ in LINES}
    for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
        if row["operation"] in points:
            points[row["operation"]].append((row["endpoints"], row["median"]))
    return points


def measured() -> dict[str, Points]:
    """Measure this library now."""
    points: dict[str, Points] = {}
    for row in run.speed(SIZES, quick=False, only={operation for operation, _, _ in LINES}):
        points.setdefault(row.operation, []).append((row.endpoints or 0, row.median))
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", metavar="FILE", type=Path, help="what run.py wrote, in place of measuring now")
    options = parser.parse_args()
    ours = medians(options.json) if options.json else measured()
    svg = drawing(ours, medians(HERE / "reference.json"))
    (HERE.parents[1] / "docs" / "performance.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
