"""report.html: one page that holds everything about an evaluation, to be opened anywhere or sent along.

Films and pictures are inside the page; it uses no script and no network.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from unified_video_action.env_runner.charts import Line, histogram, line_chart, thin
from unified_video_action.env_runner.metrics import TASK_RATE, task_names

STYLE = Path(__file__).with_name("report.css")
NOT_CURVES = {"step", "time"}  # entries of metrics.jsonl that are no curves
LEARNING = {  # what a training is judged by: chart -> entry of metrics.jsonl -> what it is; styles in STYLES' order
    "mean score in the simulator": {"evaluation/mean_score": "mean score of a few episodes"},
    "PSNR of imagined frames, dB": {
        "validation/forward_dynamics_psnr": "from the recorded actions",
        "validation/frame_psnr": "from the history alone",
        "validation/frame_psnr_still": "newest frame repeated",
    },
    "distance of actions from the recorded ones": {
        "validation/action_error_chunk": "policy",
        "validation/inverse_dynamics_error": "inverse dynamics",
    },
}
STYLES = ("mean", "second", "floor")


@dataclass(frozen=True)
class Film:
    """One film of the page."""

    label: str  # best, median, worst, ...
    seed: int
    score: float
    path: Path  # mp4


def write_report(
    path: Path,
    results: Mapping[str, Any],
    title: str,
    films: Sequence[Film] = (),
    training_log: Path | None = None,
    facts: Mapping[str, str] | None = None,
    film_note: str = "",
) -> None:
    """Write the page.

    Args:
        results: what `results.describe_results` returned.
        training_log: metrics.jsonl of the training run, one JSON object with `step` per line; it may be absent.
        facts: short lines for the head of the page (checkpoint, weights, sampler, ...).
        film_note: what the films show.
    """
    episodes = [episode for episode in results["episodes"] if episode["crashed"] is None]
    sections = [_headline(results["metrics"])]
    if films:
        sections.append(_section("Films", _films(films, film_note)))
    if tasks := task_names(results["metrics"]):
        sections.append(_section("Tasks", _tasks(tasks, results["metrics"])))
    sections.append(_section("Scores", _scores(episodes, results["metrics"])))
    if training_log is not None and training_log.is_file() and (curves := _training(training_log, results)):
        sections.append(_section("Training", curves))
    sections.append(_section("Episodes", _table(results["episodes"])))
    sections.append(_section("How this was made", _provenance(results)))
    head = "".join(f"<span><b>{escape(name)}</b> {escape(value)}</span>" for name, value in (facts or {}).items())
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE.read_text()}</style></head><body><main>"
        f'<header><h1>{escape(title)}</h1><p class="facts">{head}</p></header>'
        f"{''.join(sections)}</main></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _headline(metrics: Mapping[str, float]) -> str:
    cards = [
        _card("mean score", f"{metrics['mean_score']:.3f}", _interval(metrics, "mean_score", 1, 3)),
        _card("success rate", f"{100 * metrics['success_rate']:.1f} %", _interval(metrics, "success_rate", 100, 1)),
    ]
    for name, value in metrics.items():
        if name.startswith("mean_max_") and f"{name}_low" in metrics:
            what = f"mean max {name.removeprefix('mean_max_')}"
            cards.append(_card(what, f"{value:.3f}", _interval(metrics, name, 1, 3)))
    cards.append(_card("mean length", f"{metrics['mean_steps']:.0f}", "control steps"))
    crashed = metrics["crashed"]
    cards.append(_card("episodes", f"{metrics['episodes']}", f"{crashed} crashed" if crashed else "none crashed"))
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(name: str, value: str, note: str) -> str:
    lines = f"<span>{escape(name)}</span><strong>{escape(value)}</strong><small>{escape(note)}</small>"
    return f'<div class="card">{lines}</div>'


def _interval(metrics: Mapping[str, float], name: str, factor: float, digits: int) -> str:
    low, high = (factor * metrics[f"{name}_{end}"] for end in ("low", "high"))
    return f"95 %: {low:.{digits}f} to {high:.{digits}f}"


def _films(films: Sequence[Film], note: str) -> str:
    figures = []
    for film in films:
        data = base64.b64encode(film.path.read_bytes()).decode("ascii")
        caption = f"<b>{escape(film.label)}</b> seed {film.seed}, score {film.score:.3f}"
        figures.append(
            f'<figure><video src="data:video/mp4;base64,{data}" controls autoplay muted loop playsinline></video>'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<p class="note">{escape(note)}</p><div class="films">{"".join(figures)}</div>'


def _tasks(tasks: Sequence[str], metrics: Mapping[str, float]) -> str:
    rows = [
        f"<tr><td>{escape(task)}</td><td>{100 * metrics[f'{task}{TASK_RATE}']:.1f} % "
        f'<span class="meter"><i style="width:{100 * metrics[f"{task}{TASK_RATE}"]:.1f}%"></i></span></td>'
        f"<td>{metrics[f'{task}/mean_score']:.3f}</td><td>{metrics[f'{task}/episodes']}</td></tr>"
        for task in tasks
    ]
    mean = f"<tr><td><b>mean of the tasks</b></td><td>{100 * metrics['mean_task_success_rate']:.1f} %</td></tr>"
    head = "<tr><th>task</th><th>success rate</th><th>mean score</th><th>episodes</th></tr>"
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}{mean}</tbody></table></div>'


def _scores(episodes: Sequence[Mapping[str, Any]], metrics: Mapping[str, float]) -> str:
    bars = histogram(
        [episode["score"] for episode in episodes],
        "largest score of an episode",
        marker=(metrics["mean_score"], f"mean {metrics['mean_score']:.3f}"),
    )
    lines = [
        Line(
            thin(list(enumerate(episode["curve"], 1)), 150),
            "line success" if episode["success"] else "line failure",
            f"seed {episode['seed']}, score {episode['score']:.3f}",
        )
        for episode in episodes
    ]
    longest = max(len(episode["curve"]) for episode in episodes)
    best = [np.maximum.accumulate(episode["curve"]) for episode in episodes]
    best = np.mean([np.pad(curve, (0, longest - len(curve)), mode="edge") for curve in best], axis=0)  # (longest,)
    lines.append(Line(thin(list(enumerate(best.tolist(), 1)), 150), "line mean", "mean of the best score so far"))
    curves = line_chart(lines, "control step", "score", y_range=(0.0, 1.0))
    key = (
        '<p class="key"><span><i class="success"></i>successful</span><span><i class="failure"></i>not</span>'
        '<span><i class="mean"></i>mean of the best so far</span></p>'
    )
    return f'<div class="charts"><div>{bars}</div><div>{curves}{key}</div></div>'


def _training(log: Path, results: Mapping[str, Any]) -> str:
    """What was learned, over samples; all other curves below, folded away."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = _entry(line)
        for name, value in entry.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if number and name not in NOT_CURVES and "step" in entry:
                curves.setdefault(name, []).append((entry["step"], value))
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    batch = ((results["config"] or {}).get("training") or {}).get("batch_size")
    learning = [_learning(title, names, curves, batch) for title, names in LEARNING.items() if names.keys() & curves]
    charts = [
        f"<figure><figcaption>{escape(name)}</figcaption>"
        f"{line_chart([Line(thin(points, 200), 'line mean', name)], 'step', '', size=(330, 190))}</figure>"
        for name, points in curves.items()
    ]
    if not charts:
        return ""
    summary = f"<summary>all {len(charts)} curves</summary>"
    every = f'<details>{summary}<div class="small charts">{"".join(charts)}</div></details>'
    return f'<div class="charts">{"".join(learning)}</div>{every}'


def _learning(
    title: str, names: Mapping[str, str], curves: Mapping[str, Sequence[tuple[float, float]]], batch: int | None
) -> str:
    """One chart of LEARNING over samples; over steps where the size of a batch is not known."""
    shown = [(curves[name], style, text) for (name, text), style in zip(names.items(), STYLES) if name in curves]
    lines = [
        Line([((batch or 1) * step, value) for step, value in thin(points, 200)], f"line {style}", text)
        for points, style, text in shown
    ]
    values = [value for line in lines for _, value in line.points]
    room = 0.06 * (max(values) - min(values))  # so that no curve lies on the axis
    bounds = (0.0, 1.0) if "evaluation/mean_score" in names else (min(values) - room, max(values) + room)
    chart = line_chart(lines, "samples" if batch else "step", "", y_range=bounds)
    keys = "".join(f'<span><i class="{style}"></i>{escape(text)}</span>' for _, style, text in shown)
    return f'<figure><figcaption>{escape(title)}</figcaption>{chart}<p class="key">{keys}</p></figure>'


def _entry(line: str) -> dict[str, Any]:
    """One record of the log; empty for the half-written last line of a run that goes on."""
    try:
        return json.loads(line)
    except ValueError:
        return {}


def _table(episodes: Sequence[Mapping[str, Any]]) -> str:
    maxima = [name for name in max(episodes, key=len) if name.startswith("max_")]
    tasks = any("task" in episode for episode in episodes)
    names = ["seed", *(["task"] if tasks else []), "score", *(name.replace("_", " ") for name in maxima)]
    names += ["success", "steps"]
    if crashed := any(episode["crashed"] for episode in episodes):
        names.append("crashed")
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for episode in episodes:
        bar = f'<span class="meter"><i style="width:{100 * min(episode["score"], 1):.1f}%"></i></span>'
        cells = [
            str(episode["seed"]),
            *([escape(episode.get("task", ""))] if tasks else []),
            f"{episode['score']:.3f} {bar}",
            *(f"{episode[name]:.3f}" if name in episode else "" for name in maxima),
            '<b class="yes">yes</b>' if episode["success"] else "no",
            str(episode["steps"]),
        ]
        if crashed:
            cells.append(escape(episode["crashed"] or ""))
        style = ' class="crashed"' if episode["crashed"] else ""
        rows.append(f"<tr{style}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _provenance(results: Mapping[str, Any]) -> str:
    lines = {
        "command": results["command"],
        "made": results["created"],
        "commit": results["commit"] or "not a repository",
        **results["machine"],
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    }
    if plan_ms := results.get("plan_ms"):
        lines["one plan"] = f"{plan_ms['median']:.1f} ms for {plan_ms['environments']} environments together (median)"
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in lines.items())
    config = escape(json.dumps(results["config"], indent=2))
    details = f"<details><summary>resolved configuration</summary><pre>{config}</pre></details>"
    return f"<dl>{rows}</dl>{details if results['config'] else ''}"
