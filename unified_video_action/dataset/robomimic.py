"""robomimic's image demonstrations with absolute actions: ToolHang's published `image_abs.hdf5`, Lift's scripted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unified_video_action.dataset.hdf5_store import Hdf5Store
from unified_video_action.dataset.mixture import Source, Wanted
from unified_video_action.dataset.tables import StoreSource, Table
from unified_video_action.dataset.zarr_store import StoreError
from unified_video_action.env.robomimic.demonstrations import holds_steps
from unified_video_action.rotations import AXIS_ANGLE_ACTION, POSE_ACTION, to_pose_actions

HAND = "obs/robot0_eef_pos"


@dataclass(frozen=True)
class RobomimicSource(StoreSource, Source):
    """A file of robomimic: cameras and states are called as in data/<demo>/obs (`sideview_image`, `robot0_eef_pos`).

    Actions are stored as position, axis-angle, gripper (7) and given as position, 6-D rotation, gripper (10).
    """

    def tables(self, wanted: Wanted) -> list[Table]:
        if wanted.action_dim != POSE_ACTION or wanted.auxiliary:
            raise ValueError(
                f"{wanted}: robomimic's actions are given as {POSE_ACTION} numbers (position, 6-D rotation, gripper), "
                "and there are no auxiliary targets"
            )
        low_dim = {name: f"obs/{name}" for name in wanted.low_dim}
        needed = [*low_dim.values(), *(["actions", HAND] if self.has_action else [])]
        cameras = {camera: f"obs/{camera}" for camera in wanted.cameras}
        store = Hdf5Store(self.path, images=list(cameras.values()), vectors=list(dict.fromkeys(needed)))
        return [
            Table(
                store=store,
                cameras=cameras,
                low_dim={name: store.vectors[stored] for name, stored in low_dim.items()},
                action=_absolute_actions(store) if self.has_action else None,
                weight=self.weight,
            )
        ]


def _absolute_actions(store: Hdf5Store) -> np.ndarray:
    """(N, 10) float32. Raises StoreError for actions that are not absolute."""
    actions = store.vectors["actions"]
    if actions.shape[1] != AXIS_ANGLE_ACTION:
        raise StoreError(f"{store.location}: actions have {actions.shape[1]} numbers, expected {AXIS_ANGLE_ACTION}")
    if holds_steps(actions, store.vectors[HAND]):
        raise StoreError(
            f"{store.location}: its actions are steps, not poses in the world's frame; convert them with: "
            f"python scripts/render_robomimic.py {store.location} --absolute --output NEW.hdf5"
        )
    return to_pose_actions(actions)
