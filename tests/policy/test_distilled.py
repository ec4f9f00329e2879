import pytest
import torch
from omegaconf import OmegaConf

from tests.policy.conftest import MeanCodec, config
from tests.shrunk import SHRUNK, read
from tests.small_run import write_run
from unified_video_action.policy.base import Share
from unified_video_action.policy.build import build_policy, load_policy
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

HEAD = {"width": 32, "depth": 1, "pool": 2, "prediction": "sample", "learned_variance": False, "noise_draws": 8}


@pytest.fixture(autouse=True)
def codec(monkeypatch):
    monkeypatch.setenv("UVA_PLUGINS", "tests")


def described(**policy):
    made = config(**policy)
    made["model"]["action_head"] = HEAD
    made["vae"] = {"_target_": "tests.policy.conftest.MeanCodec"}
    return made


def make_student(folder, **changes):
    target = "unified_video_action.policy.distilled.DistilledPolicy"
    settings = {"_target_": target, "teacher": str(folder), "teacher_sampler": "ddim4", "sampler": "ddim1", **changes}
    student = build_policy(described(**settings), load_policy(folder).normalizer, {"codec": MeanCodec(), "text": None})
    student.model.load_state_dict(load_policy(folder).model.state_dict())
    return student


def test_one_step_comes_to_give_what_the_teacher_gives(tmp_path, batch):
    folder = write_run(tmp_path, OmegaConf.create(described()))
    student, teacher = make_student(folder).train(), load_policy(folder)
    optimizer, losses = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=3e-3), []
    for step in range(150):
        batch["seed"] += 100
        found = student(student.prepare(batch, Share(step, 0, len(batch["seed"]), 0)))
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        losses.append(found["loss"].item())
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    before, after = teacher.model.state_dict(), student.model.state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed and all(name.startswith("action_head.net.") for name in changed)
    assert student.trained == teacher.trained  # what the other weights can do is not lost


def test_a_trained_policy_is_distilled_by_two_commands(pusht_store, tmp_path):
    def run(name, *words):
        data_options = (
            f"output_dir={tmp_path / name}",
            f"task.dataset.paths={pusht_store}",
            "task.dataset.val_ratio=0.3",
        )
        config = read("uva_pusht_mini", *SHRUNK, *data_options, "trainer.evaluate_every=null", *words)
        TrainUnifiedVideoActionWorkspace(OmegaConf.create(config)).run()
        return tmp_path / name / "checkpoints" / "latest"

    teacher = run("teacher")
    words = ["policy=distilled", f"init_from={teacher}", f"policy.teacher={teacher}", "policy.teacher_sampler=ddim2"]
    with pytest.raises(ValueError, match="other units .* set init_normalizer=true"):
        run("refitted", *words, "policy.sampler=ddim1", "task.dataset.mirror=false")
    words.append("init_normalizer=true")
    student = load_policy(run("student", *words, "policy.sampler=ddim1", "task.dataset.mirror=false"))
    assert student.normalizer.to_json() == load_policy(teacher).normalizer.to_json()
    lines = (tmp_path / "student" / "metrics.jsonl").read_text()
    assert lines.count("train/action") == 3 and "validation/action_error" in lines
    student.require_trained("forward_dynamics")
