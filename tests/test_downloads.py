"""Downloads from a server on this machine: whole, resumed, refused, damaged."""

import hashlib
import logging
import socket

import numpy as np
import pytest

from tests.loading import load_script
from unified_video_action.downloads import download, file_sha256, public_files

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def url(file_server, tmp_path):
    (tmp_path / "public.zip").write_bytes(CONTENT)
    return f"{file_server.url}/public.zip"


def test_an_interrupted_download_goes_on_and_is_not_repeated(url, file_server, tmp_path):
    target, file_server.cut = tmp_path / "data" / "got.zip", 1_200_000
    with pytest.raises(OSError, match="1200000 of 3000000 bytes.*run this again"):
        download(url, target, SHA256, progress=False)
    assert not target.exists()
    file_server.cut = None
    for _ in range(2):
        assert download(url, target, SHA256, progress=False) == target and target.read_bytes() == CONTENT
    assert file_server.ranges_asked == [None, "bytes=1200000-"] and not target.with_name("got.zip.part").exists()


@pytest.mark.parametrize(("ranges", "have"), [(False, 1000), (True, len(CONTENT))])
def test_servers_without_ranges_and_parts_that_are_complete(url, file_server, tmp_path, ranges, have):
    file_server.ranges = ranges
    (tmp_path / "got.zip.part").write_bytes(CONTENT[:have])
    assert download(url, tmp_path / "got.zip", SHA256, progress=False).read_bytes() == CONTENT


def test_wrong_bytes_are_refused(url, tmp_path):
    (tmp_path / "got.zip.part").write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match=f"expected {SHA256}"):
        download(url, tmp_path / "got.zip", SHA256, progress=False)
    assert not (tmp_path / "got.zip").exists() and not (tmp_path / "got.zip.part").exists()
    (tmp_path / "got.zip").write_bytes(b"mine")
    with pytest.raises(ValueError, match="got.zip exists and differs"):
        download(url, tmp_path / "got.zip", SHA256, progress=False)
    assert (tmp_path / "got.zip").read_bytes() == b"mine"


def test_a_web_page_is_no_data_also_without_a_checksum(url, file_server, tmp_path):
    (tmp_path / "page.zip").write_bytes(b"<!DOCTYPE html><html>Quota exceeded</html>")
    with pytest.raises(ValueError, match="page.zip: is a web page"):
        download(f"{file_server.url}/page.zip", tmp_path / "got.zip", None, progress=False)
    assert not (tmp_path / "got.zip").exists() and not (tmp_path / "got.zip.part").exists()
    assert download(url, tmp_path / "got.zip", None, progress=False).read_bytes() == CONTENT


def test_missing_files_and_servers_are_clear_errors(file_server, tmp_path, caplog):
    with pytest.raises(OSError, match="404"):
        download(f"{file_server.url}/nothing.zip", tmp_path / "got.zip", SHA256, progress=False)
    with socket.socket() as unused, caplog.at_level(logging.INFO):
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}/pusht.zip"
        assert load_script("download").main(["pusht", "--output", str(tmp_path), "--url", nobody]) == 1
    assert "could not be fetched" in caplog.text and "collect_demos.py" in caplog.text


def test_the_script_verifies_the_published_archive(pusht_zip, tmp_path, file_server, monkeypatch):
    assert file_sha256(pusht_zip) == public_files()["pusht"].sha256
    (tmp_path / "mirror.zip").symlink_to(pusht_zip)
    monkeypatch.setenv("UVA_DATA_DIR", str(tmp_path / "data"))
    assert load_script("download").main(["pusht", "--url", f"{file_server.url}/mirror.zip"]) == 0
    assert file_sha256(tmp_path / "data" / "pusht" / "pusht.zip") == public_files()["pusht"].sha256
