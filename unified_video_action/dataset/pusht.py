"""PushT: push a T-shaped block onto its goal (demonstrations of Diffusion Policy, and stores in the same format)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unified_video_action.dataset.augmentation import VideoAugmentation
from unified_video_action.dataset.replay_buffer import ReplayBuffer
from unified_video_action.dataset.tables import StoreSource, Table
from unified_video_action.dataset.window_dataset import WindowDataset, WindowOptions
from unified_video_action.dataset.zarr_store import StoreError
from unified_video_action.spec import Horizon

PUBLISHED = "$UVA_DATA_DIR/pusht/pusht.zip"
TABLE = 512.0  # side of the table in the units of actions and states
STATE = ("agent x", "agent y", "block x", "block y", "block angle")


class PushTDataset(WindowDataset):
    """Windows of PushT demonstrations: camera "image", low-dim "agent_pos" (2), actions (2) in table pixels.

    Args:
        paths: a store or several (human and scripted demonstrations, say): zip, folder or fsspec URL, or mappings with
            the fields of `StoreSource`. Variables and ~ are expanded. None: the published archive in $UVA_DATA_DIR.
        horizon: frames and actions of a sample.
        val_ratio: share of each store's episodes that is held out, drawn with `split_seed`.
        max_train_episodes: most episodes of each store to train on; None: all.
        pad_before, pad_after: steps by which a window may reach over its episode's ends; 1 and 7 are the paper's.
        mirror: also train on every episode's mirror image in the diagonal, which keeps the goal and the T.
        augmentation: random crop and blur of the frames.
        auxiliary: give `auxiliary` targets (H+F, 6): agent and block position in [-1, 1], cosine and sine of its angle.
        low_dim: states given as inputs; empty: none.
        low_dim_steps: newest states given; None: one for each history frame.
        history_actions: also give the chunk of actions before now.
        history_frequency: "fixed", or "random" for history frames at random times.

    Raises:
        FileNotFoundError: no store there. StoreError: damaged or inconsistent. ValueError: a bad option.
    """

    def __init__(
        self,
        paths: str | Mapping | Sequence[str | Mapping] | None = None,
        horizon: Horizon | Mapping[str, int] | None = None,
        val_ratio: float = 0.02,
        split_seed: int = 42,
        max_train_episodes: int | None = None,
        pad_before: int = 1,
        pad_after: int = 7,
        mirror: bool = False,
        augmentation: bool | VideoAugmentation = False,
        auxiliary: bool = False,
        low_dim: Sequence[str] = ("agent_pos",),
        low_dim_steps: int | None = None,
        history_actions: bool = False,
        history_frequency: str = "fixed",
    ) -> None:
        if not set(low_dim) <= {"agent_pos"}:
            raise ValueError(f"low_dim={list(low_dim)}: PushT has only agent_pos")
        if isinstance(augmentation, bool):
            augmentation = VideoAugmentation() if augmentation else None
        options = WindowOptions(
            horizon if isinstance(horizon, Horizon) else Horizon(**(horizon or {})),
            pad_before,
            pad_after,
            low_dim_steps,
            history_actions,
            history_frequency,
            augmentation,
        )
        paths = PUBLISHED if paths is None else paths
        sources = [paths] if isinstance(paths, str | Path | Mapping) else list(paths)
        tables = []
        for source in map(StoreSource.parse, sources):
            store = open_store(source, needs_state=bool(low_dim) or auxiliary)
            tables.append(_table(store, source, False, low_dim, auxiliary))
            if mirror:
                tables.append(_table(store, source, True, low_dim, auxiliary))
        super().__init__(tables, 2, options, val_ratio, split_seed, max_train_episodes)


def open_store(source: StoreSource, needs_state: bool = True) -> ReplayBuffer:
    """Open and check a PushT store: data/img, and data/action (N, 2) and data/state (N, 5) where they are needed."""
    wanted = {"action": 2} if source.has_action else {}
    wanted |= {"state": len(STATE)} if needs_state else {}
    store = ReplayBuffer(source.path, images=["img"], vectors=list(wanted))
    for name, width in wanted.items():
        if store.vectors[name].shape[1] != width:
            raise StoreError(
                f"{store.location}: data/{name} has shape {store.vectors[name].shape}, expected ({len(store)}, {width})"
            )
    height, width = store.frame_shape("img")
    if height != width:
        raise StoreError(f"{store.location}: data/img has frames of {height} x {width}, expected square ones")
    return store


def mirror_points(points: np.ndarray) -> np.ndarray:
    """Table positions (..., 2) reflected in the diagonal: (x, y) -> (512 - y, 512 - x)."""
    return TABLE - points[..., ::-1]


def mirror_state(state: np.ndarray) -> np.ndarray:
    """States (..., 5) reflected: both positions, and the block's angle -> pi/2 - angle, in [0, 2 pi)."""
    angle = np.mod(np.pi / 2 - state[..., 4:], 2 * np.pi)
    return np.concatenate([mirror_points(state[..., :2]), mirror_points(state[..., 2:4]), angle], axis=-1)


def mirror_frames(frames: np.ndarray) -> np.ndarray:
    """Images (..., S, S) reflected in the same diagonal, their anti-transpose."""
    return np.swapaxes(frames[..., ::-1, ::-1], -1, -2)


def auxiliary_targets(state: np.ndarray) -> np.ndarray:
    """States (N, 5) -> (N, 6): agent xy and block xy in [-1, 1], cosine and sine of the block's angle."""
    positions, angle = state[:, :4] / (TABLE / 2) - 1, state[:, 4:]
    return np.concatenate([positions, np.cos(angle), np.sin(angle)], axis=1)


def _table(store: ReplayBuffer, source: StoreSource, mirror: bool, low_dim: Sequence[str], auxiliary: bool) -> Table:
    state, action = store.vectors.get("state"), store.vectors.get("action")
    if mirror:
        state = None if state is None else mirror_state(state)
        action = None if action is None else mirror_points(action)
    return Table(
        store=store,
        cameras={"image": "img"},
        low_dim={"agent_pos": state[:, :2]} if low_dim else {},
        action=action,
        auxiliary=auxiliary_targets(state) if auxiliary else None,
        weight=source.weight,
        mirror=mirror_frames if mirror else None,
    )
