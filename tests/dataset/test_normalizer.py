import numpy as np
import pytest
import torch

from unified_video_action.dataset.normalizer import Normalizer


def test_limits_map_the_datas_range_onto_minus_one_to_one():
    data = np.array([[0.0, 10.0, 7], [4.0, 30.0, 7], [2.0, 14.0, 7 + 9e-5]], np.float32)
    normalizer = Normalizer.limits({"action": data})
    expected = torch.tensor([[-1, -1, 0], [1, 1, 0], [0, -0.6, 0]])  # what does not vary is centred
    assert torch.allclose(normalizer.normalize("action", torch.from_numpy(data)), expected, atol=1e-4)
    assert normalizer.scale("action").tolist() == [0.5, pytest.approx(0.1), 1]


def test_json_keeps_every_bit():
    normalizer = Normalizer.limits({"action": np.random.default_rng(0).normal(size=(9, 2)), "agent_pos": np.eye(3)})
    copy = Normalizer.from_json(normalizer.to_json())
    assert copy.names == ("action", "agent_pos")
    x = torch.randn(2, 5, 7, 3)
    assert torch.allclose(copy.unnormalize("agent_pos", copy.normalize("agent_pos", x)), x, atol=1e-5)
    for name in copy.names:
        assert torch.equal(copy.scale(name), normalizer.scale(name))
        assert torch.equal(copy.offset(name), normalizer.offset(name))
        assert all(torch.equal(value, normalizer.stats[name][key]) for key, value in copy.stats[name].items())


def test_unknown_fields_and_bad_values_are_named():
    with pytest.raises(KeyError, match="speed.*action"):
        Normalizer.identity({"action": 2}).normalize("speed", torch.zeros(2))
    with pytest.raises(ValueError, match="'action'.*row 1 is not finite"):
        Normalizer.limits({"action": np.array([[0.0], [np.nan]])})
    with pytest.raises(ValueError, match="'action'.*contains 0"):
        Normalizer({"action": {"scale": torch.tensor([0.0]), "offset": torch.tensor([0.0])}})
    with pytest.raises(ValueError, match="'observation.state': a name may not contain a dot"):
        Normalizer.from_json('{"observation.state": {"scale": [1], "offset": [0]}}')
    for text in (
        *('{"action": {"offset": [0]}}', '{"action": {"scale": ["a"], "offset": [0]}}', "[1]", '{"action": [1]}'),
        *('{"action": {"scale": [1' + "0" * 400 + '], "offset": [0]}}', "[" * 100_000),
    ):
        with pytest.raises(ValueError, match="a normaliser's JSON must map each field name to .*scale"):
            Normalizer.from_json(text)


def test_deviations_give_mean_0_and_deviation_1_and_centre_what_does_not_vary():
    values = np.random.default_rng(0).normal([3, -1, 7], [2, 50, 0], size=(2000, 3)).astype(np.float32)
    normalised = Normalizer.deviations({"action": values}).normalize("action", torch.from_numpy(values))
    assert normalised.mean(0).abs().max() < 1e-4
    assert torch.allclose(normalised.std(0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3)
