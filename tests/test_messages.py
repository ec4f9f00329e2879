import errno

import pytest

from unified_video_action.messages import one_line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("seed must be an integer"), "^train.py: seed must be an integer$"),
        (OSError(errno.ENOSPC, "No space left on device", "a"), "the disk is full .*Free some.* Mended, it goes on"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "no permission to write.*'a'.*another folder"),
        (ModuleNotFoundError("No module named 'robosuite'"), "a package is missing.*robosuite.*make sims"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, words, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit, match=words) as caught, one_line("train.py", "it goes on"):
        raise error
    assert "\n" not in str(caught.value)


def test_programming_mistakes_keep_their_traceback():
    with pytest.raises(AttributeError), one_line("train.py"):
        raise AttributeError("shape")
