"""Downloads from a server on this machine: whole, resumed, refused, damaged."""

import hashlib
import importlib.util
import logging
import socket
from pathlib import Path

import numpy as np
import pytest

from unified_video_action.dataset.download import PUBLIC_FILES, DownloadError, download, file_sha256

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def url(file_server, tmp_path):
    (tmp_path / "public.zip").write_bytes(CONTENT)
    return f"{file_server.url}/public.zip"


@pytest.fixture
def script():
    path = Path(__file__).parents[2] / "scripts" / "download_data.py"
    spec = importlib.util.spec_from_file_location("download_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_file_arrives_whole_and_is_not_fetched_twice(url, file_server, tmp_path):
    target = tmp_path / "data" / "deep" / "public.zip"
    assert download(url, target, SHA256, progress=False) == target
    assert target.read_bytes() == CONTENT and not target.with_name("public.zip.part").exists()
    download(url, target, SHA256, progress=False)
    assert file_server.ranges_asked == [None]


def test_an_interrupted_download_goes_on_where_it_stopped(url, file_server, tmp_path):
    target = tmp_path / "got.zip"
    file_server.cut = 1_200_000
    with pytest.raises(DownloadError, match="1200000 of 3000000 bytes.*run this again"):
        download(url, target, SHA256, progress=False)
    assert not target.exists()
    file_server.cut = None
    download(url, target, SHA256, progress=False)
    assert target.read_bytes() == CONTENT
    assert file_server.ranges_asked == [None, "bytes=1200000-"]


def test_a_server_without_ranges_sends_the_whole_file_again(url, file_server, tmp_path):
    file_server.ranges = False
    (tmp_path / "got.zip.part").write_bytes(CONTENT[:1000])
    assert download(url, tmp_path / "got.zip", SHA256, progress=False).read_bytes() == CONTENT


def test_a_part_that_is_complete_is_only_verified(url, tmp_path):
    (tmp_path / "got.zip.part").write_bytes(CONTENT)
    assert download(url, tmp_path / "got.zip", SHA256, progress=False).read_bytes() == CONTENT


def test_wrong_bytes_are_refused_and_removed(url, tmp_path):
    (tmp_path / "got.zip.part").write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match=f"expected {SHA256}"):
        download(url, tmp_path / "got.zip", SHA256, progress=False)
    assert not (tmp_path / "got.zip").exists() and not (tmp_path / "got.zip.part").exists()


def test_a_different_file_in_the_way_is_left_alone(url, tmp_path):
    (tmp_path / "got.zip").write_bytes(b"mine")
    with pytest.raises(ValueError, match="got.zip exists and differs"):
        download(url, tmp_path / "got.zip", SHA256, progress=False)
    assert (tmp_path / "got.zip").read_bytes() == b"mine"


def test_missing_files_and_servers_are_clear_errors(file_server, tmp_path):
    with pytest.raises(DownloadError, match="404"):
        download(f"{file_server.url}/nothing.zip", tmp_path / "got.zip", SHA256, progress=False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}/public.zip"
        with pytest.raises(DownloadError, match="could not be fetched"):
            download(nobody, tmp_path / "got.zip", SHA256, progress=False)


def test_the_script_says_what_to_do_without_a_network(script, tmp_path, caplog):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}/pusht.zip"
        with caplog.at_level(logging.INFO):
            assert script.main(["pusht", "--output", str(tmp_path), "--url", nobody]) == 1
    assert "could not be fetched" in caplog.text and "collect_demos.py" in caplog.text


def test_the_script_verifies_the_published_archive(script, pusht_zip, tmp_path, file_server, monkeypatch):
    assert file_sha256(pusht_zip) == PUBLIC_FILES["pusht"].sha256
    (tmp_path / "mirror.zip").symlink_to(pusht_zip)
    monkeypatch.setenv("UVA_DATA_DIR", str(tmp_path / "data"))
    assert script.main(["pusht", "--url", f"{file_server.url}/mirror.zip"]) == 0
    assert file_sha256(tmp_path / "data" / "pusht" / "pusht.zip") == PUBLIC_FILES["pusht"].sha256
