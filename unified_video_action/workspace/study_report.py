"""A table of `study.Study` as text, JSON and a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_video_action.env_runner.report import write_page
from unified_video_action.env_runner.results import git_commit, machine, versions, write_json


def rows_of(results: Mapping[str, Any]) -> list[list[str]]:
    """The table as text, a line for each cell that is there; the first one is the head."""
    compare, paper = results["compare"], results["paper"]
    table = [["", "", "mean score", "of each training seed", "success", "a plan, ms"]]
    table[0] += results["held_out"]
    table[0] += [f"less {compare}"] * bool(compare) + ["in the paper"] * bool(paper)
    for cell in sorted(results["cells"], key=lambda cell: results["columns"].index(cell["column"])):
        found = cell["figures"]
        seeds = ", ".join(f"{value:.3f}" for value in found["score"]["by_seed"])
        line = [cell["row"], cell["column"], _figure(found["score"]), seeds, _figure(found["success"], 100, 1) + " %"]
        line.append(f"{cell['plan_ms']:.0f}" if "plan_ms" in cell else "-")
        for name in results["held_out"]:
            measure = cell["held_out"].get(name)
            text = "-" if measure is None else _figure(measure, digits=2)
            line.append(f"{text}; {_difference(measure['difference'], 2)}" if "difference" in (measure or {}) else text)
        if compare:
            line.append(_difference(cell["difference"]) if "difference" in cell else "-")
        if paper:
            line.append(str(paper.get(cell["row"], {}).get(cell["column"], "-")))
        table.append(line)
    return table


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


def text_table(results: Mapping[str, Any]) -> str:
    """For a terminal, and as Markdown for a document."""
    head, *rows = rows_of(results)
    lines = [f"\n{results['title']}; {results['budget']}: {results['says']}\n", f"| {' | '.join(head)} |"]
    lines += ["|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
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
        table=rows_of(results),
        missing=missing(results),
        bars=[(cell, cell["figures"]["score"]) for cell in results["cells"]],
        made=made,
    )
