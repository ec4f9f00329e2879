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
    "codec": "the true frames, encoded and decoded: the upper bound for predicted frames",
    "still": "the newest frame, repeated; above still: PSNR minus the PSNR of still for the same frame",
    "*_other": "with the actions, or the future frames, of another window as input",
    "hold": "the newest position, or action, repeated",
    "agent, block": "distance from their positions in the true frames; block and degrees where the "
    "true block moves. What is not found counts as not moved, with an error of at least 100 units (90 degrees)",
    "found, whole": "frames that show agent and block; frames that show exactly one of each, and whole",
    "simulator": "the simulator with the recorded actions, against the recorded frames: the accuracy of the measure",
}
COLOURS = 6  # styles c0 .. c5 of the charts
Table = list[list[str]]  # the first row is the head


def tables(results: Mapping[str, Any]) -> dict[str, Table]:
    """All figures as text, by title."""
    horizon, frames = results["horizon"], results["frames"]
    found = {"Frames": _frame_table(frames)}
    for name in ("psnr", "gain", "agent", "block"):
        title, *form = FRAME_METRICS[name]
        rows = {row: metrics[name] for row, metrics in frames.items() if name in metrics}
        found[f"Frames by horizon: {title}"] = _horizon_table(horizon, rows, *form)
    errors = {name: row["error"] for name, row in results["actions"].items()}
    found["Actions: mean distance from the recorded ones"] = _horizon_table(horizon, errors, 1, 1)
    ratios = {text: results["ratios"][name] for name, text in RATIOS.items() if name in results["ratios"]}
    found["One against the other"] = _figures(ratios)
    if best := results.get("best_of"):
        title = f"Best of {best['samples']} imagined futures ({best['row']})"
        found[title] = _figures({"PSNR, dB": best["psnr"], "above repeating the newest frame, dB": best["gain"]})
    if "plan" in results:
        found["Plans: imagined against the simulator that executes them"] = _frame_table(results["plan"])
    health = [[text, f"{results['health'][name]:.3f}"] for name, text in HEALTH.items() if name in results["health"]]
    found["Health of the heads"] = [["", ""], *health]
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
    charts = []
    for name in ("psnr", "agent_mean", "block", "whole"):
        rows = {row: metrics[name] for row, metrics in results["frames"].items() if name in metrics}
        charts.append((FRAME_METRICS[name][0], rows, FRAME_METRICS[name][1]))
    charts.append(("action error", {row: found["error"] for row, found in results["actions"].items()}, 1))
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
        made=json.dumps(
            {name: results[name] for name in ("settings", "intervals", "machine", "commit", "versions")}, indent=2
        ),
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


def _horizon_table(horizon: Sequence[int], rows: Mapping[str, Any], factor: float, digits: int) -> Table:
    table = [["", *(f"+{offset}" for offset in horizon), "all (95 %)"]]
    for row, found in rows.items():
        each = ["-" if at["value"] is None else f"{factor * at['value']:.{digits}f}" for at in found["by_horizon"]]
        table.append([_readable(row), *each, figure(found, factor, digits)])
    return table


def _figures(rows: Mapping[str, Any]) -> Table:
    return [["", "95 %"], *([text, figure(value)] for text, value in rows.items())]


def _chart(title: str, horizon: Sequence[int], rows: Mapping[str, Any], factor: float) -> dict[str, Any]:
    lines = []
    for index, (row, found) in enumerate(rows.items()):
        values = zip(horizon, found["by_horizon"], strict=True)
        points = [(x, factor * at["value"]) for x, at in values if at["value"] is not None]
        lines.append(Line(points, f"c{index % COLOURS}", _readable(row)))
    svg = line_chart(lines, "control steps ahead", title)
    return {"svg": svg, "key": [(line.style, line.title) for line in lines]}


def _readable(row: str) -> str:
    return row.replace("_", " ")
