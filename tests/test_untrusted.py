"""What a checkpoint's configuration may not do: grow, nest, refer to itself, or read this machine's environment."""

import resource
import time

import pytest

from unified_video_action.policy.build import load_policy
from unified_video_action.untrusted import read_checkpoint_config

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
HOSTILE = {
    "aliases": (LAUGHS, "line 2: an alias"),
    "deep lists": ("a: " + "[" * 100_000 + "]" * 100_000, "nested deeper than 32 levels"),
    "deep mappings": ("{a: " * 40 + "1" + "}" * 40, "nested deeper than 32 levels"),
    "a million numbers": ("a: [" + "1," * 1_000_000 + "]", "larger than 1,000,000 bytes"),
    "environment": ("task: {env: {secret: '${oc.env:SECRET}'}}", r"task.env.secret: '\$\{oc.env:SECRET\}' is an inter"),
    "environment in a list": ("a: [1, {b: 'x${oc.env:HOME}'}]", r"a\[1\].b: .* is an interpolation"),
    "environment in a key": ("a: {'${oc.env:HOME}': 1}", "a: .* is an interpolation"),
    "a reference": ("a: 1\nb: ${a}", "b: .* is an interpolation"),
    "a Python object": ("a: !!python/object/apply:os.system [true]", "is not YAML"),
    "control characters": ("a: \x00", "is not YAML"),
    "bytes that are not text": (b"\xff\xfe\x00\xd8" * 250, "is not YAML"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_configurations_are_refused_at_once(tmp_path, monkeypatch, kind):
    text, message = HOSTILE[kind]
    monkeypatch.setenv("SECRET", "a password")
    (tmp_path / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for read in (read_checkpoint_config, load_policy):
        with pytest.raises(ValueError, match=message) as caught:
            read(tmp_path)
        assert "config.yaml" in str(caught.value) and "a password" not in str(caught.value)
        assert len(str(caught.value)) < 1000
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_a_configuration_is_read_as_it_is_written(tmp_path):
    (tmp_path / "config.yaml").write_text("a: {rate: 1e-3, fast: true, none: null, size: [96, 96], name: pusht}\n")
    assert read_checkpoint_config(tmp_path) == {
        "a": {"rate": 0.001, "fast": True, "none": None, "size": [96, 96], "name": "pusht"}
    }


def test_a_checkpoint_that_is_none_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        read_checkpoint_config(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="config.yaml is missing"):
        read_checkpoint_config(tmp_path)
    (tmp_path / "latest.ckpt").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"is a file; .*python scripts/convert_checkpoint.py .*latest.ckpt FOLDER"):
        read_checkpoint_config(tmp_path / "latest.ckpt")


def test_old_keys_of_a_run_become_the_new_ones(tmp_path):
    trainer = "trainer: {evaluate_films: 2, sheet_every: 5, sheet_windows: 3, seed: 1}\n"
    (tmp_path / "config.yaml").write_text(trainer + "task: {hand: {states: {}}}\n")
    assert read_checkpoint_config(tmp_path) == {
        "trainer": {"evaluate_videos": 2, "prediction_grid_every": 5, "prediction_grid_windows": 3, "seed": 1},
        "task": {"end_effector": {"states": {}}},
    }
