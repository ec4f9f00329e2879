"""An array of numbers that `torch.save` wrote, such as LIBERO's start states, read without torch.

The file is a zip around a pickle. Of the names a pickle may call, only the four that an array needs are known here, and
they stand for the few lines below, not for what they name.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


def read_array(path: str | Path) -> np.ndarray:
    """The array in `path`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, something other than an array of numbers, or a pickle that asks for anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            found = _Reader(io.BytesIO(archive.read(name))).load()
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} is no stored array of numbers: {error}") from error
    if not isinstance(found, _Array) or found.value is None:
        raise ValueError(f"{path} is no stored array of numbers: it holds a {type(found).__name__}")
    return found.value


class _Type:
    """A numpy dtype, of plain numbers only."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: tuple) -> None:
        self.code = state[1] + self.code if state[1] in ("<", ">") else self.code

    def dtype(self) -> np.dtype:
        dtype = np.dtype(self.code)
        if dtype.kind not in "biuf":
            raise ValueError(f"an array of {self.code}")
        return dtype


class _Array:
    """A numpy array, whose content arrives after it is made."""

    value: np.ndarray | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        self.value = np.frombuffer(data, kind.dtype()).reshape(shape, order="F" if fortran else "C")


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"text encoding {encoding!r}")
    return text.encode("latin1")


class _Reader(pickle.Unpickler):
    NAMES = {
        "numpy.core.multiarray._reconstruct": _Array,
        "numpy._core.multiarray._reconstruct": _Array,
        "numpy.ndarray": _Array,
        "numpy.dtype": _Type,
        "_codecs.encode": _encoded,
    }

    def find_class(self, module: str, name: str) -> Any:
        found = self.NAMES.get(f"{module}.{name}")
        if found is None:
            raise ValueError(f"it asks for {module}.{name}; nothing of it was run")
        return found
