"""What is tried in a copy of the process comes back, and changes nothing here."""

import os

import pytest

from unified_video_action.env.forked import in_copy


def test_a_result_comes_back_and_nothing_else() -> None:
    things = [1]

    def change() -> tuple[int, list[int]]:
        things.append(2)
        return os.getpid(), things

    pid, theirs = in_copy(change)
    assert pid != os.getpid() and theirs == [1, 2] and things == [1]


@pytest.mark.parametrize(
    ("function", "message"), [(lambda: 1 / 0, "ZeroDivisionError"), (lambda: os._exit(3), "it died")]
)
def test_failures_are_named(function, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        in_copy(function)
