"""A table of `study.Study` as text, JSON and a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_video_action.env_runner.report import write_page
from unified_video_action.env_runner.results import git_commit, machine, versions, write_json


def score_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Head, and a line for each cell whose episodes were simulated."""
    compare, paper = results["compare"], results["paper"]
    head = ["", "", "mean score", "of each training seed", "success", "a plan, ms"]
    table = [[*head, *[f"less {compare}"] * bool(compare), *["in the paper"] * bool(paper)]]
    for cell in _sorted(results):
        found = cell["figures"]
        seeds = ", ".join(f"{value:.3f}" for value in found["score"]["by_seed"])
        line = [cell["row"], cell["column"], _figure(found["score"]), seeds, _figure(found["success"], 100, 1) + " %"]
        line.append(f"{cell['plan_ms']:.0f}" if "plan_ms" in cell else "-")
        if compare:
            line.append(_difference(cell["difference"]) if "difference" in cell else "-")
        if paper:
            line.append(str(paper.get(cell["row"], {}).get(cell["column"], "-")))
        table.append(line)
    return table


def measure_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Head, and a line for each measure of each cell."""
    compare = results["compare"]
    table = [["measure", "", "", "mean of the training seeds", *[f"less {compare}"] * bool(compare)]]
    for name in results["measures"]:
        for cell in _sorted(results):
            if measure := cell["measures"].get(name):
                line = [name, cell["row"], cell["column"], _figure(measure, digits=2)]
                if compare:
                    line.append(_difference(measure["difference"], 2) if "difference" in measure else "-")
                table.append(line)
    return table


def tables_of(results: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Title -> rows, the first one the head."""
    found = {"Scores": score_rows(results)} if results["simulated"] else {}
    return found | ({"Measures": measure_rows(results)} if results["measures"] else {})


def bars_of(results: Mapping[str, Any]) -> list[tuple[str, float, list[tuple[str, Mapping[str, Any]]]]]:
    """Charts: a title, what their full length is, and a figure of each cell by its name."""
    named = [(f"{cell['row']}, {cell['column']}", cell) for cell in results["cells"]]
    charts = []
    if results["simulated"]:
        charts.append(("Mean score, from 0 to 1", 1.0, [(name, cell["figures"]["score"]) for name, cell in named]))
    for measure in results["measures"]:
        bars = [(name, cell["measures"][measure]) for name, cell in named if measure in cell["measures"]]
        if bars and min(figure["low"] for _, figure in bars) >= 0:
            most = max(figure["high"] for _, figure in bars)
            charts.append((f"{measure}, from 0 to {most:.3g}", most, bars))
    return charts


def missing(results: Mapping[str, Any]) -> list[str]:
    """Why cells are missing, a line for each reason, with the cells' names."""
    reasons: dict[str, list[str]] = {}
    for name, why in results["missing"].items():
        reasons.setdefault(why, []).append(name)
    return [f"{why}: {'; '.join(names)}" for why, names in reasons.items()]


def _figure(found: Mapping[str, Any], factor: float = 1, digits: int = 3) -> str:
    value, low, high = (f"{factor * found[name]:.{digits}f}" for name in ("value", "low", "high"))
    return value if low == high == value else f"{value} ({low} to {high})"


def _difference(found: Mapping[str, Any], digits: int = 3) -> str:
    return _figure(found, digits=digits) + ("" if found["claimed"] else ", not claimed")


def _sorted(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    return sorted(results["cells"], key=lambda cell: results["columns"].index(cell["column"]))


def text_tables(results: Mapping[str, Any]) -> str:
    """For a terminal, and as Markdown for a document."""
    lines = [f"\n{results['title']}; {results['budget']}: {results['says']}"]
    for head, *rows in tables_of(results).values():
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *(f"missing, {line}" for line in missing(results))])


def write_table(output: Path, results: Mapping[str, Any]) -> None:
    """Write table.json and table.html."""
    output.mkdir(parents=True, exist_ok=True)
    made = {"machine": machine(), "commit": git_commit(), "versions": versions()}
    write_json(output / "table.json", {**results, "made": made})
    write_page(
        output / "table.html",
        "study.html",
        title=results["title"],
        results=results,
        tables=tables_of(results),
        missing=missing(results),
        charts=bars_of(results),
        made=made,
    )
