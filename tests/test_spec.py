import pytest

from unified_video_action.spec import Horizon, LatentShape, ModelSpec, TaskSpec


def test_default_horizon_is_the_papers():
    horizon = Horizon()
    assert horizon.history_offsets == (-12, -8, -4, 0)
    assert horizon.future_offsets == (4, 8, 12, 16)
    assert horizon.action_offsets == tuple(range(16))
    assert Horizon(action_offset=1).action_offsets == tuple(range(1, 17))
    assert horizon.history_action_offsets == tuple(range(-16, 0))


@pytest.mark.parametrize("field", ["history", "future", "stride", "actions"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_bad_horizons_name_the_field_and_value(field, value):
    with pytest.raises(ValueError, match=rf"Horizon.{field}.*{value}"):
        horizon = Horizon(**{field: value})
        ModelSpec(horizon, LatentShape(16, 12, 12), action_dim=2)  # no future: a model of frames refuses it


def test_states_are_named_without_dots():
    image, state = {"type": "rgb", "shape": [3, 96, 96]}, {"type": "low_dim", "shape": [2]}
    meta = {"obs": {"observation.image": image, "observation.state": state}, "action": {"shape": [2]}}
    with pytest.raises(ValueError, match="task.shape_meta.obs: the name of a state .* dot, got observation.state"):
        TaskSpec.parse({"horizon": {}, "shape_meta": meta})
