"""Samples of the PushT dataset against the store they are cut from."""

import pickle
import shutil

import numpy as np
import pytest
import torch
import zarr
from torch.utils.data import DataLoader

from unified_video_action.dataset.mixture import Wanted
from unified_video_action.dataset.pusht import PushTDataset, mirror_frames, mirror_state
from unified_video_action.dataset.sampling import StepBatchSampler
from unified_video_action.dataset.store import StoreError
from unified_video_action.spec import Horizon

FULL = {"pad_before": 15, "pad_after": 16}  # every step is `now` once
WITH_TARGETS = Wanted(("image",), ("agent_pos",), 2, auxiliary=True)
NOW, LATE, EARLY = 20, 35, 2  # rows of episode 0, which has 40


@pytest.fixture
def arrays(pusht_store):
    root = zarr.open_group(pusht_store, mode="r")
    return {name: root[f"data/{name}"][:] for name in ("img", "action", "state")}


def whole(store, **options):
    """All four episodes in training, every step a window, so that window i of the plain part is row i."""
    return PushTDataset(str(store), val_ratio=0, **FULL | options)


def flat(sample, prefix=""):
    """Nested dictionaries to one: "history.image" -> tensor."""
    items = {}
    for name, value in sample.items():
        items |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return items


def equal(a, b):
    a, b = flat(a), flat(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def chw(frames):
    return np.moveaxis(frames, -1, -3)


def test_actions_as_carried_out_are_read_where_a_store_has_them(pusht_store, arrays, tmp_path):
    assert "executed_action" not in whole(pusht_store)[(NOW, 7)]
    disturbed = tmp_path / "disturbed.zarr"
    shutil.copytree(pusht_store, disturbed)
    root = zarr.open_group(disturbed)
    root["data/executed"] = arrays["action"] + 7
    both = PushTDataset([str(pusht_store), {"path": str(disturbed), "mirror": True}], val_ratio=0, **FULL)
    batch = both.__getitems__([(NOW + table * len(arrays["action"]), 7) for table in range(3)])
    assert np.array_equal(batch["executed_action"][0], batch["action"][0]), "a store without them: as recorded"
    assert np.array_equal(batch["executed_action"][1], batch["action"][1] + 7)
    assert np.array_equal(batch["executed_action"][2], batch["action"][2] - 7), "mirrored in the diagonal"


def test_a_sample_holds_the_rows_of_its_window(pusht_store, arrays):
    sample = whole(pusht_store)[(NOW, 7)]
    history, future = [NOW - 12, NOW - 8, NOW - 4, NOW], [NOW + 4, NOW + 8, NOW + 12, NOW + 16]
    assert np.array_equal(sample["history"]["image"], chw(arrays["img"][history]))
    assert np.array_equal(sample["future"]["image"], chw(arrays["img"][future]))
    assert np.array_equal(sample["action"], arrays["action"][NOW : NOW + 16])
    assert np.array_equal(sample["low_dim"]["agent_pos"], arrays["state"][history, :2])
    assert not sample["action_is_pad"].any() and not sample["frame_is_pad"].any() and sample["has_action"]
    assert (sample["index"], sample["seed"]) == (NOW, 7)
    assert "auxiliary" not in sample and "history_action" not in sample


def test_beyond_an_episodes_ends_rows_repeat_and_are_masked(pusht_store, arrays):
    sample = whole(pusht_store)[(LATE, 0)]
    assert np.array_equal(sample["future"]["image"], chw(arrays["img"][[39, 39, 39, 39]]))
    assert sample["frame_is_pad"].tolist() == [False, True, True, True]  # row 39 is the last
    assert sample["action_is_pad"].tolist() == [False] * 5 + [True] * 11
    assert (sample["action"][5:].numpy() == arrays["action"][39]).all()
    for now, rows in ((EARLY, [0, 0, 0, EARLY]), (40, [40] * 4)):  # and before the start; the first step of episode 1
        sample = whole(pusht_store)[(now, 0)]
        assert np.array_equal(sample["history"]["image"], chw(arrays["img"][rows]))
        assert np.array_equal(sample["low_dim"]["agent_pos"], arrays["state"][rows, :2])


def test_options_choose_what_a_sample_holds(pusht_store, arrays):
    horizon = Horizon(history=2, future=3, stride=5, actions=6, action_offset=1)
    options = {"pad_before": 9, "pad_after": 15, "low_dim_steps": 1, "history_actions": True}
    sample = PushTDataset(str(pusht_store), horizon, wanted=WITH_TARGETS, val_ratio=0, **options)[(NOW, 0)]
    frames = [NOW - 5, NOW, NOW + 5, NOW + 10, NOW + 15]
    assert np.array_equal(sample["history"]["image"], chw(arrays["img"][frames[:2]]))
    assert np.array_equal(sample["future"]["image"], chw(arrays["img"][frames[2:]]))
    assert np.array_equal(sample["action"], arrays["action"][NOW + 1 : NOW + 7])
    assert np.array_equal(sample["history_action"], arrays["action"][NOW - 5 : NOW + 1])
    assert np.array_equal(sample["low_dim"]["agent_pos"], arrays["state"][NOW : NOW + 1, :2])
    state = arrays["state"][frames]
    assert sample["auxiliary"].shape == (5, 6)
    assert np.allclose(sample["auxiliary"][:, :4], state[:, :4] / 256 - 1, atol=1e-6)
    assert np.allclose(np.arctan2(*sample["auxiliary"][:, [5, 4]].numpy().T) % (2 * np.pi), state[:, 4], atol=1e-4)


def test_a_batch_is_its_samples_and_the_seed_decides_every_random_choice(pusht_store):
    dataset = whole(pusht_store, mirror=True, wanted=WITH_TARGETS, augmentation=True, history_frequency="random")
    items, torch_state = [(3, 11), (170, 12), (3, 13), (299, 14)], torch.random.get_rng_state()
    batch = flat(dataset.__getitems__(items))
    for row, item in enumerate(items):
        assert equal({name: value[row] for name, value in batch.items()}, dataset[item])
    assert len({dataset[(NOW, seed)]["low_dim"]["agent_pos"].numpy().tobytes() for seed in range(20)}) > 10
    assert torch.equal(torch.random.get_rng_state(), torch_state)  # the global generator is left alone


# -- mirror image ------------------------------------------------------------------------------------------------------


def test_mirrored_episodes_follow_the_plain_ones(pusht_store, arrays):
    dataset = whole(pusht_store, mirror=True, wanted=WITH_TARGETS)
    assert len(dataset) == 2 * 150
    plain, mirrored = dataset[(NOW, 0)], dataset[(150 + NOW, 0)]
    for part in ("history", "future"):
        assert np.array_equal(mirrored[part]["image"], mirror_frames(plain[part]["image"].numpy()))
    assert np.allclose(mirrored["action"], 512 - arrays["action"][NOW : NOW + 16, ::-1])
    assert np.allclose(mirrored["low_dim"]["agent_pos"], 512 - plain["low_dim"]["agent_pos"].numpy()[:, ::-1])
    aux, own = plain["auxiliary"], mirrored["auxiliary"]
    assert np.allclose(own[:, :4], -aux[:, [1, 0, 3, 2]], atol=1e-5)
    assert np.allclose(own[:, 4:], aux[:, [5, 4]], atol=1e-5)  # cos(pi/2 - a) = sin a


def test_a_mirrored_source_has_no_larger_share(pusht_store, make_store):
    both = [{"path": str(pusht_store), "mirror": True, "weight": 1}, {"path": str(make_store(seed=3)), "weight": 2}]
    dataset = PushTDataset(both, val_ratio=0, **FULL)
    assert (np.bincount(dataset._table) / len(dataset)).tolist() == pytest.approx([1 / 6, 1 / 6, 2 / 3], abs=0.01)
    unweighted = PushTDataset([{**source, "weight": None} for source in both], val_ratio=0, **FULL)
    assert np.bincount(unweighted._table).tolist() == [150, 150, 150]


def test_weighted_episodes_that_are_all_too_short_are_named(pusht_store):
    with pytest.raises(ValueError, match="no episode is long enough for a window of"):
        PushTDataset([{"path": str(pusht_store), "weight": 1}], horizon=Horizon(stride=30, history=2, future=2))


def test_real_mirrored_frames_equal_renderings_of_mirrored_states(pusht_zip):
    renderer = pytest.importorskip("unified_video_action.env.pusht.env")
    store = PushTDataset(str(pusht_zip)).tables[0].store
    rows = np.array([0, 5_000, 11_111, 20_000, 25_000])
    mirrored = mirror_frames(chw(store.frames("img", rows))).astype(int)
    rendered = chw(renderer.render_states(mirror_state(store.vectors["state"][rows]))).astype(int)
    assert np.abs(mirrored - rendered).mean() < 0.7  # edges are drawn half a pixel apart; unmirrored: 4.8
    assert (np.abs(mirrored - rendered).max(axis=1) > 64).mean() < 0.01


# -- splits, sources, normaliser ---------------------------------------------------------------------------------------


def test_validation_is_plain_and_apart_from_training(pusht_store):
    dataset = PushTDataset(str(pusht_store), val_ratio=0.25, mirror=True, augmentation=True, **FULL)
    held = dataset.validation()
    fewer = PushTDataset(str(pusht_store), val_ratio=0.25, max_train_episodes=1, **FULL)
    assert len(set(fewer.episodes())) == 1 and len(fewer.validation()) == len(held)
    training = set(dataset._start % 150)
    assert set(held._start).isdisjoint(training) and len(training) == 3 and len(dataset) == 2 * (150 - len(held))
    assert not held._table.any()  # none is mirrored
    assert equal({**held[(0, 1)], "seed": torch.tensor(0)}, {**held[(0, 2)], "seed": torch.tensor(0)})
    with pytest.raises(ValueError, match="val_ratio=0"):
        whole(pusht_store).validation()
    assert len(dataset.everything()) == 300


def test_a_source_may_be_kept_out_of_validation(pusht_store, make_store):
    videos = {"path": str(make_store(lengths=(30, 30), seed=5)), "has_action": False, "val_ratio": 0}
    dataset = PushTDataset([str(pusht_store), videos], val_ratio=0.25, mirror=True, **FULL)
    alone = PushTDataset(str(pusht_store), val_ratio=0.25, mirror=True, **FULL)
    assert np.array_equal(dataset.validation()._now, alone.validation()._now)
    assert len(dataset) == len(alone) + 2 * 60


def test_a_video_without_actions(pusht_store, make_store):
    path = make_store(lengths=(30, 30), seed=5)
    shutil.rmtree(path / "data" / "action")
    with pytest.raises(StoreError, match="data/action is missing"):
        whole(path)
    video = {"path": str(path), "has_action": False}
    dataset = PushTDataset([str(pusht_store), video], val_ratio=0, mirror=True, **FULL)
    batch = dataset.__getitems__([(NOW, 0), (300 + NOW, 0)])
    assert batch["has_action"].tolist() == [True, False]
    assert batch["action_is_pad"].any(1).tolist() == [False, True] and batch["action_is_pad"][1].all()
    assert not batch["action"][1].any() and batch["action"][0].any() and not batch["frame_is_pad"][1, 0]
    alone = whole(pusht_store, mirror=True).fit_normalizer()
    assert torch.equal(dataset.fit_normalizer().scale("action"), alone.scale("action"))
    shutil.rmtree(path / "data" / "state")
    assert PushTDataset(video, wanted=Wanted(("image",), (), 2))[(0, 0)]["low_dim"] == {}


def test_relative_actions_are_normalised_over_every_chunk(pusht_store):
    dataset = whole(pusht_store, mirror=True)
    batch = dataset.__getitems__([(i, 0) for i in range(len(dataset))])
    relative = (batch["action"] - batch["low_dim"]["agent_pos"][:, -1:])[~batch["action_is_pad"]]
    normalizer = dataset.fit_normalizer(relative_to="agent_pos")
    assert torch.allclose(normalizer.stats["action"]["min"], relative.amin(0))
    assert torch.allclose(normalizer.stats["action"]["max"], relative.amax(0))
    normalised = normalizer.normalize("action", relative)  # (n, 2)
    assert normalised.mean(0).abs().max() < 1e-4 and (normalised.std(0) - 1).abs().max() < 1e-2
    with pytest.raises(ValueError, match="relative_to='gripper'"):
        dataset.fit_normalizer("gripper")


# -- caches ------------------------------------------------------------------------------------------------------------


def test_caches_of_several_stores_equal_their_frames_and_encoding_them(pusht_store, make_store, toy_codec, tmp_path):
    other = make_store(lengths=(30, 30), seed=5)
    codec, dataset = toy_codec(), PushTDataset([str(pusht_store), str(other)], val_ratio=0, mirror=True, **FULL)
    items = [(310, 0), (NOW, 1), (350, 2), (150 + NOW, 3), (LATE, 4)]
    frames = dataset.__getitems__(items)
    dataset.use_frames(tmp_path / "caches", cached=True, progress=False)
    assert equal(frames, dataset.__getitems__(items))
    dataset.use_latents(dataset.latents(codec, tmp_path / "caches", progress=False))
    latents = dataset.__getitems__(items)
    copy = pickle.loads(pickle.dumps(dataset)).__getitems__(items)  # noqa: S301 - as spawned workers do
    assert equal(copy, latents)
    for part in ("history", "future"):
        assert latents[part]["image"].dtype == torch.float32
        assert torch.allclose(latents[part]["image"], codec.encode(frames[part]["image"]), atol=1e-3)
    assert torch.equal(latents["action"], frames["action"])
    assert len(list((tmp_path / "caches").glob("*.latents"))) == 2


def test_latents_and_their_changes_are_measured_over_windows_of_all_episodes(pusht_store, toy_codec, tmp_path):
    dataset = whole(pusht_store)
    dataset.use_latents(dataset.latents(toy_codec(), tmp_path, progress=False))
    measured = dataset.measure_latents(windows=10)["image"]
    batch = dataset.__getitems__([(index, 0) for index in range(0, 150, 15)])
    history, future = (batch[part]["image"].double().numpy() for part in ("history", "future"))
    assert measured.level == pytest.approx((history**2).mean(), rel=1e-4)
    squares = ((future - history[:, -1:]) ** 2).mean(axis=2)  # (B, F, h, w), of a cell
    assert measured.change == pytest.approx(np.average(squares, weights=squares), rel=1e-4)
    assert measured.change > 3 * squares.mean() > 0  # most cells do not change


def test_augmented_views_vary_between_samples_but_not_within_one(pusht_store, toy_codec, tmp_path):
    dataset = PushTDataset(str(pusht_store), val_ratio=0.25, augmentation=True, **FULL)
    dataset.use_latents(dataset.latents(toy_codec(), tmp_path, n_views=4, progress=False))
    samples = [dataset[(NOW, seed)] for seed in range(60)]
    videos = {torch.cat([each["history"]["image"], each["future"]["image"]]).numpy().tobytes() for each in samples}
    assert 2 <= len(videos) <= 4
    held = dataset.validation()
    assert equal({**held[(0, 1)], "seed": torch.tensor(0)}, {**held[(0, 2)], "seed": torch.tensor(0)})


@pytest.mark.parametrize("kind", ["decoded", "latents"])
def test_any_number_of_workers_gives_the_same_batches(pusht_store, toy_codec, tmp_path, kind):
    dataset = whole(pusht_store, mirror=True, augmentation=True, history_frequency="random")
    if kind == "latents":
        codec = toy_codec(noisy=True, posterior="sample")
        dataset.use_latents(dataset.latents(codec, tmp_path, n_views=2, progress=False))
    dataset[(0, 0)]  # opens files in this process, which workers must not share
    sampler = StepBatchSampler(len(dataset), 6, seed=1, stop_step=5)
    loaded = []
    for workers in (0, 1, 2):
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=lambda batch: batch)
        loaded.append(list(loader))
    for batches in loaded[1:]:
        assert all(equal(a, b) for a, b in zip(batches, loaded[0], strict=True))


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"history_frequency": "sometimes"}, "history_frequency='sometimes'"),
        ({"low_dim_steps": 5}, "low_dim_steps=5"),
        ({"wanted": Wanted(("image",), ("gripper",), 2)}, "gripper"),
        ({"pad_after": 40}, "pad_after=40"),
        ({"val_ratio": 1.0}, "val_ratio=1.0"),
        ({"paths": {"val_ratio": -0.1}}, "val_ratio=-0.1"),
        ({"horizon": Horizon(stride=9)}, "no episode is long enough"),
        ({"paths": {"wieght": 2}}, "expected a path, or a mapping"),
    ],
)
def test_bad_options_are_named(pusht_store, option, message):
    paths = {"path": str(pusht_store), **option.get("paths", {})}
    with pytest.raises(ValueError, match=message):
        PushTDataset(**option | {"paths": paths})


def test_arrays_of_another_shape_are_refused(make_store):
    path = make_store()
    zarr.open_group(path)["data"].create_array("state", data=np.ones((150, 4), np.float32), overwrite=True)
    with pytest.raises(StoreError, match=r"data/state is float32 \(150, 4\), expected numbers \(N, 5\)"):
        PushTDataset(str(path))


# -- the published archive ---------------------------------------------------------------------------------------------


def test_the_published_archive_has_the_papers_windows(pusht_zip, monkeypatch):
    dataset = PushTDataset(str(pusht_zip))
    store = dataset.tables[0].store
    held = np.random.default_rng(42).choice(206, size=4, replace=False)
    lengths = np.diff(store.episode_ends, prepend=0)
    assert len(dataset.validation()) == (lengths[held] - 23).sum()
    assert len(dataset) == (np.delete(lengths, held) - 23).sum()
    normalizer = dataset.fit_normalizer()
    assert normalizer.stats["action"]["min"].tolist() == [12, 25]
    assert normalizer.stats["action"]["max"].tolist() == [511, 511]
