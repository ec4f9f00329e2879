import logging
import re

import pytest

from unified_video_action.files import find_files, unreadable

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGES = [
    "<!DOCTYPE html>\n<html>",
    "\ufeff\n <html><body>Sign in",
    '<?xml version="1.0"?><Error><Code>AccessDenied</Code>',
]


def test_endings_in_any_case_and_no_hidden_files(tmp_path, caplog):
    for name in ("b.mp4", "GX01.MP4", "._b.mp4", ".hidden.MP4", "c.mkv", "captions.json", "mp4"):
        (tmp_path / name).touch()
    with caplog.at_level(logging.INFO):
        assert [path.name for path in find_files(tmp_path, [".mp4"], ["captions.json"])] == ["GX01.MP4", "b.mp4"]
    assert "left out: ._b.mp4, .hidden.MP4, c.mkv, mp4" in caplog.text
    message = "holds no *.zip but ._b.mp4, .hidden.MP4, GX01.MP4, b.mp4, c.mkv and 2 more; convert them"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        find_files(tmp_path, [".zip"], remedy="convert them")
    assert find_files(tmp_path, [".zip"], required=False) == []
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        find_files(tmp_path / "nowhere", [".mp4"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER, "is a Git LFS pointer, not the video itself; run `git lfs pull`"),
        *((page, "is a web page, not a video; download the file itself again") for page in PAGES),
        ("", "is empty, expected a video"),
        ("\0\0\0 ftyp", "not a readable video (no moov atom); it may be truncated, fetch it again"),
    ],
)
def test_what_a_file_is_instead(tmp_path, content, said):
    (tmp_path / "a.mp4").write_text(content, encoding="utf-8")
    assert f"a.mp4: {said}" in unreadable(tmp_path / "a.mp4", "video", ValueError("no moov atom"))
