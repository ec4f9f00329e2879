"""Checkpoint folders: whole or absent, found again, scored, pruned."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unified_video_action.compat.tensors import write_safetensors
from unified_video_action.workspace import checkpoint as ckpt


def write(root, step, value=0.0):
    tensors = {"model.safetensors": {"w": torch.full((3,), value)}}
    return ckpt.write_checkpoint(root, step, tensors, {"config.yaml": "name: test\n"}, {"elapsed_seconds": 1.5})


def names(root):
    return [path.name for path in ckpt.checkpoints(root)]


def flip(path):
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), "config.yaml is missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), "has 3 bytes"),
        (lambda folder: (folder / "trainer_state.json").write_text("{"), "cannot be read"),
        (lambda folder: flip(folder / "model.safetensors"), "model.safetensors is damaged: its checksum is"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_written_anew(tmp_path, caplog, damage, reason):
    assert ckpt.newest(tmp_path) is None
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    assert ckpt.newest(tmp_path) == newer
    damage(newer)
    assert ckpt.newest(tmp_path) == older and names(tmp_path) == ["step_00000001"]
    assert f"{newer}: " in caplog.text and reason in caplog.text
    damage(older)
    with pytest.raises(ValueError, match=r"no checkpoint in .*: step_00000002: .*, step_0.*choose another output_dir"):
        ckpt.newest(tmp_path)
    write(tmp_path, 2, 5.0)
    assert ckpt.newest(tmp_path) == newer


def test_sizes_alone_are_enough_for_checkpoints_of_before(tmp_path):
    folder = write(tmp_path, 1)
    state = ckpt.read_state(folder)
    sizes = {name: entry["bytes"] for name, entry in state["files"].items()}
    (folder / "trainer_state.json").write_text(json.dumps(state | {"files": sizes}))
    assert ckpt.newest(tmp_path) == folder and ckpt.checkpoints(tmp_path) == [folder]
    (folder / "config.yaml").write_text("name: tes\n")
    assert ckpt.checkpoints(tmp_path) == []


def test_a_deletion_that_is_killed_leaves_no_half_checkpoint(tmp_path, monkeypatch, caplog):
    for step in (1, 2):
        write(tmp_path, step)

    def killed(path):
        (path / "config.yaml").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ckpt.shutil, "rmtree", killed)
        ckpt.prune(tmp_path, keep=0, mode="max")
    (tmp_path / ".step_00000003.99.tmp").mkdir()  # of a checkpoint that was being written
    assert names(tmp_path) == ["step_00000002"] and not caplog.text
    assert len(list(tmp_path.glob(".step_00000001.*.tmp"))) == 1
    ckpt.remove_unfinished(tmp_path)
    assert not list(tmp_path.glob(".step*"))


@pytest.mark.parametrize(("mode", "kept"), [("max", {3, 4, 6}), ("min", {1, 2, 6})])
def test_the_best_and_the_newest_are_kept(tmp_path, mode, kept):
    for step, score in {1: 0.1, 2: 0.2, 3: 0.9, 4: 0.5, 5: None, 6: None}.items():
        write(tmp_path, step)
        if score is not None:
            ckpt.record_score(tmp_path, step, score)
    ckpt.prune(tmp_path, keep=2, mode=mode)
    assert {ckpt.step_of(path) for path in ckpt.checkpoints(tmp_path)} == kept
    best = 3 if mode == "max" else 1
    assert (tmp_path / "best").resolve().name == f"step_{best:08d}"
    assert json.loads((tmp_path / "scores.json").read_text())["3"] == 0.9


def test_a_folder_replaces_another_only_when_it_is_whole(tmp_path):
    final = tmp_path / "shipped"
    with ckpt.written_whole(final) as folder:
        (folder / "a").write_text("first")
        assert not final.exists()
    with pytest.raises(RuntimeError, match="on purpose"), ckpt.written_whole(final) as folder:
        (folder / "a").write_text("second")
        raise RuntimeError("on purpose")
    assert (final / "a").read_text() == "first" and os.listdir(tmp_path) == ["shipped"]
    with ckpt.written_whole(final) as folder:
        (folder / "b").write_text("third")
    assert os.listdir(final) == ["b"] and os.listdir(tmp_path) == ["shipped"]


@pytest.mark.parametrize(
    ("tensors", "messages"),
    [
        ({"trunk.weight": torch.zeros(3, 2), "trunk.bias": torch.zeros(4), "old.bias": torch.zeros(2)},
         ["missing: head.weight (2, 2)", "extra: old.bias (2,)", "trunk.weight is (3, 2), expected (4, 2)",
          "init_allow_missing"]),
        ({"trunk.weight": torch.full((4, 2), torch.nan), "trunk.bias": torch.zeros(4), "head.bias": torch.zeros(2),
          "head.weight": torch.zeros(2, 2)}, ["ema.safetensors: trunk.weight is not finite (nan"]),
    ],
)  # fmt: skip
def test_initial_weights_must_fit_and_be_finite(tmp_path, tensors, messages):
    module = nn.ModuleDict({"trunk": nn.Linear(2, 4), "head": nn.Linear(2, 2)})
    path = tmp_path / "ema.safetensors"
    with pytest.raises(FileNotFoundError, match=r"ema.safetensors.*init_from=null to train from scratch"):
        ckpt.load_initial_weights(module, path)
    save_file(tensors, path)
    with pytest.raises(ValueError) as caught:
        ckpt.load_initial_weights(module, path)
    assert all(message in str(caught.value) for message in messages)


def test_initial_weights_come_in_pieces_and_in_half_precision_and_may_lack_what_is_allowed(tmp_path):
    torch.manual_seed(0)
    source, target = (nn.ModuleDict({"trunk": nn.Linear(40, 30), "head": nn.Linear(2, 2)}) for _ in range(2))
    half = {name: value.half() for name, value in source.state_dict().items() if name.startswith("trunk")}
    head, path = target["head"].weight.clone(), tmp_path / "ema.safetensors"
    assert len(write_safetensors(path, half, most_bytes=2830)) == 3  # two and their index
    assert ckpt.load_initial_weights(target, path, ("head",)) == ["head.weight", "head.bias"]
    assert target["trunk"].weight.dtype == torch.float32 and torch.equal(target["head"].weight, head)
    assert all(torch.equal(target.state_dict()[name], value.float()) for name, value in half.items())
