"""What all stores share: checks of numbers, lists in messages, fingerprints of files."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from unified_video_action.dataset import fingerprints as store
from unified_video_action.dataset.fingerprints import sample_files
from unified_video_action.dataset.store import StoreError, as_float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8])
def test_numbers_become_float32(dtype):
    values = np.array([[1, 2], [3, 250]], dtype)
    found = as_float32(values, "here")
    assert found.dtype == np.float32 and np.array_equal(found, values)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1e30, np.float32, r"1e\+30 is larger than any action or state \(1e\+06\)"),
        (-1e300, np.float64, r"-1e\+300 is larger"),  # beyond float32
        (2**62, np.int64, "4611686018427387904 is larger"),
        (-(2**63), np.int64, "-9223372036854775808 is larger"),  # whose absolute value is no int64
        (np.nan, np.float64, "nan is not a number"),
        (-np.inf, np.float32, "-inf is not a number"),
    ],
)
def test_values_that_cannot_be_true_are_named(value, dtype, message):
    values = np.zeros((9, 3), dtype)
    values[7, 2] = value
    with pytest.raises(StoreError, match=rf"^demos: data/action\[7, 2\] = {message}"):
        as_float32(values, "demos: data/action")


def test_a_change_of_any_file_changes_a_fingerprint(tmp_path: Path, monkeypatch):
    paths = [tmp_path / f"{number:03d}" for number in range(300)]
    for path in paths:
        path.write_bytes(bytes(100))

    def fingerprint() -> str:
        digest = hashlib.sha256()
        sample_files(digest, paths, tmp_path)
        return digest.hexdigest()

    for small in (store.SMALL, 0):  # read whole, or in pieces
        monkeypatch.setattr(store, "SMALL", small)
        before = fingerprint()
        for path in (paths[0], paths[1], paths[150], paths[298]):
            path.write_bytes(bytes(99) + b"x")
            assert fingerprint() != before
            path.write_bytes(bytes(100))
        assert fingerprint() == before
