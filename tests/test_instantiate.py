import importlib
import inspect
import pkgutil
import sys

import gymnasium
import pytest
import torch.utils.flop_counter  # noqa: F401 - triton, which crashes when numba's LLVM is there before it

import unified_video_action
from unified_video_action.dataset.window_dataset import WindowDataset
from unified_video_action.env.plan_score import PlanScore
from unified_video_action.env.state_reader import StateReader
from unified_video_action.env_runner.runner import EnvRunner
from unified_video_action.instantiate import _interfaces, check_node, instantiate, resolve_class
from unified_video_action.policy.base import BasePolicy
from unified_video_action.real.robots.interface import Setup
from unified_video_action.spec import Horizon
from unified_video_action.text.clip import ClipText
from unified_video_action.vae.base import FrameCodec

PACKAGE = "unified_video_action"
HORIZON = f"{PACKAGE}.spec.Horizon"


@pytest.mark.parametrize(
    "target",
    ["os.system", "builtins.eval", "subprocess.run", "unified_video_actions.spec.Horizon", PACKAGE, None, 3]
    # Modules of the package import others: what they imported is not theirs to offer.
    + [f"{PACKAGE}.instantiate.importlib.import_module", f"{PACKAGE}.instantiate.OmegaConf"]
    # Functions, and classes that are not simulators.
    + [f"{PACKAGE}.downloads.download", f"{PACKAGE}.instantiate.instantiate", HORIZON],
)
def test_nothing_but_what_a_place_expects_is_built(target):
    with pytest.raises(ValueError, match="_target_"):
        instantiate({"_target_": target, "command": "true"}, gymnasium.Env, "task.env")


class Recorder(PlanScore):
    """Notes that it was built."""

    built = 0
    needs = "states"

    def __init__(self, inner: PlanScore | None = None, others: dict[str, list[PlanScore]] | None = None, free=None):
        Recorder.built += 1

    def __call__(self, imagined):
        raise NotImplementedError


@pytest.mark.parametrize("argument_name", ["inner", "others", "free"])
def test_nothing_is_built_before_the_whole_tree_is_checked(argument_name, monkeypatch):
    monkeypatch.setenv("UVA_PLUGINS", "tests")
    monkeypatch.setattr(Recorder, "built", 0)
    recorder = {"_target_": f"{__name__}.Recorder"}
    wrong = {"_target_": f"{PACKAGE}.downloads.download", "url": "data:,", "path": "owned"}

    def node(last):
        value = {"inner": last, "others": {"a": [recorder, last]}, "free": last}[argument_name]
        return recorder | {"inner": recorder} | {argument_name: value}

    with pytest.raises(ValueError, match=rf"score\.{argument_name}.*_target_: .*download' is refused"):
        instantiate(node(wrong), PlanScore, "score")
    assert Recorder.built == 0
    if argument_name == "free":  # no type hint, no object
        with pytest.raises(ValueError, match="no object is expected here"):
            instantiate(node(recorder), PlanScore, "score")
    else:
        instantiate(node(recorder), PlanScore, "score")
        assert Recorder.built == {"inner": 2, "others": 4}[argument_name]


INTERFACES = FrameCodec, ClipText, WindowDataset, gymnasium.Env, EnvRunner, StateReader, PlanScore, Setup
# What those accept, and what their arguments accept in turn. A class that is new here can be built by a stranger's
# checkpoint: look at what its constructor does before adding it.
ALLOWED = """
dataset.augmentation.VideoAugmentation: VideoAugmentation
dataset.formats.lerobot_folder.Episodes: Episodes
dataset.formats.lerobot_folder.LeRobotFolder: LeRobotFolder
dataset.frame_fit.Fit: Fit
dataset.frame_fit.FrameMask: FrameMask
dataset.mixture.Source: LeRobotSource LiberoSource PushTSource RobomimicSource UmiSource VideoFolderSource ZarrSource
dataset.mixture.Wanted: Wanted
dataset.sequence.WindowOptions: WindowOptions
dataset.store.EpisodeStore: Hdf5Store LeRobotStore ReplayBuffer UmiStore VideoFolderStore
dataset.tables.Table: Table
dataset.transforms.WindowTransform: EndEffectorWindows StartNoise
dataset.window_dataset.WindowDataset: MixtureDataset PushTDataset WindowDataset
demos.sim_arm.world.Clock: Clock ManualClock
demos.sim_arm.world.Table: Table
demos.sim_arm.world.World: World
env.plan_score.PlanScore: CoverageScore FrameCoverageScore PairScore
env.state_reader.StateReader: PushTReader
env_runner.runner.EnvRunner: EnvRunner
gymnasium.core.Env: BlockPushEnv LiberoEnv PushTEnv PushTMEnv RobomimicEnv
poses.EndEffectorSpec: EndEffectorSpec
real.robots.interface.Arm: Arx5Arm SimArm
real.robots.interface.Camera: SimCamera VideoCamera
real.robots.interface.Setup: Setup SimSetup
spec.Horizon: Horizon
text.clip.ClipText: ClipText
vae.base.FrameCodec: AutoencoderKL PatchMLP PushTTiny TAEF2
"""


def members() -> list[tuple[str, object]]:
    """Every class and function of the package, with the dotted path under which it is defined."""
    found = []
    for module in pkgutil.walk_packages(unified_video_action.__path__, f"{PACKAGE}."):
        if module.name.rpartition(".")[2] == "__main__":
            continue
        content = importlib.import_module(module.name)
        found += [
            (f"{module.name}.{name}", each)
            for name, each in vars(content).items()
            if getattr(each, "__module__", None) == module.name and callable(each)
        ]
    return found


def accepted(interface: type, everything: list[tuple[str, object]]) -> set[type]:
    fits = set()
    for path, each in everything:
        try:
            fits.add(resolve_class(path, interface))
        except ValueError:
            continue
        assert inspect.isclass(each), f"{path} is a function, and {interface.__name__} accepts it"
    return fits


def test_every_target_that_can_be_built_is_known():
    everything = members()
    assert len(everything) > 500
    left, allowed = list(INTERFACES), {}
    while left:
        interface = left.pop()
        if interface in allowed:
            continue
        allowed[interface] = accepted(interface, everything)
        for target in allowed[interface]:
            for argument in inspect.signature(target).parameters:
                left += _interfaces(target, argument)
    found = [
        f"{interface.__module__}.{interface.__name__}: ".removeprefix(f"{PACKAGE}.")
        + " ".join(sorted(each.__name__ for each in classes))
        for interface, classes in allowed.items()
    ]
    assert sorted(found) == ALLOWED.split("\n")[1:-1]
    # A policy is built by its own `from_config`, which checks its nodes as above.
    policies = {each.__name__ for each in accepted(BasePolicy, everything)}
    names = {"DiffusionPolicy", "DistilledPolicy", "RemotePolicy", "UniPiPolicy", "UnifiedVideoActionPolicy"}
    assert policies == names


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    """A package my_robot with a class Arm(reach), and another that nobody has named."""
    for name in ("my_robot", "my_robot_too"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        code = "class Arm:\n    def __init__(self, reach):\n        self.reach = reach\n"
        (tmp_path / name / "arm.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_robot"
    for name in [name for name in sys.modules if name.startswith("my_robot")]:
        del sys.modules[name]


def test_packages_that_the_user_names_are_trusted(own_package, monkeypatch):
    node = {"_target_": "my_robot.arm.Arm", "reach": 2}
    with pytest.raises(ValueError, match=r"'my_robot.arm.Arm' is refused; .*UVA_PLUGINS=my_package"):
        instantiate(node, object, "task.env")
    assert "my_robot" not in sys.modules  # nothing was imported
    monkeypatch.setenv("UVA_PLUGINS", f"another, {own_package}")
    assert instantiate(node, object, "task.env").reach == 2
    with pytest.raises(ValueError, match=r"'my_robot.arm.Arm' is refused; a class derived from gymnasium.core.Env"):
        instantiate(node, gymnasium.Env, "task.env")
    for target in ("my_robot_too.arm.Arm", "os.system", "my_robot", "my_robot.arm.__builtins__"):
        with pytest.raises(ValueError, match="_target_"):
            instantiate({"_target_": target, "reach": 2}, object, "task.env")
    assert "my_robot_too" not in sys.modules


@pytest.mark.parametrize("names", ["os", "subprocess,my_robot", "importlib.util", "my robot", "*", "builtins", ".."])
def test_what_may_not_be_trusted(names, monkeypatch):
    monkeypatch.setenv("UVA_PLUGINS", names)
    with pytest.raises(ValueError, match="UVA_PLUGINS: .* is refused"):
        instantiate({"_target_": HORIZON}, Horizon, "task.horizon")


@pytest.mark.parametrize(
    "node, message",
    [
        ({"_target_": HORIZON, "futures": 2}, r"task.horizon.futures: Horizon has no such field; it has history"),
        ({"_target_": f"{PACKAGE}.spec.LatentShape", "channels": 1}, r"task.horizon.height: .*needs a value"),
        ({"future": 2}, "expected a mapping with _target_"),
    ],
)
def test_wrong_keys_are_named_with_their_place(node, message):
    for act in (check_node, instantiate):
        with pytest.raises(ValueError, match=message):
            act(node, object, "task.horizon")
