"""A client whose control steps are longer or shorter than those of the training data is warned; others are not."""

import pytest

from unified_video_action.real.serving.rate import INTERVALS, RateWatch

TRAINED = 0.05  # seconds


def said(period: float, answer: float, pauses: tuple[int, ...] = ()) -> str | None:
    """Of a client that asks every `period` seconds, 8 steps apart, is answered after `answer`, and pauses for 3 s."""
    watch, now, found = RateWatch(TRAINED), 100.0, None
    for index in range(2 * INTERVALS):
        found = watch.asked(now, 8) or found
        watch.answered(now + answer)
        now += period + (3.0 if index in pauses else 0.0)
    return found


@pytest.mark.parametrize(
    ("period", "answer"),
    [
        (0.4, 0.01),  # as trained
        (0.4, 0.3),  # likewise; the arm moves on while it waits
        (0.7, 0.3),  # it rests while it waits
        (0.48, 0.01),  # a fifth slower
        (0.33, 0.01),
    ],
)
def test_a_client_that_keeps_the_pace_hears_nothing(period: float, answer: float) -> None:
    assert said(period, answer, pauses=(3, 12)) is None


def test_a_client_of_another_rate_hears_both() -> None:
    slow = said(1.0, 0.0, pauses=(3, 12))
    assert "no more than 8 Hz" in slow and "training data at 20 Hz" in slow and "stretched 2.5 times" in slow
    fast = said(0.05, 0.0)
    assert "no less than 160 Hz" in fast and "squeezed to 0.12 of their length" in fast
    assert "come at 8 Hz" in RateWatch(TRAINED).judge(0.125)


def test_without_a_known_rate_or_enough_requests_nothing_is_said() -> None:
    assert RateWatch(None).judge(0.125) is None
    watch = RateWatch(TRAINED)
    for _ in range(2):
        watch.clear()
        assert not any(watch.asked(float(now), 1) for now in range(1, INTERVALS + 1))
    assert watch.asked(INTERVALS + 1.0, 0) is None  # how many steps lie between is not known
    assert watch.asked(INTERVALS + 2.0, 1)
