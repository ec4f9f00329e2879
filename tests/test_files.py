import logging
import re
from pathlib import Path

import pytest

from unified_video_action.files import find_files, unreadable

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGES = [
    "<!DOCTYPE html>\n<html>",
    "\ufeff\n <html><body>Sign in",
    '<?xml version="1.0"?><Error><Code>AccessDenied</Code>',
]


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_endings_in_any_case_and_no_hidden_files(tmp_path, caplog):
    folder = fill(tmp_path / "a", "b.mp4", "GX01.MP4", "._b.mp4", ".hidden.MP4", "c.mkv", "captions.json", "mp4")
    with caplog.at_level(logging.INFO):
        assert [path.name for path in find_files(folder, [".mp4"], ["captions.json"])] == ["GX01.MP4", "b.mp4"]
    assert caplog.messages == [f"{folder}: 2 files are read; left out: ._b.mp4, .hidden.MP4, c.mkv, mp4"]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert len(find_files(fill(tmp_path / "b", "b.mp4"), [".mp4"])) == 1
    assert not caplog.messages


def test_a_folder_without_such_files_says_what_it_holds(tmp_path):
    folder = fill(tmp_path / "a", *(f"{number}.mkv" for number in range(7)), "._a.mp4")
    message = "holds no *.mp4 or *.zip but ._a.mp4, 0.mkv, 1.mkv, 2.mkv, 3.mkv and 3 more; convert them"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        find_files(folder, [".mp4", ".zip"], remedy="convert them")
    assert find_files(folder, [".mp4"], required=False) == []
    with pytest.raises(FileNotFoundError, match=r"b: holds no \*\.mp4 but nothing$"):
        find_files(fill(tmp_path / "b"), [".mp4"])
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        find_files(tmp_path / "nowhere", [".mp4"])


def test_what_a_file_is_instead(tmp_path):
    path, error = tmp_path / "a.mp4", ValueError("no moov atom")
    path.write_text(POINTER)
    assert "a.mp4: is a Git LFS pointer, not the video itself; run `git lfs pull`" in unreadable(path, "video", error)
    for page in PAGES:
        path.write_text(page, encoding="utf-8")
        assert "a.mp4: is a web page, not a video; download the file itself again" in unreadable(path, "video", error)
    path.write_bytes(b"")
    assert "a.mp4: is empty, expected a video" in unreadable(path, "video", error)
    path.write_bytes(b"\0\0\0 ftyp")
    message = "a.mp4: not a readable video (no moov atom); it may be truncated, fetch it again"
    assert message in unreadable(path, "video", error)
    assert unreadable("https://there/a.zip", "zip", error).startswith("https://there/a.zip: not a readable zip")
