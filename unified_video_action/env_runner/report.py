"""report.html: one page that holds everything about an evaluation, to be opened anywhere or sent along.

Videos and pictures are inside the page; it uses no script and no network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from unified_video_action.env_runner.charts import Line, histogram, line_chart, thin
from unified_video_action.env_runner.results import task_names
from unified_video_action.env_runner.videos import RolloutVideo

NOT_CURVES = {"step", "time"}  # entries of metrics.jsonl without a curve
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
Curves = dict[str, list[tuple[float, float]]]  # name -> (step, value)


def write_page(path: Path, template: str, **context: Any) -> None:
    """Fill a template of this package; all but the figures is escaped."""
    loader, strict = jinja2.PackageLoader("unified_video_action.env_runner"), jinja2.StrictUndefined
    pages = jinja2.Environment(loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    path.write_text(pages.get_template(template).render(**context), encoding="utf-8")


def write_report(
    path: Path,
    results: Mapping[str, Any],
    title: str,
    videos: Sequence[RolloutVideo] = (),
    training_log: Path | None = None,
    video_note: str = "",
) -> None:
    """Write the page of `results.describe_results`; the training's metrics.jsonl may be absent."""
    metrics, episodes = results["metrics"], results["episodes"]
    batch = ((results["config"] or {}).get("training") or {}).get("batch_size")
    curves = {} if training_log is None else read_curves(training_log)
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    completed = [episode for episode in episodes if episode["crashed"] is None]
    score_histogram, score_curves = _scores(completed, metrics["mean_score"])
    figures = ("success_rate", "mean_score", "episodes")
    write_page(
        path,
        "report.html",
        title=title,
        results=results,
        cards=_cards(metrics),
        videos=videos,
        video_note=video_note,
        tasks={task: {name: metrics[f"{task}/{name}"] for name in figures} for task in task_names(metrics)},
        score_histogram=score_histogram,
        score_curves=score_curves,
        learning=[_learning(name, parts, curves, batch) for name, parts in LEARNING.items() if parts.keys() & curves],
        curves={
            name: line_chart([Line(thin(points, 200), title=name)], "step", "", size=(330, 190))
            for name, points in curves.items()
        },
        maxima=[name for name in max(episodes, key=len) if name.startswith("max_")],
        provenance=_provenance(results),
        config=json.dumps(results["config"], indent=2),
    )


def _cards(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Name, value and note of each headline figure."""

    def interval(name: str, factor: float, digits: int) -> str:
        low, high = (factor * metrics[f"{name}_{end}"] for end in ("low", "high"))
        return f"95 %: {low:.{digits}f} to {high:.{digits}f}"

    maxima = [name for name in metrics if name.startswith("mean_max_") and f"{name}_low" in metrics]
    crashed = metrics["crashed"]
    return [
        ("mean score", f"{metrics['mean_score']:.3f}", interval("mean_score", 1, 3)),
        ("success rate", f"{100 * metrics['success_rate']:.1f} %", interval("success_rate", 100, 1)),
        *((f"mean max {name[len('mean_max_') :]}", f"{metrics[name]:.3f}", interval(name, 1, 3)) for name in maxima),
        ("mean length", f"{metrics['mean_steps']:.0f}", "control steps"),
        ("episodes", f"{metrics['episodes']}", f"{crashed} crashed" if crashed else "none crashed"),
    ]


def _scores(episodes: Sequence[Mapping[str, Any]], mean: float) -> tuple[str, str]:
    """The histogram of scores, and every episode's score over its steps."""
    scores, curves = ([episode[name] for episode in episodes] for name in ("score", "curve"))
    bars = histogram(scores, "largest score of an episode", marker=(mean, f"mean {mean:.3f}"))
    styles = ["success" if episode["success"] else "failure" for episode in episodes]
    titles = [f"seed {episode['seed']}, score {episode['score']:.3f}" for episode in episodes]
    longest = max(map(len, curves))
    best = [np.pad(np.maximum.accumulate(curve), (0, longest - len(curve)), mode="edge") for curve in curves]
    curves.append(np.mean(best, axis=0).tolist())
    shown = zip(curves, [*styles, "mean"], [*titles, "mean of the best score so far"], strict=True)
    lines = [Line(thin(list(enumerate(curve, 1)), 150), style, title) for curve, style, title in shown]
    return bars, line_chart(lines, "control step", "score", y_range=(0.0, 1.0))


def read_curves(log: Path) -> Curves:
    """All finite numbers of a training's metrics.jsonl, with their steps; none where there is no such file."""
    curves: Curves = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:  # the half-written last line of a run that goes on
            continue
        for name, value in entry.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if number and name not in NOT_CURVES and "step" in entry:
                curves.setdefault(name, []).append((entry["step"], value))
    return curves


def _learning(title: str, names: Mapping[str, str], curves: Curves, batch: int | None) -> dict[str, Any]:
    """One chart of LEARNING over samples; over steps where the size of a batch is not known."""
    lines = [
        Line([((batch or 1) * step, value) for step, value in thin(curves[name], 200)], style, text)
        for (name, text), style in zip(names.items(), STYLES)
        if name in curves
    ]
    values = [value for line in lines for _, value in line.points]
    margin = 0.06 * (max(values) - min(values))  # so that no curve lies on the axis
    bounds = (0.0, 1.0) if "evaluation/mean_score" in names else (min(values) - margin, max(values) + margin)
    svg = line_chart(lines, "samples" if batch else "step", "", y_range=bounds)
    return {"title": title, "svg": svg, "key": [(line.style, line.title) for line in lines]}


def _provenance(results: Mapping[str, Any]) -> dict[str, str]:
    lines = {
        "command": results["command"],
        "made": results["created"],
        "commit": results["commit"] or "not a repository",
        **results["machine"],
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    }
    if plan_ms := results.get("plan_ms"):
        lines["one plan"] = f"{plan_ms['median']:.1f} ms for {plan_ms['environments']} environments together (median)"
    return lines
