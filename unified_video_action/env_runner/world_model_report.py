"""Tables and a page of what `evaluation.world_model` measures."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from unified_video_action.env_runner.charts import Line, line_chart
from unified_video_action.env_runner.report import STYLE

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
COLOURS = ("#2f6fed", "#12a065", "#c8372d", "#8b5cf6", "#d97706", "#667085")
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


def write_world_model_report(path: Path, results: Mapping[str, Any], sheet: Path | None = None) -> None:
    """Write the page: tables, curves by horizon and, inside it, the sheet of pictures."""
    sections = [_curves(results)]
    if sheet is not None:
        data = base64.b64encode(sheet.read_bytes()).decode("ascii")
        picture = f'<img alt="imagined frames" style="width:100%" src="data:image/png;base64,{data}">'
        sections.append(f"<section><h2>Pictures</h2>{picture}</section>")
    for title, table in tables(results).items():
        head, *rows = (
            "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
            for tag, row in zip(("th", *["td"] * (len(table) - 1)), table, strict=True)
        )
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        table_html = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        sections.append(f'<section><h2>{escape(title)}</h2><div class="scroll">{table_html}</div></section>')
    notes = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in NOTES.items())
    made = {name: results[name] for name in ("settings", "intervals", "machine", "commit", "versions")}
    sections.append(
        f"<section><h2>What the rows mean</h2><dl>{notes}</dl><details><summary>how this was made</summary>"
        f"<pre>{escape(json.dumps(made, indent=2))}</pre></details></section>"
    )
    warnings = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in results["warnings"])
    lines = "".join(f".line.c{index} {{ stroke: {colour}; stroke-width: 2; }}" for index, colour in enumerate(COLOURS))
    keys = "".join(f".key .c{index} {{ background: {colour}; }}" for index, colour in enumerate(COLOURS))
    title = f"World model of {Path(results['checkpoint']).name}"
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE.read_text()}{lines}{keys}'
        f".warning {{ color: var(--bad); }}</style></head><body><main><header><h1>{escape(title)}</h1>"
        f'<p class="facts">{escape(_summary(results))}</p>{warnings}</header>'
        f"{''.join(sections)}</main></body></html>\n",
        encoding="utf-8",
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


def _curves(results: Mapping[str, Any]) -> str:
    charts = []
    for name in ("psnr", "agent_mean", "block", "whole"):
        rows = {row: metrics[name] for row, metrics in results["frames"].items() if name in metrics}
        charts.append(_chart(FRAME_METRICS[name][0], results["horizon"], rows, FRAME_METRICS[name][1]))
    actions = {row: found["error"] for row, found in results["actions"].items()}
    charts.append(_chart("action error", results["horizon"], actions, 1))
    return f'<section><h2>By horizon</h2><div class="charts">{"".join(charts)}</div></section>'


def _chart(title: str, horizon: Sequence[int], rows: Mapping[str, Any], factor: float) -> str:
    if not rows:
        return ""
    lines, keys = [], []
    for index, (row, found) in enumerate(rows.items()):
        at = [found_at["value"] for found_at in found["by_horizon"]]
        points = [(x, factor * y) for x, y in zip(horizon, at, strict=True) if y is not None]
        lines.append(Line(points, f"line c{index % len(COLOURS)}", _readable(row)))
        keys.append(f'<span><i class="c{index % len(COLOURS)}"></i>{escape(_readable(row))}</span>')
    chart = line_chart(lines, "control steps ahead", title)
    return f'<div>{chart}<p class="key">{"".join(keys)}</p></div>'


def _readable(row: str) -> str:
    return row.replace("_", " ")
