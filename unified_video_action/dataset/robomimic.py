"""robomimic's image demonstrations with absolute actions: ToolHang's published `image_abs.hdf5`, Lift's scripted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unified_video_action.dataset.hdf5_store import Hdf5Store, MissingDataset
from unified_video_action.dataset.mixture import Source, Wanted
from unified_video_action.dataset.tables import StoreSource, Table
from unified_video_action.dataset.zarr_store import StoreError
from unified_video_action.env.robomimic.action_kind import ActionKind, kind_of_actions
from unified_video_action.rotations import AXIS_ANGLE_ACTION, POSE_ACTION, to_pose_actions

HAND = "obs/robot0_eef_pos"


@dataclass(frozen=True)
class RobomimicSource(StoreSource, Source):
    """A file of robomimic: cameras and states are called as in data/<demo>/obs (`sideview_image`, `robot0_eef_pos`).

    Actions are stored as position, axis-angle, gripper (7) and given as position, 6-D rotation, gripper (10). They must
    be poses in the frame of `robot0_eef_pos`, which is judged as `kind_of_actions` says.
    """

    poses: bool = False  # true: the actions are such poses, whatever they look like

    def tables(self, wanted: Wanted) -> list[Table]:
        if wanted.action_dim != POSE_ACTION or wanted.auxiliary:
            raise ValueError(
                f"{wanted}: robomimic's actions are given as {POSE_ACTION} numbers (position, 6-D rotation, gripper), "
                "and there are no auxiliary targets"
            )
        low_dim = {name: f"obs/{name}" for name in wanted.low_dim}
        needed = [*low_dim.values(), *(["actions", HAND] if self.has_action else [])]
        cameras = {camera: f"obs/{camera}" for camera in wanted.cameras}
        try:
            store = Hdf5Store(self.path, images=list(cameras.values()), vectors=list(dict.fromkeys(needed)))
        except MissingDataset as error:
            raise StoreError(
                f"{error}. Frames and states of a file that has the simulator's states alone are made by: "
                f"python scripts/render_robomimic.py {self.path} --absolute --output NEW.hdf5"
            ) from error
        return [
            Table(
                store=store,
                cameras=cameras,
                low_dim={name: store.vectors[stored] for name, stored in low_dim.items()},
                action=_absolute_actions(store, self.poses) if self.has_action else None,
                weight=self.weight,
            )
        ]


def _absolute_actions(store: Hdf5Store, poses: bool) -> np.ndarray:
    """(N, 10) float32. Raises StoreError for actions that are not absolute; `poses` says that they are."""
    actions, hand = store.vectors["actions"], store.vectors[HAND]
    if actions.shape[1] != AXIS_ANGLE_ACTION:
        raise StoreError(f"{store.location}: actions have {actions.shape[1]} numbers, expected {AXIS_ANGLE_ACTION}")
    kind = kind_of_actions(actions, hand, store.episode_ends, store.attributes.get("env_args"))
    if poses or kind is ActionKind.POSES:
        return to_pose_actions(actions)
    convert = f"python scripts/render_robomimic.py {store.location} --absolute --output NEW.hdf5"
    if kind is ActionKind.STEPS:
        raise StoreError(
            f"{store.location}: its actions are steps, not poses in the world's frame; convert them with: {convert}"
        )
    if kind is ActionKind.OTHER_FRAME:
        away = np.median(actions[:, :3] - hand, axis=0).astype(float).round(3).tolist()
        raise StoreError(
            f"{store.location}: its actions are poses in another frame than {HAND}, {away} m from it at the median: "
            "that of the arm's base, say. Write both in one frame, or set poses: true at this source to learn them so"
        )
    raise StoreError(
        f"{store.location}: its actions follow neither {HAND} nor its motion. If they are poses all the same, set "
        f"poses: true at this source; steps of the hand are converted with: {convert}"
    )
