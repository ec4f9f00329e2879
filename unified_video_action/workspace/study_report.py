"""A table of `study.Study` as text, JSON and a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_video_action.env_runner.report import write_page
from unified_video_action.env_runner.results import git_commit, machine, versions, write_json


def rows_of(results: Mapping[str, Any]) -> list[list[str]]:
    """The table as text, the first row its head."""
    cells = {(cell["row"], cell["column"]): cell for cell in results["cells"]}
    names = dict.fromkeys(row for row, _ in cells), dict.fromkeys(column for _, column in cells)
    table = [["", *(title for column in names[1] for title in _titles(column, results))]]
    for row in names[0]:
        line = [row]
        for column in names[1]:
            cell = cells.get((row, column))
            line += _cell(cell, results) if cell else ["missing"] + [""] * (len(_titles(column, results)) - 1)
        table.append(line)
    return table


def _titles(column: str, results: Mapping[str, Any]) -> list[str]:
    titles = [column, f"{column}: training seeds", f"{column}: success"]
    titles += [f"{column}: less {results['compare']}"] if results["compare"] else []
    return titles + ([f"{column}: in the paper"] if results["paper"] else [])


def _cell(cell: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    found = cell["figures"]["score"]
    words = [_figure(found), ", ".join(f"{value:.3f}" for value in found["by_seed"])]
    words.append(_figure(cell["figures"]["success"], 100, 1) + " %")
    if results["compare"]:
        other = cell.get("difference")
        words.append("-" if other is None else _figure(other) + ("" if other["claimed"] else ", not claimed"))
    if results["paper"]:
        words.append(str(results["paper"].get(cell["row"], {}).get(cell["column"], "-")))
    return words


def _figure(found: Mapping[str, Any], factor: float = 1, digits: int = 3) -> str:
    value, low, high = (f"{factor * found[name]:.{digits}f}" for name in ("value", "low", "high"))
    return value if low == high == value else f"{value} ({low} to {high})"


def text_table(results: Mapping[str, Any]) -> str:
    """For a terminal, and as Markdown for a document."""
    head, *rows = rows_of(results)
    lines = [f"\n{results['title']}; {results['budget']}: {results['says']}\n", f"| {' | '.join(head)} |"]
    lines += ["|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines, "", *(f"missing: {name}: {why}" for name, why in results["missing"].items())])


def write_table(output: Path, results: Mapping[str, Any]) -> None:
    """Write table.json and table.html."""
    output.mkdir(parents=True, exist_ok=True)
    made = {"machine": machine(), "commit": git_commit(), "versions": versions()}
    write_json(output / "table.json", {**results, "made": made})
    best = max((cell["figures"]["score"]["high"] for cell in results["cells"]), default=1.0)
    write_page(
        output / "table.html",
        "study.html",
        title=results["title"],
        results=results,
        table=rows_of(results),
        bars=[(cell, cell["figures"]["score"]) for cell in results["cells"]],
        most=best or 1.0,
        made=made,
    )
