"""The caches on disk: resumable, safe under two builders, checked when read, never stale."""

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from unified_video_action.dataset.cache import CachedRows, StaleCacheError, array_path, cache_path, fill_cache
from unified_video_action.dataset.frame_readers import StoredLatents, fill_latents, read_latents
from unified_video_action.dataset.store import StoreError

fork = multiprocessing.get_context("fork")
FRAMES = np.random.default_rng(0).integers(0, 256, (50, 3, 96, 96), dtype=np.uint8)
BLOCK = 8  # seven blocks, the last of two rows
ROWS = np.arange(50)[None]
VALUES = np.random.default_rng(0).normal(size=(21, 4)).astype(np.float16)

MOUNTING = ["unshare", "--mount", "--user", "--map-root-user"]  # a name space in which any user may mount


def can_mount():
    command = [*MOUNTING, "sh", "-c", "mount -t tmpfs none /mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


def frames_of(variant, start, stop):
    return FRAMES[start:stop] if variant == "plain" else 255 - FRAMES[start:stop]


def build(path, codec, variants=("plain",), frames=frames_of, source="source", **options):
    return fill_latents(path, codec, 50, frames, source, variants, progress=False, block=BLOCK, **options)


def everything(stores):
    return read_latents([stores["plain"]], ROWS, None)


def scaled(codec, stores, rows, seeds=None):
    return StoredLatents(read_latents(stores, rows, seeds), codec.shift, codec.scale).scaled()


def filled(path, **key):
    """Three blocks of 8 rows, the last one of 5."""
    layout = {"plain": {"rows": ((4,), "float16")}}
    stores = fill_cache(path, key, 21, layout, lambda _, start, stop: {"rows": VALUES[start:stop]}, block=8)
    return stores["plain"]["rows"]


# -- rows on disk ------------------------------------------------------------------------------------------------------


def test_rows_are_read_in_any_order_and_a_flipped_bit_is_found_by_the_first_read_of_its_block(tmp_path):
    store, rows = filled(tmp_path / "c"), np.array([[20, 0], [3, 3]])
    for opened in (store, CachedRows(store.path), pickle.loads(pickle.dumps(store))):  # noqa: S301
        assert np.array_equal(opened.read(rows), VALUES[rows])
    content = bytearray(store.path.read_bytes())
    content[-7] ^= 0x10  # of row 20, which has 8 bytes
    store.path.write_bytes(content)
    fresh = CachedRows(store.path)
    for opened in (fresh, pickle.loads(pickle.dumps(fresh))):  # noqa: S301
        assert np.array_equal(opened.read(np.array([0, 15])), VALUES[[0, 15]])
        with pytest.raises(StoreError, match=r"rows.npy: block 2 \(rows 16 to 20\) is damaged.*Delete this folder"):
            opened.read(np.array([15, 16]))


@pytest.mark.parametrize("half", ["cut short", "zeros", "noise", "brackets"])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("name", ["plain.mean.npy", "plain.mean.crc.npy", "key.json"])
def test_files_of_which_half_is_lost_are_refused(tmp_path, toy_codec, half, second, name):
    path = tmp_path / "cache"
    build(path, toy_codec())
    content = (path / name).read_bytes()
    parts = [content[: len(content) // 2], content[len(content) // 2 :]]
    size, rng = len(parts[second]), np.random.default_rng(0)
    parts[second] = {"cut short": b"", "zeros": bytes(size), "noise": rng.bytes(size), "brackets": b"(" * size}[half]
    (path / name).write_bytes(b"".join(parts))
    with pytest.raises(StoreError, match=r"cache.* (is damaged|damaged \(|another).*Delete this folder"):
        everything(build(path, toy_codec()))


# -- latents -----------------------------------------------------------------------------------------------------------


def test_cached_latents_equal_encoding_and_are_not_computed_again(tmp_path, toy_codec, monkeypatch):
    codec, path = toy_codec(), tmp_path / "cache"
    assert build(path, codec)["plain"]["mean"].row_shape == (3, 12, 12) and codec.encoded == 50  # every frame once
    cache = build(path, codec, ("plain", "negative"))  # variants can be added
    assert codec.encoded == 50 + 50 and not array_path(path, "plain", "logvar").exists()
    rows = np.array([[0, 7, 8, 49], [3, 3, 20, 40]])
    values = read_latents([cache["plain"], cache["negative"]], rows, [0, 1])  # there is no posterior to sample
    stored = StoredLatents(values, codec.shift, codec.scale)
    latents = stored.scaled()
    frames = torch.from_numpy(np.stack([FRAMES[rows[0]], 255 - FRAMES[rows[1]]]))
    assert stored.values.dtype == torch.float16 and latents.dtype == torch.float32
    assert torch.allclose(latents, toy_codec().encode(frames), atol=1e-3)  # float16 on disk
    with pytest.raises(ValueError, match="rows 0 to 8.*float16 cannot hold"):
        build(tmp_path / "other", toy_codec(gain=1e6))
    monkeypatch.setattr("unified_video_action.dataset.cache.FileLock", None)  # in a folder that cannot be written
    assert build(path, codec)["plain"]["mean"].rows == 50 and codec.encoded == 50 + 50


def test_a_sampled_posterior_follows_the_samples_seed(tmp_path, toy_codec):
    codec = toy_codec(noisy=True)
    cache = build(tmp_path / "cache", codec)["plain"]
    assert (np.load(array_path(tmp_path / "cache", "plain", "logvar")) == -2).all()
    rows = np.arange(48).reshape(6, 8)
    first = scaled(codec, [cache] * 6, rows, range(6))
    assert torch.equal(scaled(codec, [cache], rows[2:3], [2]), first[2:3])  # whatever is beside it
    noise = (first - scaled(codec, [cache] * 6, rows)) / 0.5  # the same cache serves both
    assert not torch.equal(noise[0], noise[1])
    assert noise.mean().abs() < 0.02 and abs(noise.std() - np.exp(-1)) < 0.02


def test_a_stale_cache_is_an_error_that_says_what_differs_and_what_to_do(tmp_path, toy_codec):
    path = tmp_path / "cache"
    build(path, toy_codec())
    for codec, source, what in (
        (toy_codec(gain=2.0), "source", r"codec\..*--rebuild"),
        (toy_codec(image_size=48), "source", "codec and another image size"),
        (toy_codec(), "other source", "source"),
    ):
        with pytest.raises(StaleCacheError, match=f"cache .*another {what}"):
            build(path, codec, source=source)
    rebuilt = scaled(toy_codec(), [build(path, toy_codec(gain=2.0), rebuild=True)["plain"]], ROWS[:, :4])
    assert torch.allclose(rebuilt, toy_codec(gain=2.0).encode(torch.from_numpy(FRAMES[None, :4])), atol=1e-3)


def test_a_killed_build_goes_on_where_it_stopped(tmp_path, toy_codec):
    path = tmp_path / "cache"

    def die_in_the_fourth_block(variant, start, stop):
        if start == 3 * BLOCK:
            os.kill(os.getpid(), signal.SIGKILL)
        return frames_of(variant, start, stop)

    process = fork.Process(target=build, args=(path, toy_codec(), ("plain",), die_in_the_fourth_block))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert CachedRows(path / "plain.mean.npy").written().sum() == 3
    codec = toy_codec()
    assert torch.equal(everything(build(path, codec)), everything(build(tmp_path / "whole", toy_codec())))
    assert codec.encoded == 50 - 3 * BLOCK


FILL = """
import sys
from pathlib import Path
import numpy as np
from unified_video_action.dataset.cache import fill_cache
layout = {"plain": {"rows": ((2**18,), "uint8")}}
rows = lambda _, start, stop: {"rows": np.full((stop - start, 2**18), 7, np.uint8)}
try:
    fill_cache(Path(sys.argv[1]), {}, 16, layout, rows, progress=False, block=1)
except OSError as error:
    print(error.strerror, end="")
"""


@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted in a name space of its own")
def test_a_full_disk_is_an_error_after_which_the_build_goes_on(tmp_path):
    script = f"mount -t tmpfs -o size=2m none {tmp_path} && {sys.executable} -c '{FILL}' {tmp_path}/cache"
    script += f" && mount -o remount,size=8m {tmp_path} && {sys.executable} -c '{FILL}' {tmp_path}/cache && echo whole"
    ran = subprocess.run([*MOUNTING, "sh", "-c", script], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "No space left on devicewhole\n"), ran.stderr


@pytest.mark.parametrize("renames", range(3))
def test_a_build_killed_while_making_its_files_starts_anew(tmp_path, toy_codec, monkeypatch, renames):
    path, done, rename = tmp_path / "cache", [], type(tmp_path).rename

    def dying(self, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", dying)
    with pytest.raises(KeyboardInterrupt):
        build(path, toy_codec())
    monkeypatch.undo()
    assert everything(build(path, toy_codec())).any()


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path, toy_codec):
    path, start = tmp_path / "cache", fork.Barrier(2)
    encoded, correct = fork.Value("i", 0), fork.Value("i", 0)
    path.with_name("cache.lock").touch()  # left by a process that was killed

    def slow_frames(variant, first, stop):
        time.sleep(0.03)
        return frames_of(variant, first, stop)

    def work():
        torch.set_num_threads(1)
        codec = toy_codec()
        start.wait()
        values = everything(build(path, codec, ("plain",), slow_frames))
        with encoded.get_lock(), correct.get_lock():
            encoded.value += codec.encoded
            expected = codec.moments(torch.from_numpy(FRAMES[None])).mean
            correct.value += bool(torch.equal(values, expected.half()))

    processes = [fork.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0] and correct.value == 2
    assert encoded.value in (50, 50 + BLOCK)  # each frame once; the second process may have begun with a look at some


# -- where caches lie --------------------------------------------------------------------------------------------------


def test_a_cache_lies_beside_its_store_or_in_the_users_cache(tmp_path, monkeypatch):
    store = tmp_path / "demos.zip"
    assert cache_path(str(store), "image.toy") == tmp_path / "demos.zip.image.toy"
    given = cache_path(str(store), "image.toy", tmp_path / "caches")
    assert given != cache_path(str(tmp_path / "other" / "demos.zip"), "image.toy", tmp_path / "caches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_path("https://example.org/demos.zip", "image.toy").parent == tmp_path / "home/unified_video_action"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert cache_path(str(store), "image.toy").parent == tmp_path / "home/unified_video_action"
