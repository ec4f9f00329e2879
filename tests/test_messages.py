import errno

import pytest

from unified_video_action.messages import few, one_line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("seed must be an integer"), "^train.py: seed must be an integer$"),
        (FileNotFoundError("no store at x"), "^train.py: no store at x$"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a"),
            "the disk is full .*Free some.* Mended, it goes on",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "no permission to write.*'a'.*another folder"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "no permission to write.*'a'"),
        (ModuleNotFoundError("No module named 'robosuite'"), "a package is missing.*robosuite.*make sims"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, words, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit, match=words) as caught, one_line("train.py", "it goes on"):
        raise error
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(type(error)), one_line("train.py"):
        raise error


def test_programming_mistakes_keep_their_traceback():
    with pytest.raises(AttributeError), one_line("train.py"):
        raise AttributeError("shape")


def test_lists_of_names_are_cut_to_a_few_and_a_count():
    assert few([]) == "nothing" and few([1, 2]) == "1, 2" and few(["a", "b\n"]) == r"a, b\n"
    assert few(map(str, range(1000))) == "0, 1, 2, 3, 4 and 995 more" and few(range(9), 3) == "0, 1, 2 and 6 more"
    assert few(["x" * 10_000, (1, 2)]) == "x" * 97 + "..., tuple"
