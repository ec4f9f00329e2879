"""Draw where a plan's time goes, beside the least it could take on that machine: a stacked bar for each, as SVG.

    OMP_NUM_THREADS=1 python scripts/benchmark.py --config-name uva_pusht_mini --only latency --json times.json
    python scripts/plot_performance.py times.json --output docs/latency.svg

Every plan that was timed has two bars: the measured parts with what lies between them, and the floor of each part, the
larger of its arithmetic and of the reading of its weights at the rates measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import logging
from html import escape
from pathlib import Path
from typing import Any

from unified_video_action.env_runner.charts import number, ticks

log = logging.getLogger("plot_performance")
COLOURS = {
    "VAE encode": "#0284c7",
    "transformer": "#7c3aed",
    "action diffusion": "#ea580c",
    "video diffusion": "#16a34a",
    "VAE decode": "#db2777",
    "between": "#94a3b8",
}
WIDTH, LEFT, RIGHT, TOP = 900, 190, 80, 76
BAR, GAP, GROUP = 22, 4, 24  # heights: of a bar, between the two of a plan, between plans
INK, GRID, OTHER = "#0f172a", "#e2e8f0", "#64748b"
PRECISIONS = {"no": "float32"}  # names that say more than the option does


def bars(results: dict[str, Any]) -> list[tuple[str, dict[str, float], dict[str, float]]]:
    """Plans with the milliseconds of their parts, measured and least.

    Raises:
        ValueError: the benchmark was of other things, or without floors.
    """
    for key in ("latency_ms", "floor_ms"):
        if key not in results:
            raise ValueError(f"there is no {key!r} in it: measure with scripts/benchmark.py --only latency --json FILE")
    made = []
    for plan, rows in results["latency_ms"].items():
        parts = {part: times["median"] for part, times in rows.items() if part != "total"}
        parts["between"] = max(rows["total"]["median"] - sum(parts.values()), 0.0)
        least = {part: row["floor"] for part, row in results["floor_ms"][plan].items() if part != "total"}
        made.append((plan, parts, least))
    return made


def text(x: float, y: float, words: str, anchor: str = "start", size: int = 13, colour: str = INK) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"'
    return f"<text {place}>{escape(words)}</text>"


def stack(y: float, parts: dict[str, float], scale: float, faint: bool) -> list[str]:
    """One bar, and its sum behind it."""
    drawn, x, opacity = [], float(LEFT), 0.45 if faint else 1
    for part, milliseconds in parts.items():
        width = scale * milliseconds
        drawn.append(
            f'<rect x="{x:.1f}" y="{y}" width="{max(width, 0.5):.1f}" height="{BAR}" fill="{COLOURS.get(part, OTHER)}" '
            f'fill-opacity="{opacity}"><title>{escape(part)}: {milliseconds:.2f} ms</title></rect>'
        )
        x += width
    return [*drawn, text(x + 6, y + BAR - 6, f"{sum(parts.values()):.3g} ms")]


def draw(results: dict[str, Any]) -> str:
    """The picture."""
    plans = bars(results)
    longest = max(sum(parts.values()) for _, *both in plans for parts in both)
    scale = (WIDTH - LEFT - RIGHT) / longest
    bottom = TOP + len(plans) * (2 * BAR + GAP + GROUP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 34}" '
        'font-family="Helvetica, Arial, sans-serif">',
        "<title>Milliseconds of a plan by part: measured, and the least possible on that machine</title>",
        f'<rect width="{WIDTH}" height="{bottom + 34}" fill="#ffffff"/>',
    ]
    machine, samplers = results["machine"], results["samplers"]
    cpu = f"{machine['processor']}, threads: {machine['threads']}"
    where = machine["gpu"] if machine["device"].startswith("cuda") else cpu
    precision = PRECISIONS.get(machine["precision"], machine["precision"])
    about = f"{results['parameters'] / 1e6:.1f} M parameters on {where}, {precision}"
    parts.append(text(20, 24, f"{about}; {samplers['actions']} for actions, {samplers['frames']} for frames", size=14))
    x = 20.0
    used = [part for _, *both in plans for each in both for part in each]
    for part in sorted(dict.fromkeys(used), key=[*COLOURS, *used].index):
        parts.append(f'<rect x="{x}" y="40" width="12" height="12" rx="2" fill="{COLOURS.get(part, OTHER)}"/>')
        parts.append(text(x + 17, 51, part))
        x += 35 + 7 * len(part)
    parts.append(text(WIDTH - 20, 51, "pale: the floor", "end", colour=OTHER))
    for value in ticks(0.0, longest):
        at = LEFT + scale * value
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 8}" y2="{bottom}" stroke="{GRID}"/>')
        parts.append(text(at, bottom + 18, f"{number(value)} ms", "middle", size=12, colour=OTHER))
    y = TOP
    for plan, measured, least in plans:
        parts.append(text(LEFT - 12, y + BAR + 6, plan, "end"))
        parts += stack(y, measured, scale, faint=False) + stack(y + BAR + GAP, least, scale, faint=True)
        y += 2 * BAR + GAP + GROUP
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", type=Path, help="JSON file of scripts/benchmark.py")
    parser.add_argument("--output", type=Path, required=True, help="picture to write, such as docs/latency.svg")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        picture = draw(json.loads(options.times.read_text()))
    except (ValueError, FileNotFoundError) as error:
        parser.error(f"{options.times}: {error}")
    options.output.write_text(picture)
    log.info("Written to %s", options.output)


if __name__ == "__main__":
    main()
