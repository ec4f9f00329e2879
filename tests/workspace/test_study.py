"""Tables: their words compose, their figures are right, and what was made is not made again."""

import json
from pathlib import Path

import pytest
import yaml

from scripts import reproduce
from tests.test_docs import composes, taken
from unified_video_action.workspace import study
from unified_video_action.workspace.study_report import measure_rows, score_rows, write_table
from unified_video_action.workspace.study_statistics import difference, figure, measure_figure


def test_every_table_composes_and_no_two_rows_are_the_same(tmp_path):
    made = {}  # words of a training -> its configuration
    chosen = [(name, budget) for name in study.names() for budget in ("smoke", "small", "full")]
    for name, budget in [*chosen, ("beyond", "mini")]:  # in others mini differs from smoke in numbers alone
        rows = {}
        for cell in study.Study(name, budget, tmp_path / name, tmp_path).cells():
            trained = ""
            for words in cell.trainings.values():
                words = tuple(word for word in words if not word.startswith("seed="))
                if words not in made:
                    config, values, folder = taken("train.py", list(words))
                    assert list(words[len(words) - len(values) :]) == values  # Hydra takes no options after them
                    made[words] = "".join(composes(config, values, folder))
                trained += made[words]
            measured = [word for word in cell.evaluate if str(cell.output) not in word and word != str(cell.checkpoint)]
            same = (cell.column, trained or cell.checkpoint, *measured)
            assert rows.setdefault(same, cell.row) == cell.row, f"{name}, {budget}: the same as {cell.row}"
            if cell.checkpoint not in cell.trainings:
                assert cell.seed == 0 and (cell.checkpoint is None or cell.checkpoint.is_dir())
            for words in (cell.evaluate, *cell.makes.values()):
                taken(words[0], words[1:])  # options that the command has
                assert "{" not in " ".join(words)
    assert len(made) > 30


def test_an_interval_covers_the_mean_of_pooled_episodes():
    found = figure([{"1": 0.0, "2": 1.0}, {"1": 0.5, "2": 0.5, "3": 9.0}])
    assert found["value"] == pytest.approx(0.5) and found["n"] == 2  # of the episodes that both have
    assert found["by_seed"] == pytest.approx([0.5, 10 / 3])
    assert found["low"] == pytest.approx(0.25) and found["high"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("shifts", "claimed"),
    [((0.3, 0.31, 0.29), True), ((0.3, -0.3, 0.02), False), ((0.3,), False)],
    ids=["alike in all trainings", "trainings disagree", "one training"],
)
def test_a_difference_is_claimed_only_of_trainings_that_agree(shifts, claimed):
    other = {str(seed): seed % 7 / 7 for seed in range(50)}
    found = difference(
        [{key: value + shift for key, value in other.items()} for shift in shifts], [other] * len(shifts)
    )
    assert found["value"] == pytest.approx(sum(shifts) / len(shifts))
    assert found["claimed"] is claimed


def fake_episodes(path: Path, scores: dict[int, float]) -> None:
    path.parent.mkdir(parents=True)
    episodes = [dict(seed=seed, score=score, success=score > 0.9, crashed=None) for seed, score in scores.items()]
    path.write_text(json.dumps({"episodes": episodes, "plan_ms": {"median": 20.0}}))


def test_missing_cells_are_named_and_pairs_compared(tmp_path):
    table = study.Study("policies", "mini", tmp_path / "policies_mini", tmp_path)
    cells = {cell.name: cell for cell in table.cells()}
    for seed in range(3):
        fake_episodes(cells[f"UVA / PushT / seed {seed}"].output / "results.json", {1: 1.0, 2: 0.5, 3: 0.6})
        fake_episodes(
            cells[f"DP-C / PushT / seed {seed}"].output / "results.json", {1: 0.79 + seed / 100, 2: 0.3, 3: 0.4}
        )
    results = table.table({"DP-T / PushT / seed 0": "no data"})
    assert results["missing"].pop("DP-T / PushT / seed 0") == "no data"
    assert set(results["missing"].values()) == {"not made yet"} and len(results["missing"]) == 23
    ours, other = results["cells"]
    assert ours["figures"]["score"]["value"] == pytest.approx(0.7)
    assert ours["figures"]["success"]["low"] == pytest.approx(0.0615, abs=1e-4)  # Wilson, 1 of 3
    assert other["difference"]["value"] == pytest.approx(-0.2) and other["difference"]["claimed"]
    assert [row[0] for row in score_rows(results)] == ["", "UVA", "DP-C"]


def test_a_measure_of_trainings_is_compared_seed_by_seed():
    ours = {seed: {"error": [value, value - 1, value + 1]} for seed, value in enumerate((50.0, 51.0, 49.0))}
    others = {seed: {"error": [value] * 3} for seed, value in enumerate((55.0, 56.5, 53.5))} | {3: {}}
    found = measure_figure("error", ours, others)
    assert (found["value"], found["low"], found["high"]) == (50.0, 48.0, 52.0)
    less = found["difference"]  # 5 with a standard error of 0.289; 4.303 is Student's of two degrees of freedom
    assert (less["value"], less["low"]) == pytest.approx((-5.0, -5 - 4.303 * 0.28868), abs=1e-3) and less["claimed"]
    apart = {0: {"error": [60.0] * 3}, 1: {"error": [51.0] * 3}}
    assert not measure_figure("error", ours, apart)["difference"]["claimed"]
    assert "difference" not in measure_figure("error", ours, {0: apart[0]})


def test_a_row_may_plan_in_a_world_model_that_is_trained_too(tmp_path):
    table = study.Study("guidance", "mini", tmp_path / "guidance_mini", tmp_path)
    cells = {cell.name: cell for cell in table.cells()}
    alone, guided = (cells[f"{row} / R-G / seed 0"] for row in ("DP-C", "guided by UVA"))
    (world,) = guided.trainings.keys() - alone.trainings.keys()
    assert guided.checkpoint == alone.checkpoint and "--planner" not in alone.evaluate
    assert guided.evaluate[guided.evaluate.index("--planner-model") + 1] == str(world)
    assert "--config-name=uva_block_push_mini" in guided.trainings[world]
    assert {"200000", "task.env.wanted=red_in_green"} < set(guided.evaluate)
    for column, scores in zip(table.columns, ((1.0, 0.0), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0))):
        fake_episodes(cells[f"DP-C / {column} / seed 0"].output / "results.json", dict(enumerate(scores)))
    *_, mean = table.table()["cells"]
    assert mean["column"] == table.table()["columns"][-1] == "mean"
    assert mean["figures"]["success"]["value"] == 0.5 and mean["figures"]["success"]["n"] == 8


def test_a_table_of_another_command_has_its_measures_and_no_scores(tmp_path):
    video = study.Study("video", "smoke", tmp_path / "video_smoke", tmp_path)
    (cell,) = video.cells()
    cell.output.mkdir(parents=True)
    distances = {"1 iterations": {"codec features": {"value": 2.2, "low": 1.5, "high": 3.4}}, "still": {"FVD": {}}}
    (cell.output / "results.json").write_text(json.dumps({"rows": distances}))
    results = video.table()
    row = ["1 iteration", "shipped weights", "codec features", "2.20 (1.50 to 3.40)"]
    assert measure_rows(results)[1:] == [row] and not results["simulated"]
    write_table(tmp_path / "page", results)
    assert "1 iteration, from 0 to 3.4" in (tmp_path / "page" / "table.html").read_text()


def test_a_training_that_was_stopped_is_not_measured(tmp_path, monkeypatch):
    table = study.Study("policies", "smoke", tmp_path / "policies_smoke", tmp_path)
    cell, ran = next(table.cells()), []
    monkeypatch.setattr(study, "run", lambda words, log: ran.append(words[0]))  # ends as after a signal, with 0
    cell.checkpoint.mkdir(parents=True)
    trainer = "{time_budget_minutes: 1, validate_every: 9}"
    (cell.checkpoint / "config.yaml").write_text(f"{{training: {{steps: 40}}, trainer: {trainer}}}")
    state = cell.checkpoint / "trainer_state.json"
    state.write_text('{"step": 30, "elapsed_seconds": 59, "files": {}}')
    assert "stopped and lacks 10 steps;" in table.make(cell) and ran == ["train.py"]
    metrics = cell.checkpoint.parents[1] / "metrics.jsonl"
    for done in ({"step": 40, "elapsed_seconds": 59}, {"step": 30, "elapsed_seconds": 60}):
        state.write_text(json.dumps({**done, "files": {}}))
        metrics.write_text('{"step": 20, "validation/loss": 1.0}\n')
        assert "lacks its last validation" in table.make(cell)
        metrics.write_text(json.dumps({"step": done["step"], "validation/loss": 1.0}))
        ran.clear()
        assert table.make(cell) is None and ran == ["eval_sim.py"]


@pytest.mark.timeout(900)  # five commands, each a process
def test_a_table_is_made_once_and_says_what_failed(tmp_path, monkeypatch, pusht_store):
    monkeypatch.setattr(study, "STUDIES", tmp_path)
    shown = "--config-name=uva_pusht_mini training=action model.transformer.dim=32 model.action_head.width=32 "
    shown += f"task.dataset.paths=[{pusht_store}] task.env_runner.max_steps=8 trainer.validate_every=2 "
    shown += "trainer.validation_windows=2 trainer.tensorboard=false training.steps=2 training.batch_size=4"
    absent = "--config-name=uva_pusht_mini task.dataset.paths=[nowhere.zip]"
    table = {"title": "Tiny", "compare": "shown", "rows": {"shown": shown.split(), "absent": absent.split()}}
    table |= {"columns": {"PushT": {}}, "measures": {"error (px)": "validation/action_error"}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(table))
    budget = {"says": "a test", "seeds": [0], "episodes": 2, "train": []}
    (tmp_path / "_budgets.yaml").write_text(yaml.safe_dump({"smoke": budget}))
    words = ["tiny", "--output", str(tmp_path / "out" / "tiny"), "--data", str(tmp_path)]
    assert reproduce.main(words) == 1  # one cell failed
    results = json.loads((tmp_path / "out/tiny/table.json").read_text())
    assert [cell["row"] for cell in results["cells"]] == ["shown"]
    error = results["cells"][0]["measures"]["error (px)"]["value"]  # of the one training seed
    assert error > 0 and measure_rows(results)[1] == ["error (px)", "shown", "PushT", f"{error:.2f}", "-"]
    assert "nowhere.zip" in results["missing"]["absent / PushT / seed 0"]
    assert "Tiny" in (tmp_path / "out/tiny/table.html").read_text()
    made = next((tmp_path / "out/tiny").glob("shown/pusht/seed0_*/results.json"))
    before = made.stat().st_mtime_ns
    assert reproduce.main([*words, "--row", "shown"]) == 0 and made.stat().st_mtime_ns == before

    def is_known() -> bool:
        again = study.Study("tiny", "smoke", tmp_path / "out" / "tiny", tmp_path)
        return any(again.values(cell) for cell in again.cells())

    assert is_known()
    (tmp_path / "_budgets.yaml").write_text(yaml.safe_dump({"smoke": budget | {"episodes": 3}}))
    assert not is_known()  # a result of other words is not this cell's
