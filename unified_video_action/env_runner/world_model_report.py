"""Tables and a page of what `evaluation.world_model` measures."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_video_action.env_runner.charts import Line, line_chart
from unified_video_action.env_runner.report import write_page

FRAME_METRICS = {  # metric -> title, factor and digits
    "psnr": ("PSNR, dB", 1, 2),
    "gain": ("above still, dB", 1, 2),
    "agent": ("agent, median", 1, 1),
    "agent_mean": ("agent, mean", 1, 1),
    "block": ("block, mean", 1, 1),
    "angle": ("block, degrees", 1, 1),
    "whole": ("whole, %", 100, 1),
    "found": ("found, %", 100, 1),
}
RATIOS = {
    "follows_actions_agent": "follows actions: agent's error with other actions / with the true ones",
    "follows_actions_block": "follows actions: block's error with other actions / with the true ones",
    "follows_actions_psnr": "follows actions: dB by which the true actions are better",
    "reads_frames": "reads frames: action error with other frames / with the true ones",
    "inverse_vs_policy": "action error of inverse dynamics / of the policy",
}
HEALTH = {
    "action_live": "action head: share of live units in the weakest layer",
    "action_spread": "action head: spread of its condition",
    "proprio_live": "state head: share of live units in the weakest layer",
    "proprio_spread": "state head: spread of its condition",
    "video_explained": "video head: variance explained at the highest noise level",
    "video_explained_other": "video head: the same with another sample's condition",
}
NOTES = {
    "codec": "the true frames, encoded and decoded: the best that frames can be",
    "still": "the newest frame, repeated; above still: PSNR less that of the same frame of still",
    "*_other": "shown the actions, or the future frames, of another window",
    "hold": "the newest position, or action, repeated",
    "agent, block": "distance from where they are in the true frames; block and degrees where the "
    "true block moves. What is not found counts as left where it was, and at least 100 units (90 degrees) off",
    "found, whole": "frames in which agent and block are somewhere; in which there are exactly one of each, and whole",
    "simulator": "the simulator with the recorded actions, against the recorded frames: how exact the comparison is",
}
COLOURS = 6  # styles c0 .. c5 of the charts
Table = list[list[str]]  # the first row is the head


def tables(results: Mapping[str, Any]) -> dict[str, Table]:
    """All figures as text, by title."""
    found = {"Frames": _frame_table(results["frames"])}
    for name in ("psnr", "gain", "agent", "block"):
        if any(name in row for row in results["frames"].values()):
            found[f"Frames by horizon: {FRAME_METRICS[name][0]}"] = _horizon_table(
                results["horizon"], {row: metrics[name] for row, metrics in results["frames"].items()}, name
            )
    actions = {name: row["error"] for name, row in results["actions"].items()}
    found["Actions: mean distance from the recorded ones"] = _horizon_table(results["horizon"], actions, "action")
    found["One against the other"] = [
        ["", "95 %"],
        *([text, figure(results["ratios"][name], 1, 2)] for name, text in RATIOS.items() if name in results["ratios"]),
    ]
    if best := results.get("best_of"):
        found[f"Best of {best['samples']} imagined futures ({best['row']})"] = [
            ["", "95 %"],
            ["PSNR, dB", figure(best["psnr"], 1, 2)],
            ["above repeating the newest frame, dB", figure(best["gain"], 1, 2)],
        ]
    if "plan" in results:
        found["Plans: imagined against the simulator that executes them"] = _frame_table(results["plan"])
    found["Health of the heads"] = [
        ["", ""],
        *([text, f"{results['health'][name]:.3f}"] for name, text in HEALTH.items() if name in results["health"]),
    ]
    return {title: table for title, table in found.items() if len(table) > 1}


def text_tables(results: Mapping[str, Any]) -> str:
    """The tables for a terminal."""
    lines = [_summary(results)]
    for title, table in tables(results).items():
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        rows = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
        lines += ["", title, *rows]
    return "\n".join([*lines, *(f"\nwarning: {warning}" for warning in results["warnings"])])


def write_world_model_report(path: Path, results: Mapping[str, Any], pictures: Path | None = None) -> None:
    """Write the page: tables, curves by horizon and, inside it, a PNG of imagined frames."""
    frames = {
        name: {row: metrics[name] for row, metrics in results["frames"].items() if name in metrics}
        for name in ("psnr", "agent_mean", "block", "whole")
    }
    charts = [(FRAME_METRICS[name][0], rows, FRAME_METRICS[name][1]) for name, rows in frames.items()]
    charts.append(("action error", {row: found["error"] for row, found in results["actions"].items()}, 1))
    made = {name: results[name] for name in ("settings", "intervals", "machine", "commit", "versions")}
    write_page(
        path,
        "world_model.html",
        title=f"World model of {Path(results['checkpoint']).name}",
        summary=_summary(results),
        results=results,
        charts=[_chart(title, results["horizon"], rows, factor) for title, rows, factor in charts if rows],
        pictures=None if pictures is None else base64.b64encode(pictures.read_bytes()).decode("ascii"),
        tables=tables(results),
        notes=NOTES,
        made=json.dumps(made, indent=2),
    )


def figure(value: Mapping[str, float | None], factor: float = 1, digits: int = 2) -> str:
    """A figure with its interval."""
    if value["value"] is None:
        return "-"
    middle, low, high = (f"{factor * value[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{middle} ({low} to {high})"


def _summary(results: Mapping[str, Any]) -> str:
    text = f"{results['windows']} windows of {results['episodes']} held-out episodes"
    text += f"; lengths in {results['unit']}" if results["unit"] else ""
    return f"{text}; not trained: {', '.join(results['not_trained'])}" if results["not_trained"] else text


def _frame_table(rows: Mapping[str, Any]) -> Table:
    metrics = [name for name in FRAME_METRICS if any(name in row for row in rows.values())]
    table = [["", *(FRAME_METRICS[name][0] for name in metrics)]]
    for row, found in rows.items():
        table.append([_readable(row), *(figure(found[name], *FRAME_METRICS[name][1:]) for name in metrics)])
    return table


def _horizon_table(horizon: Sequence[int], rows: Mapping[str, Any], metric: str) -> Table:
    factor, digits = FRAME_METRICS.get(metric, ("", 1, 1))[1:]
    table = [["", *(f"+{offset}" for offset in horizon), "all (95 %)"]]
    for row, found in rows.items():
        each = ["-" if at["value"] is None else f"{factor * at['value']:.{digits}f}" for at in found["by_horizon"]]
        table.append([_readable(row), *each, figure(found, factor, digits)])
    return table


def _chart(title: str, horizon: Sequence[int], rows: Mapping[str, Any], factor: float) -> dict[str, Any]:
    lines = []
    for index, (row, found) in enumerate(rows.items()):
        at = [found_at["value"] for found_at in found["by_horizon"]]
        points = [(x, factor * y) for x, y in zip(horizon, at, strict=True) if y is not None]
        lines.append(Line(points, f"c{index % COLOURS}", _readable(row)))
    svg = line_chart(lines, "control steps ahead", title)
    return {"svg": svg, "key": [(line.style, line.title) for line in lines]}


def _readable(row: str) -> str:
    return row.replace("_", " ")
