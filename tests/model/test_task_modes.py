from collections import Counter

import pytest

from unified_video_action.model.task_modes import TASK_MODES, ModeMix


def test_the_five_modes_hide_and_learn_what_the_paper_says():
    assert {
        mode.reference_name: (
            mode.sees_history,
            mode.future,
            mode.sees_actions,
            mode.learns_frames,
            mode.learns_actions,
        )
        for mode in TASK_MODES.values()
    } == {
        "policy_model": (True, "masked", False, False, True),
        "video_model": (True, "partial", False, True, False),
        "dynamic_model": (True, "partial", True, True, False),
        "inverse_model": (False, "seen", False, False, True),
        "full_dynamic_model": (True, "partial", False, True, True),
    }


def test_quotas_are_met_exactly_and_spread_over_slices_or_steps():
    mix = ModeMix({"policy": 2, "video": 1, "inverse_dynamics": 1})
    modes = [mode.name for mode in mix.modes(step=7, global_batch=32, seed=0)]
    assert Counter(modes) == {"policy": 16, "video": 8, "inverse_dynamics": 8}
    for start in range(0, 32, 8):
        assert Counter(modes[start : start + 8]) == {"policy": 4, "video": 2, "inverse_dynamics": 2}
    counts = Counter(mode.name for mode in ModeMix().modes(step=0, global_batch=32, seed=0))
    assert sum(counts.values()) == 32 and set(counts.values()) == {6, 7}
    in_turn = Counter(mode.name for step in range(5) for mode in ModeMix().modes(step, global_batch=2, seed=0))
    assert in_turn == dict.fromkeys(TASK_MODES, 2)


def test_one_mode_per_batch_is_a_function_of_step_and_seed():
    mix = ModeMix(per_batch=True)
    drawn = [mix.modes(step, global_batch=4, seed=3) for step in range(100)]
    assert all(len(set(mode.name for mode in modes)) == 1 for modes in drawn)
    assert drawn == [mix.modes(step, global_batch=4, seed=3) for step in range(100)]
    assert set(modes[0].name for modes in drawn) == set(TASK_MODES)
    assert drawn != [mix.modes(step, global_batch=4, seed=4) for step in range(100)]


@pytest.mark.parametrize("quotas", [{"policies": 1}, {"policy": -1}, {"policy": 0}])
def test_bad_quotas_are_refused(quotas):
    with pytest.raises(ValueError, match="quotas"):
        ModeMix(quotas)


def test_random_masks_hide_history_future_and_actions_apart_from_each_other():
    modes = ModeMix(random=True).modes(step=0, global_batch=100, seed=0)
    hidden = Counter((mode.sees_history, mode.future, mode.sees_actions) for mode in modes)
    assert len(hidden) == 10 and set(hidden.values()) == {10}  # of 12: the two in which all is given teach nothing
    assert all(mode.learns_frames == (mode.future != "seen") for mode in modes)
    assert all(mode.learns_actions != mode.sees_actions for mode in modes)
    assert [mode.name for mode in ModeMix(random=True).trained] == list(TASK_MODES)
