"""PushT: push a T-shaped block onto its goal (demonstrations of Diffusion Policy, and stores in the same format)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from unified_video_action.dataset.augmentation import VideoAugmentation
from unified_video_action.dataset.formats.zarr import ReplayBuffer
from unified_video_action.dataset.mixture import MixtureDataset, StoreSource, Wanted
from unified_video_action.dataset.store import StoreError
from unified_video_action.dataset.tables import Table
from unified_video_action.env.pusht.geometry import state_targets
from unified_video_action.spec import Horizon

PUBLISHED = "$UVA_DATA_DIR/pusht/pusht.zip"
WANTED = Wanted(cameras=("image",), low_dim=("agent_pos",), action_dim=2)
TABLE = 512.0  # side of the table in the units of actions and states
STATE = 5  # numbers: agent x and y, block x, y and angle


@dataclass(frozen=True)
class PushTSource(StoreSource):
    """A PushT store: camera "image", low-dim "agent_pos" (2), actions (2) in table pixels, and those executed (2).

    Auxiliary targets (N, 6) are agent and block position in [-1, 1], cosine and sine of the block's angle.
    """

    mirror: bool = False  # also every episode's mirror image in the diagonal, which keeps the goal and the T

    def tables(self, wanted: Wanted) -> list[Table]:
        self.require(wanted, cameras=("image",), low_dim=("agent_pos",))
        store = open_store(self, needs_state=bool(wanted.low_dim) or wanted.auxiliary)
        state, action = (store.vectors.get(name) for name in ("state", "action"))
        executed = None if action is None else store.read_executed("action")
        tables = []
        for mirror in (False, True) if self.mirror else (False,):
            if mirror:
                state = None if state is None else mirror_state(state)
                action, executed = (None if each is None else mirror_points(each) for each in (action, executed))
            table = Table(
                store=store,
                cameras={"image": "img"},
                low_dim={"agent_pos": state[:, :2]} if wanted.low_dim else {},
                action=action,
                executed=executed,
                auxiliary=state_targets(state) if wanted.auxiliary else None,
                mirror=mirror_frames if mirror else None,
            )
            tables.append(table)
        return tables


class PushTDataset(MixtureDataset):
    """Windows of PushT demonstrations, and of stores in the same format.

    Args:
        paths: a store or several (human and scripted demonstrations, say): zip, folder or fsspec URL, or mappings with
            the fields of `PushTSource`. None: the published archive in $UVA_DATA_DIR.
        mirror: see `PushTSource`. Others as in `MixtureDataset`.
    """

    def __init__(
        self,
        paths: str | Mapping | Sequence[str | Mapping] | None = None,
        horizon: Horizon | None = None,
        wanted: Wanted = WANTED,
        val_ratio: float = 0.02,
        split_seed: int = 42,
        max_train_episodes: int | None = None,
        pad_before: int | None = 1,
        pad_after: int | None = 7,
        mirror: bool = False,
        augmentation: bool | VideoAugmentation = False,
        low_dim_steps: int | None = None,
        history_actions: bool = False,
        future_low_dim: bool = False,
        history_frequency: str = "fixed",
    ) -> None:
        paths = PUBLISHED if paths is None else paths
        given = [paths] if isinstance(paths, str | Path | Mapping) else paths
        known = sorted(field.name for field in fields(PushTSource))
        sources = []
        for source in given:
            source = {"mirror": mirror, **(source if isinstance(source, Mapping) else {"path": str(source)})}
            if "path" not in source or not set(source) <= set(known):
                raise ValueError(f"source {source}: expected a path, or a mapping with path and {', '.join(known)}")
            sources.append(PushTSource(**source))
        super().__init__(
            sources,
            wanted,
            horizon or Horizon(),
            val_ratio,
            split_seed,
            max_train_episodes,
            pad_before,
            pad_after,
            augmentation,
            low_dim_steps=low_dim_steps,
            history_actions=history_actions,
            future_low_dim=future_low_dim,
            history_frequency=history_frequency,
        )


def open_store(source: PushTSource, needs_state: bool = True) -> ReplayBuffer:
    """Open and check a PushT store: data/img, and data/action (N, 2) and data/state (N, 5) where they are needed."""
    vectors = {"action": 2} if source.has_action else {}
    vectors |= {"state": STATE} if needs_state else {}
    store = ReplayBuffer(source.path, images=["img"], vectors=vectors)
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
