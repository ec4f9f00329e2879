"""Writing demonstrations: a store in the layout of the published PushT archive, which appears when it is whole."""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zarr
from numcodecs.abc import Codec

from unified_video_action.dataset.formats.pictures import register_pictures
from unified_video_action.files import written

ROWS_PER_CHUNK = 2000
FRAMES_PER_CHUNK = 32  # frames are read a few at a time


class DemonstrationStore:
    """A zarr (format 2) folder that grows by whole episodes: data/<name> (rows, ...), meta/episode_ends (episodes,).

    Args:
        pictures: codec of frames, each of which is then a chunk of its own, such as `JpegXlCodec()`; None: zarr's
            compression of many frames together.
    """

    def __init__(self, folder: Path, pictures: Codec | None = None) -> None:
        self._pictures = pictures
        self._root = zarr.open_group(folder, mode="w", zarr_format=2)
        self._arrays: dict[str, zarr.Array] = {}
        self.rows = 0
        self.episodes = 0

    def append(self, arrays: dict[str, np.ndarray], meta: dict[str, np.ndarray | float]) -> None:
        """Add one episode: arrays of equal length (T, ...), and one row of each `meta` entry."""
        self.rows += len(next(iter(arrays.values())))
        self.episodes += 1
        for name, values in arrays.items():
            self._extend(f"data/{name}", values)
        for name, value in {"episode_ends": np.int64(self.rows), **meta}.items():
            self._extend(f"meta/{name}", np.asarray(value)[None])

    def describe(self, **attributes: str | int | float | None) -> None:
        self._root.attrs.update(attributes)

    def _extend(self, path: str, values: np.ndarray) -> None:
        if path not in self._arrays:
            frames, shape = values.ndim == 4, values.shape[1:]
            alone = frames and self._pictures is not None
            rows = 1 if alone else FRAMES_PER_CHUNK if frames else ROWS_PER_CHUNK
            self._arrays[path] = self._root.create_array(
                path,
                shape=(0, *shape),
                chunks=(rows, *shape),
                dtype=values.dtype,
                compressors=self._pictures if alone else "auto",
                config={"write_empty_chunks": True},  # readers can hardly tell one that was left out from a lost one
            )
        self._arrays[path].append(values)


def require_new_store(output: Path) -> None:
    """Raise ValueError unless `output` is the name of a zarr folder or zip, FileExistsError when it is taken."""
    if output.suffix not in (".zarr", ".zip"):
        raise ValueError(f"--output must end in .zarr or .zip, got {output}")
    if output.exists():
        raise FileExistsError(f"{output} exists already; choose another --output, or remove it first")


@contextlib.contextmanager
def new_store(output: Path, pictures: Codec | None = None) -> Iterator[DemonstrationStore]:
    """A store that appears as `output` (NAME.zarr or NAME.zip) when the block ends well; otherwise nothing is left."""
    require_new_store(output)
    register_pictures()
    with written(output) as part:
        if output.suffix == ".zarr":
            yield DemonstrationStore(part, pictures)
            return
        with tempfile.TemporaryDirectory(dir=part.parent, prefix=f"{part.name}-") as folder:
            yield DemonstrationStore(Path(folder), pictures)
            with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
                for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                    undated = zipfile.ZipInfo(path.relative_to(folder).as_posix())  # the same bytes whenever it runs
                    archive.writestr(undated, path.read_bytes())
