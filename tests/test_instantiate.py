import sys

import pytest

from unified_video_action.instantiate import build_dataclass, instantiate
from unified_video_action.model.config import ModelConfig
from unified_video_action.policy.config import PolicyConfig
from unified_video_action.spec import Horizon, ModelSpec

HORIZON = "unified_video_action.spec.Horizon"


def test_nodes_and_nested_nodes_are_built():
    shape = {"_target_": "unified_video_action.spec.LatentShape", "channels": 4, "height": 8, "width": 8}
    node = {
        "_target_": "unified_video_action.spec.ModelSpec",
        "horizon": {"_target_": HORIZON, "future": 2},
        "latent": shape,
    }
    built = instantiate(node, action_dim=2)
    assert isinstance(built, ModelSpec) and built.horizon == Horizon(future=2) and built.latent.height == 8


@pytest.mark.parametrize(
    "target",
    ["os.system", "builtins.eval", "subprocess.run", "unified_video_actions.spec.Horizon", "unified_video_action", None]
    # Modules of the package import others: what they imported is not theirs to offer.
    + ["unified_video_action.instantiate.importlib.import_module", "unified_video_action.instantiate.OmegaConf"],
)
def test_nothing_outside_the_package_is_called(target):
    with pytest.raises(ValueError, match="_target_"):
        instantiate({"_target_": target, "command": "true"}, "task.env")


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    """A package my_robot with a class Arm(reach), and another that nobody has named."""
    for name in ("my_robot", "my_robot_too"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        (tmp_path / name / "arm.py").write_text(
            "class Arm:\n    def __init__(self, reach):\n        self.reach = reach\n"
        )
    (tmp_path / "my_robot" / "broken.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_robot"
    for name in [name for name in sys.modules if name.startswith("my_robot")]:
        del sys.modules[name]


def test_packages_that_the_user_names_are_trusted(own_package, monkeypatch):
    node = {"_target_": "my_robot.arm.Arm", "reach": 2}
    with pytest.raises(ValueError, match=r"'my_robot.arm.Arm' is refused; .*UVA_PLUGINS=my_package"):
        instantiate(node, "task.env")
    assert "my_robot" not in sys.modules  # nothing was imported
    monkeypatch.setenv("UVA_PLUGINS", f"another, {own_package}")
    assert instantiate(node, "task.env").reach == 2
    refused = ["my_robot_too.arm.Arm", "os.system", "my_robot", "my_robot.arm.__builtins__"]
    for target in refused:
        with pytest.raises(ValueError, match="_target_"):
            instantiate({"_target_": target, "reach": 2}, "task.env")
    assert "my_robot_too" not in sys.modules


def test_mistakes_in_own_packages_are_named(own_package, monkeypatch):
    monkeypatch.setenv("UVA_PLUGINS", "my_robot,my_absent_robot")
    with pytest.raises(ValueError, match="no module 'my_absent_robot'; is its folder in PYTHONPATH"):
        instantiate({"_target_": "my_absent_robot.arm.Arm"}, "task.env")
    with pytest.raises(ValueError, match="no module 'my_robot.leg'"):
        instantiate({"_target_": "my_robot.leg.Leg"}, "task.env")
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
        instantiate({"_target_": "my_robot.broken.Arm"}, "task.env")


@pytest.mark.parametrize("names", ["os", "subprocess,my_robot", "importlib.util", "my robot", "*", "builtins", ".."])
def test_what_may_not_be_trusted(names, monkeypatch):
    monkeypatch.setenv("UVA_PLUGINS", names)
    with pytest.raises(ValueError, match="UVA_PLUGINS: .* is refused"):
        instantiate({"_target_": HORIZON}, "task.horizon")


@pytest.mark.parametrize(
    "node, message",
    [
        ({"_target_": HORIZON, "futures": 2}, r"task.horizon.futures: Horizon has no such field; it has history"),
        ({"_target_": "unified_video_action.spec.LatentShape", "channels": 1}, r"task.horizon.height: .*needs a value"),
        ({"_target_": "unified_video_action.spec.Missing"}, "defines no 'Missing'"),
        ({"_target_": "unified_video_action.nowhere.Missing"}, "no module"),
        ({"future": 2}, "expected a mapping with _target_"),
    ],
)
def test_wrong_keys_are_named_with_their_place(node, message):
    with pytest.raises(ValueError, match=message):
        instantiate(node, "task.horizon")


def test_dataclasses_are_filled_from_plain_mappings():
    config = build_dataclass(
        ModelConfig, {"transformer": {"dim": 64, "heads": 4, "dropout": 0}, "patch_size": 2}, "model"
    )
    assert config.transformer.dim == 64 and config.transformer.dropout == 0.0 and config.patch_size == 2


@pytest.mark.parametrize(
    "node, message",
    [
        ({"transformer": {"dims": 3}}, "model.transformer.dims: TransformerConfig has no such field"),
        ({"transformer": {"dim": 10, "heads": 3}}, "model.transformer: .*heads 3 does not divide dim 10"),
        ({"patch_size": "2"}, "model.patch_size"),
        ({"action_head": {"chunk": "columns"}}, "chunk must be rows or vector, got 'columns'"),
    ],
)
def test_wrong_values_are_named_with_their_place(node, message):
    with pytest.raises(ValueError, match=message):
        build_dataclass(ModelConfig, node, "model")


def test_a_dataclass_that_may_be_absent_is_filled_too():
    planner = {"candidates": 4, "score": {"_target_": "unified_video_action.anything.Score"}}
    assert build_dataclass(PolicyConfig, {"planner": planner}, "policy").planner.candidates == 4
    assert build_dataclass(PolicyConfig, {"planner": None}, "policy").planner is None
    with pytest.raises(ValueError, match=r"policy.planner.candidate: PlannerConfig has no such field"):
        build_dataclass(PolicyConfig, {"planner": {"candidate": 4}}, "policy")
    with pytest.raises(ValueError, match=r"policy.planner.score: PlannerConfig needs a value"):
        build_dataclass(PolicyConfig, {"planner": {"candidates": 4}}, "policy")
