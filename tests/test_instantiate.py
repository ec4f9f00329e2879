import pytest

from unified_video_action.instantiate import build_dataclass, instantiate
from unified_video_action.model.config import ModelConfig
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
