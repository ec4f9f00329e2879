"""The caches on disk: valid zarr, resumable, safe under two builders, never stale."""

import copy
import multiprocessing
import os
import pickle
import shutil
import signal
import time

import numpy as np
import pytest
import torch
import zarr

from unified_video_action.dataset.cache_folder import StaleCacheError, cache_path, fill_cache
from unified_video_action.dataset.frame_cache import FrameCache
from unified_video_action.dataset.latent_cache import LatentCache
from unified_video_action.dataset.row_store import RowStore
from unified_video_action.dataset.zarr_store import StoreError

fork = multiprocessing.get_context("fork")
FRAMES = np.random.default_rng(0).integers(0, 256, (50, 3, 96, 96), dtype=np.uint8)
BLOCK = 8  # seven blocks, the last of two rows


def frames_of(variant, start, stop):
    return FRAMES[start:stop] if variant == "plain" else 255 - FRAMES[start:stop]


def build(path, codec, variants=("plain",), frames=frames_of, **options):
    return LatentCache.build(
        path, codec, len(FRAMES), frames, "source", variants, progress=False, block=BLOCK, **options
    )


# -- rows on disk ------------------------------------------------------------------------------------------------------


def test_a_row_store_is_a_zarr_array_whose_missing_blocks_are_empty(tmp_path):
    store = RowStore.create(tmp_path / "rows", 21, (2, 3), "float16", block=5)
    values = np.random.default_rng(0).normal(size=(21, 2, 3)).astype(np.float16)
    for block in (4, 0, 2):  # the last one has a single row
        store.write(block, values[block * 5 : block * 5 + 5])
    assert store.written().tolist() == [True, False, True, False, True]
    array = zarr.open_array(tmp_path / "rows", mode="r")
    assert array.shape == (21, 2, 3) and array.chunks == (5, 2, 3)
    for block in (4, 0, 2):
        assert np.array_equal(array[block * 5 : block * 5 + 5], values[block * 5 : block * 5 + 5])
    assert not array[5:10].any()


def test_rows_are_read_in_any_order_by_any_copy(tmp_path):
    store = RowStore.create(tmp_path / "rows", 9, (4,), "int32", block=4)
    values = np.arange(36, dtype=np.int32).reshape(9, 4)
    for block in range(3):
        store.write(block, values[block * 4 : block * 4 + 4])
    rows, out = np.array([8, 0, 3, 3]), np.empty((4, 4), np.int32)
    for opened in (store, copy.copy(store), RowStore(tmp_path / "rows")):
        opened.read(rows, out)
        assert np.array_equal(out, values[rows])
    with pytest.raises(ValueError, match="row 9 of 9"):
        store.read(np.array([9]), out[:1])


def test_a_row_store_that_was_cut_short_is_refused(tmp_path):
    store = RowStore.create(tmp_path / "rows", 9, (4,), "int32", block=4)
    os.truncate(store._file, 40)
    with pytest.raises(ValueError, match="cut short"):
        RowStore(tmp_path / "rows")


def flip(store: RowStore, row: int) -> None:
    """Change one bit of a row on disk."""
    place = store._start + row * store._row_bytes + 3
    content = bytearray(store._file.read_bytes())
    content[place] ^= 0x10
    store._file.write_bytes(content)


def test_a_flipped_bit_is_found_by_the_first_read_of_its_block(tmp_path):
    store = RowStore.create(tmp_path / "rows", 21, (4,), "int32", block=8)
    for block in range(3):
        store.write(block, np.full((min(8, 21 - 8 * block), 4), block + 1, np.int32))
    flip(store, 20)
    out = np.empty((2, 4), np.int32)
    for opened in (store, RowStore(tmp_path / "rows"), pickle.loads(pickle.dumps(store))):  # noqa: S301
        opened.read(np.array([0, 15]), out)
        assert out.tolist() == [[1] * 4, [2] * 4]
        with pytest.raises(StoreError, match=r"rows: block 2 \(rows 16 to 20\) is damaged.*Delete this folder"):
            opened.read(np.array([15, 16]), out)


@pytest.mark.parametrize("half", ["zeros", "noise"])
@pytest.mark.parametrize("second", [False, True])
def test_half_a_cache_of_zeros_or_noise_is_found(tmp_path, toy_codec, half, second):
    path = tmp_path / "cache.zarr"
    build(path, toy_codec())
    file = RowStore(path / "plain" / "mean")._file
    content = bytearray(file.read_bytes())
    middle, rng = len(content) // 2, np.random.default_rng(0)
    place = slice(middle, None) if second else slice(0, middle)
    content[place] = bytes(len(content[place])) if half == "zeros" else rng.bytes(len(content[place]))
    file.write_bytes(content)
    cache = build(path, toy_codec())
    with pytest.raises(StoreError, match=r"cache.zarr/plain/mean: block \d \(rows .* is damaged"):
        cache.read(np.arange(50)[None], ["plain"], [0])


def test_a_damaged_array_is_built_again_once_it_is_deleted(tmp_path, toy_codec):
    path, rows = tmp_path / "cache.zarr", np.arange(50)[None]
    expected = build(path, toy_codec(noisy=True)).read(rows, ["plain"], [0]).values
    flip(RowStore(path / "plain" / "mean"), 30)
    with pytest.raises(StoreError, match="Delete this folder") as error:
        build(path, toy_codec(noisy=True)).read(rows, ["plain"], [0])
    shutil.rmtree(str(error.value).partition(": ")[0])
    assert torch.equal(build(path, toy_codec(noisy=True)).read(rows, ["plain"], [0]).values, expected)


def test_a_block_is_checked_once_by_a_process_and_its_workers(tmp_path, monkeypatch):
    store = RowStore.create(tmp_path / "rows", 16, (4,), "int32", block=8)
    for block in range(2):
        store.write(block, np.zeros((8, 4), np.int32))
    checked, out, original = [], np.empty((2, 4), np.int32), RowStore._check
    monkeypatch.setattr(RowStore, "_check", lambda self, block: checked.append(block) or original(self, block))
    for rows in ([0, 9], [1, 2], [15, 8]):
        store.read(np.array(rows), out)
        pickle.loads(pickle.dumps(store)).read(np.array(rows), out)  # noqa: S301
    assert checked == [0, 1]
    store = RowStore(tmp_path / "rows")
    worker = fork.Process(target=store.read, args=(np.array([9, 9]), out))
    worker.start()
    worker.join()
    store.read(np.array([0, 9]), out)
    assert checked == [0, 1, 0]  # the worker has checked the other one


def test_a_cache_of_an_older_version_is_refused(tmp_path, toy_codec):
    build(tmp_path / "cache.zarr", toy_codec())
    del zarr.open_group(tmp_path / "cache.zarr").attrs["checksums"]
    with pytest.raises(StaleCacheError, match="older version, without checksums. Delete this folder"):
        build(tmp_path / "cache.zarr", toy_codec())
    assert len(build(tmp_path / "cache.zarr", toy_codec(), rebuild=True)) == 50


def test_values_that_do_not_fit_a_block_are_refused(tmp_path):
    store = RowStore.create(tmp_path / "rows", 9, (4,), "int32", block=4)
    with pytest.raises(ValueError, match=r"block 2 takes int32 \(1, 4\)"):
        store.write(2, np.zeros((4, 4), np.int32))


# -- latents -----------------------------------------------------------------------------------------------------------


def test_cached_latents_equal_encoding(tmp_path, toy_codec):
    codec = toy_codec()
    cache = build(tmp_path / "cache.zarr", codec, ("plain", "negative"))
    rows = np.array([[0, 7, 8, 49], [3, 3, 20, 40]])
    stored = cache.read(rows, ["plain", "negative"], [0, 1])
    latents = stored.scaled()
    frames = torch.from_numpy(np.stack([FRAMES[rows[0]], 255 - FRAMES[rows[1]]]))
    assert stored.values.dtype == torch.float16 and latents.dtype == torch.float32
    assert torch.equal(stored[:, 1:].scaled(), latents[:, 1:]) and cache.shape == (3, 12, 12) and len(cache) == 50
    assert torch.allclose(latents, codec.encode(frames), atol=1e-3)  # float16 on disk


def test_log_variance_is_stored_only_where_there_is_a_posterior(tmp_path, toy_codec):
    build(tmp_path / "plain.zarr", toy_codec())
    build(tmp_path / "noisy.zarr", toy_codec(noisy=True))
    assert set(zarr.open_group(tmp_path / "plain.zarr")["plain"]) == {"mean"}
    noisy = zarr.open_group(tmp_path / "noisy.zarr")["plain"]
    assert set(noisy) == {"mean", "logvar"} and (noisy["logvar"][:] == -2).all()


def test_a_sampled_posterior_follows_the_samples_seed(tmp_path, toy_codec):
    cache = build(tmp_path / "cache.zarr", toy_codec(noisy=True, posterior="sample"))
    mean = build(tmp_path / "cache.zarr", toy_codec(noisy=True, posterior="mean"))  # the same cache serves both
    rows = np.arange(48).reshape(6, 8)
    first = cache.read(rows, ["plain"] * 6, range(6)).scaled()
    assert torch.equal(cache.read(rows[2:3], ["plain"], [2]).scaled(), first[2:3])  # whatever else is in the batch
    noise = (first - mean.read(rows, ["plain"] * 6, range(6)).scaled()) / 0.5
    assert not torch.equal(noise[0], noise[1])
    assert noise.mean().abs() < 0.02 and abs(noise.std() - np.exp(-1)) < 0.02


def test_a_complete_cache_is_not_computed_again_and_variants_can_be_added(tmp_path, toy_codec):
    codec = toy_codec()
    build(tmp_path / "cache.zarr", codec)
    assert codec.encoded == 50  # every frame once
    build(tmp_path / "cache.zarr", codec)
    assert codec.encoded == 50
    build(tmp_path / "cache.zarr", codec, ("plain", "negative"))
    assert codec.encoded == 50 + 50


def test_a_stale_cache_is_an_error_that_says_what_differs_and_what_to_do(tmp_path, toy_codec):
    path = tmp_path / "cache.zarr"
    build(path, toy_codec())
    with pytest.raises(StaleCacheError, match=r"cache.zarr .*another codec\..*--rebuild"):
        build(path, toy_codec(gain=2.0))
    with pytest.raises(StaleCacheError, match="another codec and another image size"):
        build(path, toy_codec(image_size=48))
    with pytest.raises(StaleCacheError, match="another source"):
        LatentCache.build(path, toy_codec(), 50, frames_of, "other source", progress=False, block=BLOCK)
    rebuilt = build(path, toy_codec(gain=2.0), rebuild=True)
    expected = toy_codec(gain=2.0).encode(torch.from_numpy(FRAMES[None, :4]))
    assert torch.allclose(rebuilt.read(np.arange(4)[None], ["plain"], [0]).scaled(), expected, atol=1e-3)


def test_latents_that_float16_cannot_hold_are_an_error(tmp_path, toy_codec):
    with pytest.raises(ValueError, match="rows 0 to 8.*float16 cannot hold"):
        build(tmp_path / "cache.zarr", toy_codec(gain=1e6))


def test_a_killed_build_goes_on_where_it_stopped(tmp_path, toy_codec):
    path = tmp_path / "cache.zarr"

    def die_in_the_fourth_block(variant, start, stop):
        if start == 3 * BLOCK:
            os.kill(os.getpid(), signal.SIGKILL)
        return frames_of(variant, start, stop)

    process = fork.Process(target=build, args=(path, toy_codec(), ("plain",), die_in_the_fourth_block))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert RowStore(path / "plain" / "mean").written().sum() == 3
    codec = toy_codec()
    resumed = build(path, codec)
    assert codec.encoded == 50 - 3 * BLOCK
    whole = build(tmp_path / "whole.zarr", toy_codec())
    rows = np.arange(50)[None]
    assert torch.equal(resumed.read(rows, ["plain"], [0]).values, whole.read(rows, ["plain"], [0]).values)


def test_a_build_killed_while_making_its_files_starts_anew(tmp_path, toy_codec, monkeypatch):
    path = tmp_path / "cache.zarr"
    monkeypatch.setattr(type(path), "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(path, toy_codec())
    monkeypatch.undo()
    assert len(build(path, toy_codec())) == 50


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path, toy_codec):
    path, encoded, start = tmp_path / "cache.zarr", fork.Value("i", 0), fork.Barrier(2)
    correct = fork.Value("i", 0)

    def slow_frames(variant, first, stop):
        time.sleep(0.03)
        return frames_of(variant, first, stop)

    def work():
        torch.set_num_threads(1)
        codec = toy_codec()
        start.wait()
        cache = build(path, codec, ("plain",), slow_frames)
        latents = cache.read(np.arange(50)[None], ["plain"], [0]).scaled()
        expected = codec.encode(torch.from_numpy(FRAMES[None]))
        with encoded.get_lock(), correct.get_lock():
            encoded.value += codec.encoded - 50
            correct.value += bool(torch.allclose(latents, expected, atol=1e-3))

    processes = [fork.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert encoded.value in (50, 50 + BLOCK)  # each frame once; the second process may have begun with a look at some
    assert correct.value == 2


def test_a_lock_left_by_a_killed_process_does_not_block(tmp_path, toy_codec):
    path = tmp_path / "cache.zarr"
    path.with_name("cache.zarr.lock").touch()
    assert len(build(path, toy_codec())) == 50


def test_a_complete_cache_in_a_folder_that_cannot_be_written_is_used(tmp_path, toy_codec, monkeypatch):
    path = tmp_path / "cache.zarr"
    build(path, toy_codec())
    monkeypatch.setattr("unified_video_action.dataset.cache_folder.FileLock", None)  # no lock is taken
    assert len(build(path, toy_codec())) == 50


def test_progress_counts_frames(tmp_path, capsys):
    layout = {"a": {"x": ((2,), "float32")}}
    fill_cache(tmp_path / "c.zarr", {}, 30, layout, lambda _, a, b: {"x": np.zeros((b - a, 2), np.float32)}, block=8)
    assert "30/30" in capsys.readouterr().err


# -- frames, and where caches lie --------------------------------------------------------------------------------------


def test_cached_frames_equal_the_source(tmp_path):
    cache = FrameCache.build(tmp_path / "f.zarr", 50, lambda a, b: FRAMES[a:b], "source", progress=False)
    rows = np.array([[0, 49], [7, 8]])
    assert np.array_equal(cache.read(rows), FRAMES[rows])
    flip(cache._store, 8)
    with pytest.raises(StoreError, match="f.zarr/plain/frames: block 0"):
        FrameCache.build(tmp_path / "f.zarr", 50, lambda a, b: FRAMES[a:b], "source", progress=False).read(rows)
    with pytest.raises(StaleCacheError, match="another source"):
        FrameCache.build(tmp_path / "f.zarr", 50, lambda a, b: FRAMES[a:b], "other", progress=False)


def test_a_cache_lies_beside_its_store_or_in_the_users_cache(tmp_path, monkeypatch):
    store = tmp_path / "demos.zip"
    assert cache_path(str(store), "image.toy") == tmp_path / "demos.zip.image.toy.zarr"
    given = cache_path(str(store), "image.toy", tmp_path / "caches")
    assert given.parent == tmp_path / "caches" and given.name.startswith("demos.zip-")
    assert given != cache_path(str(tmp_path / "other" / "demos.zip"), "image.toy", tmp_path / "caches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_path("https://example.org/demos.zip", "image.toy").parent == tmp_path / "home/unified_video_action"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert cache_path(str(store), "image.toy").parent == tmp_path / "home/unified_video_action"
