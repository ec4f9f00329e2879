"""What all stores share: checks of numbers, what a process keeps, fingerprints of files."""

import hashlib
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest

from unified_video_action.dataset import store as fingerprints
from unified_video_action.dataset.store import Kept, StoreError, as_float32


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1e30, np.float32, r"1e\+30 is larger than any action or state \(1e\+06\)"),
        (-1e300, np.float64, r"-1e\+300 is larger"),  # beyond float32
        (-(2**63), np.int64, "-9223372036854775808 is larger"),  # whose absolute value is not an int64
        (np.nan, np.float64, "nan is not a number"),
        (-np.inf, np.float32, "-inf is not a number"),
    ],
)
def test_values_that_cannot_be_true_are_named(value, dtype, message):
    values = np.zeros((9, 3), dtype)
    values[7, 2] = value
    with pytest.raises(StoreError, match=rf"^demos: data/action\[7, 2\] = {message}"):
        as_float32(values, "demos: data/action")


def test_what_a_process_keeps_is_bounded_and_its_own():
    kept, made = Kept(250), []

    def get(key: int, source: Kept = kept) -> int:
        return len(source.get(key, lambda: made.append(key) or np.zeros(100, np.uint8)))

    for key in (1, 2, 1, 3, 1, 2):  # two fit; 3 replaces 2, then 2 replaces 3
        assert get(key) == 100
    assert made == [1, 2, 3, 2] and len(kept) == 2
    assert kept.get("large", lambda: np.zeros(1000)).nbytes == 8000 and len(kept) == 1
    assert len(pickle.loads(pickle.dumps(kept))) == 0  # noqa: S301
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(kept.get, ("large", bytes)) == b""  # a forked process opens for itself


def test_a_change_of_any_file_changes_a_fingerprint(tmp_path: Path, monkeypatch):
    paths = [tmp_path / f"{number:03d}" for number in range(300)]
    for path in paths:
        path.write_bytes(bytes(100))

    def fingerprint() -> str:
        digest = hashlib.sha256()
        fingerprints.sample_files(digest, paths, tmp_path)
        return digest.hexdigest()

    for small in (fingerprints.SMALL, 0):  # read whole, or in pieces
        monkeypatch.setattr(fingerprints, "SMALL", small)
        before = fingerprint()
        for path in (paths[0], paths[150], paths[298]):
            path.write_bytes(bytes(99) + b"x")
            assert fingerprint() != before
            path.write_bytes(bytes(100))
        assert fingerprint() == before
