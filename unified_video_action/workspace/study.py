"""Tables of the paper, and of questions like its own: rows are trainings, columns tasks or ways to evaluate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock

from unified_video_action.compat.checkpoint_files import METRICS
from unified_video_action.env_runner.report import read_curves
from unified_video_action.env_runner.results import SETTINGS, wilson_interval
from unified_video_action.workspace.commands import CONFIGS, ROOT, hydra_value
from unified_video_action.workspace.study_commands import fill, lacks, run, short_hash, slug
from unified_video_action.workspace.study_statistics import difference, figure, measure_figure

STUDIES = CONFIGS / "reproduce"
RESULTS = "results.json"  # in a cell's folder
SIMULATE = ["eval_sim.py", "--checkpoint", "{checkpoint}", "--n-episodes", "{episodes}", "--videos", "0"]
SIMULATE += ["--output", "{output}"]
# score, success -> seed of an episode -> value; plan_ms -> median; measures -> name -> value, low, high
Values = dict[str, dict[str, Any]]
MEAN = "mean"  # the column of a table that also has all episodes of its columns together


@dataclass(frozen=True)
class Cell:
    """One training seed of a row, measured as a column says."""

    row: str
    column: str
    seed: int
    checkpoint: Path | None  # in the run's folder, of equal words the same in all tables; None: an untrained model
    output: Path  # of its measurement
    trainings: dict[Path, list[str]]  # checkpoint -> words of the training that makes it; empty: it is given
    evaluate: list[str]
    makes: dict[Path, list[str]]  # what the training needs -> words that make it

    @property
    def name(self) -> str:
        return f"{self.row} / {self.column} / seed {self.seed}"


class Study:
    """A file of config/reproduce at one budget.

    Args:
        name: of the file. budget: one of its budgets. output: folder for all its results. data: of demonstrations.

    Raises:
        ValueError: no such study or budget; its words name a value that nothing gives.
    """

    def __init__(self, name: str, budget: str, output: Path, data: Path) -> None:
        path = STUDIES / f"{name}.yaml"
        if not path.is_file():
            raise ValueError(f"there is no table {name!r}; there are {', '.join(names())}")
        self.name, self.budget_name, self.output, self._data = name, budget, output, data
        self.text = yaml.safe_load(path.read_text())
        self.text["columns"] = {str(name): about for name, about in self.text["columns"].items()}
        budgets = _budgets(self.text)
        if budget not in budgets:
            raise ValueError(f"{name} has no budget {budget!r}; it has {', '.join(budgets)}")
        self.budget = budgets[budget]
        self.rows = self.budget.get("rows", list(self.text["rows"]))
        self.columns = self.budget.get("columns", list(self.text["columns"]))

    def cells(self) -> Iterator[Cell]:
        for row in self.rows:
            for column in self.columns:
                for seed in self.budget["seeds"]:
                    yield (cell := self._cell(row, column, seed))
                    if not cell.trainings:
                        break  # given weights have no training seeds

    def _cell(self, row: str, column: str, seed: int) -> Cell:
        about = self.text["columns"][column]
        values = {"data": str(self._data), "seed": seed, "train": about.get("train", [])}
        values |= {key: value for key, value in (self.budget | about).items() if isinstance(value, str | int | float)}
        words, trainings, command = self.text["rows"][row], {}, self.text.get("command", SIMULATE)
        if isinstance(words, Mapping):
            words = words.get(column, words.get("other", []))
        if isinstance(words, str):
            checkpoint = ROOT / words
            words = [words, (checkpoint / METRICS).read_text()]  # new weights come with new figures
        elif "{checkpoint}" not in command:  # of an untrained model
            checkpoint, command = None, [*command, *words]
        else:
            learner = self.text.get("learner", {}).get(row, "uva")
            if first := self.text.get("first", {}).get(row):
                checkpoint, trainings = self._training(first, learner, values)
                words = [*words, f"init_from={hydra_value(checkpoint)}"]
            checkpoint, last = self._training(words, learner, values)
            trainings |= last
        chosen = [*self.budget.get("evaluate", self.text.get("evaluate", {})).get(row, []), *about.get("evaluate", [])]
        if "{world}" in chosen:
            values["world"], world = self._training(self.text["world"], "uva", values)
            trainings |= world
        measure, paths = [*command, *chosen], dict.fromkeys(("checkpoint", "world", "output", "results"), "")
        measured = short_hash([words, list(trainings.values()), fill(measure, values | paths)])  # of other words: anew
        output = self.output / slug(row) / slug(column) / f"seed{seed}_{measured}"
        values |= {"checkpoint": str(checkpoint), "output": str(output), "results": str(output / RESULTS)}
        evaluate = fill(measure, values)
        makes = {Path(fill([path], values)[0]): fill(words, values) for path, words in about.get("makes", {}).items()}
        makes = {path: [*words, "--output", str(path)] for path, words in makes.items()}
        return Cell(row, column, seed, checkpoint, output, trainings, evaluate, makes)

    def _training(
        self, words: Sequence[str], learner: str, values: Mapping[str, Any]
    ) -> tuple[Path, dict[Path, list[str]]]:
        """A training's checkpoint, and what makes it."""
        spent = {name: self.budget[name][learner] for name in ("steps", "minutes") if name in self.budget}
        values = {**values, "learner": learner, **spent}
        train = fill([*words, *values["train"], *self.budget.get("train", []), "seed={seed}"], values)
        train.sort(key=lambda word: not word.startswith("--"))  # Hydra takes no options after values
        name = train[0].removeprefix("--config-name=")
        checkpoint = self.output.parent / "runs" / f"{name}_{short_hash(train)}" / "checkpoints" / "latest"
        return checkpoint, {checkpoint: train}

    def values(self, cell: Cell) -> Values | None:
        """What a cell was measured to be; None while it is not."""
        path = cell.output / RESULTS
        if not path.is_file():
            return None
        results = json.loads(path.read_text())
        if "command" in self.text:
            return {"measures": self._measures(results, cell.column)}
        kept = [episode for episode in results["episodes"] if episode["crashed"] is None]
        found = {name: {str(each["seed"]): float(each[name]) for each in kept} for name in ("score", "success")}
        found["plan_ms"] = {"median": results["plan_ms"]["median"]} if results.get("plan_ms") else {}
        return found | {"measures": self._held_out(cell)}

    def _measures(self, results: Any, column: str) -> dict[str, list[float]]:
        """Name -> value, low, high, where the table says that they stand in what its command wrote."""
        found = {}
        for name, keys in self.text["measures"].items():
            at = results
            for key in keys.replace("{column}", column).split("/"):
                at = at.get(key, {})
            if at:
                found[name] = [at[end] for end in self.text.get("ends", ("value", "low", "high"))]
        return found

    def _held_out(self, cell: Cell) -> dict[str, list[float]]:
        """The table's measures on held-out windows, at the end of a cell's training."""
        curves = read_curves(cell.checkpoint.parents[1] / "metrics.jsonl") if cell.trainings else {}
        measures = self.text.get("measures", {})
        return {name: [curves[key][-1][1]] * 3 for name, key in measures.items() if key in curves}

    def make(self, cell: Cell) -> str | None:
        """Train and measure a cell, or go on with it: None, or why it cannot be had (the last words of a command)."""
        cell.output.parent.mkdir(parents=True, exist_ok=True)
        log = cell.output.with_suffix(".log")
        for path, words in cell.makes.items():
            with _held(path):
                if not path.exists() and (failed := run(words, log)):
                    return failed
        cache = f"data.cache_dir={hydra_value(self.output.parent / 'cache')}"
        for checkpoint, words in cell.trainings.items():
            with _held(folder := checkpoint.parents[1]):
                if not lacks(checkpoint):
                    continue
                if failed := run(["train.py", *words, cache, f"output_dir={hydra_value(folder)}"], log):
                    return failed
            if lacking := lacks(checkpoint):  # a signal ends a training in order
                return f"the training was stopped and lacks {lacking}; the same command continues it ({log})"
        if self.values(cell) is None:
            return run([*cell.evaluate, *(["--resume"] if (cell.output / SETTINGS).is_file() else [])], log)
        return None

    def table(self, failed: Mapping[str, str] | None = None) -> dict[str, Any]:
        """All figures: each row and column's mean with its interval, seed by seed, and its difference to `compare`.

        Cells that are missing are named, with why they `failed` where that is known.
        """
        found: dict[tuple[str, str], dict[int, Values]] = {}
        missing = {}
        for cell in self.cells():
            if (values := self.values(cell)) is None:
                missing[cell.name] = (failed or {}).get(cell.name, "not made yet")
            else:
                found.setdefault((cell.row, cell.column), {})[cell.seed] = values
        columns = [*self.columns, *([MEAN] if self.text.get("mean") else [])]
        for row in self.rows if MEAN in columns else []:
            each = {column: found.get((row, column), {}) for column in self.columns}
            for seed in set.intersection(*(set(by_seed) for by_seed in each.values())):
                found.setdefault((row, MEAN), {})[seed] = _pooled({column: each[column][seed] for column in each})
        cells = []
        for (row, column), by_seed in found.items():
            entry = {"row": row, "column": column, "seeds": sorted(by_seed)}
            against = found.get((self.text.get("compare"), column), {}) if row != self.text.get("compare") else {}
            if "command" not in self.text:
                entry |= _simulated(by_seed, against)
            measured = {seed: each["measures"] for seed, each in by_seed.items()}
            others = {seed: each["measures"] for seed, each in against.items()}
            entry["measures"] = {
                name: measure_figure(name, measured, others)
                for name in self.text.get("measures", {})
                if any(name in each for each in measured.values())
            }
            cells.append(entry)
        return {
            "title": self.text["title"],
            "budget": self.budget_name,
            "says": self.budget["says"],
            "compare": self.text.get("compare"),
            "paper": self.text.get("paper", {}),
            "columns": columns,
            "simulated": "command" not in self.text,
            "measures": list(self.text.get("measures", {})),
            "cells": cells,
            "missing": missing,
        }


def names() -> list[str]:
    """The tables that can be made."""
    return sorted(path.stem for path in STUDIES.glob("[!_]*.yaml"))


def _budgets(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A table's budgets: those of all tables, with its own values."""
    common = yaml.safe_load((STUDIES / "_budgets.yaml").read_text())
    return {name: about | table.get("budgets", {}).get(name, {}) for name, about in common.items()}


def describe(name: str) -> str:
    """A table's name, title and budgets."""
    text = yaml.safe_load((STUDIES / f"{name}.yaml").read_text())
    lines = [f"{name}: {text['title']}"]
    return "\n".join(lines + [f"  --budget {budget}: {about['says']}" for budget, about in _budgets(text).items()])


def _held(path: Path) -> FileLock:
    """So that jobs which need the same data or training make it once; the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f"{path.name}.lock"))


def _simulated(by_seed: Mapping[int, Values], against: Mapping[int, Values]) -> dict[str, Any]:
    """Figures of a cell's episodes, and its difference to another one's."""
    figures = {name: figure([each[name] for each in by_seed.values()]) for name in ("score", "success")}
    trials = figures["success"]["n"]  # trainings start from the same states, so they are not trials of their own
    low, high = wilson_interval(round(figures["success"]["value"] * trials), trials)
    figures["success"] |= {"low": low, "high": high, "interval": "Wilson, of as many episodes as a training has"}
    found: dict[str, Any] = {"figures": figures}
    if times := [ms for each in by_seed.values() for ms in each["plan_ms"].values()]:
        found["plan_ms"] = float(np.median(times))
    if common := sorted(by_seed.keys() & against.keys()):
        found["difference"] = difference(*([each[seed]["score"] for seed in common] for each in (by_seed, against)))
    return found


def _pooled(by_column: Mapping[str, Values]) -> Values:
    """The episodes of all columns together."""
    names = next(iter(by_column.values()))
    return {
        name: {f"{column} {key}": value for column, each in by_column.items() for key, value in each[name].items()}
        for name in names
    }
