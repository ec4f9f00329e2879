"""An array of numbers that `torch.save` wrote, such as LIBERO's start states, read without torch."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np

from unified_video_action.compat.pickle_reader import DAMAGE, Reader, UnsafePickleError, plain
from unified_video_action.compat.plain_pickle import MESSAGES
from unified_video_action.compat.zip_archive import ZipArchive


def read_array(path: str | Path) -> np.ndarray:
    """The array in `path`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, something other than an array of numbers, or a pickle that asks for anything else.
    """
    try:
        found = plain(Reader(BytesIO(ZipArchive(Path(path)).read("data.pkl")), MESSAGES).load())
    except UnsafePickleError as error:
        raise ValueError(
            f"{path} is no stored array of numbers: it asks for {error.what}; nothing of it was run"
        ) from error
    except (ValueError, zipfile.BadZipFile, *DAMAGE) as error:
        raise ValueError(f"{path} is no stored array of numbers: {error}") from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{path} is no stored array of numbers: it holds a {type(found).__name__}")
    return found
