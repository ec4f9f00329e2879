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
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from unified_video_action.env_runner.charts import EDGE, FAINT, name_on_hover, svg

log = logging.getLogger("plot_performance")
COLOURS = {
    "VAE encode": "#0284c7",
    "transformer": "#7c3aed",
    "action diffusion": "#ea580c",
    "video diffusion": "#16a34a",
    "VAE decode": "#db2777",
    "between": "#94a3b8",
}
OTHER = "#64748b"  # of a part without a colour
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


def draw(results: dict[str, Any]) -> str:
    """The picture, as SVG."""
    plans = bars(results)
    machine, samplers = results["machine"], results["samplers"]
    cpu = f"{machine['processor']}, threads: {machine['threads']}"
    where = machine["gpu"] if machine["device"].startswith("cuda") else cpu
    precision = PRECISIONS.get(machine["precision"], machine["precision"])
    about = f"{results['parameters'] / 1e6:.1f} M parameters on {where}, {precision}"
    figure = Figure((10, 1.5 + 0.7 * len(plans)), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_title(f"{about}; {samplers['actions']} for actions, {samplers['frames']} for frames", size=10, loc="left")
    for row, (_, *both) in enumerate(plans):
        for parts, y, alpha in zip(both, (row, row + 0.4), (1.0, 0.45), strict=True):
            end = 0.0
            for part, milliseconds in parts.items():
                (bar,) = axes.barh(y, milliseconds, 0.36, end, color=COLOURS.get(part, OTHER), alpha=alpha)
                name_on_hover(bar, f"{part}: {milliseconds:.2f} ms")
                end += milliseconds
            axes.annotate(f"{end:.3g} ms", (end, y), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks([row + 0.2 for row in range(len(plans))], [plan for plan, *_ in plans])
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("ms; pale: the floor", color=FAINT)
    axes.grid(axis="x", color=EDGE)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    used = {part for _, *both in plans for parts in both for part in parts}
    shown = [Patch(color=COLOURS.get(part, OTHER), label=part) for part in dict.fromkeys([*COLOURS, *used])]
    shown = [patch for patch in shown if patch.get_label() in used]
    figure.legend(handles=shown, loc="outside upper left", ncols=len(shown), frameon=False)
    return svg(figure)


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
