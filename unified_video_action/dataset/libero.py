"""LIBERO's demonstrations with absolute actions, as `scripts/replay_libero.py` makes them of the published ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from unified_video_action.dataset.cache_folder import CACHES
from unified_video_action.dataset.hdf5_store import Hdf5Store
from unified_video_action.dataset.mixture import Source, Wanted
from unified_video_action.dataset.tables import StoreSource, Table
from unified_video_action.dataset.zarr_store import StoreError, expand
from unified_video_action.files import find_files
from unified_video_action.rotations import AXIS_ANGLE_ACTION, POSE_ACTION, to_pose_actions

CONTROL = "control_mode"  # attribute of the group data; "absolute" in converted files, absent from published ones
INSTRUCTION = "instruction"  # attribute of the group data


@dataclass(frozen=True)
class LiberoSource(StoreSource, Source):
    """A folder of files, one for each task, or one of them; every episode has its task's instruction.

    Cameras are `agentview_rgb` and `eye_in_hand_rgb`, states `ee_pos` (3), `ee_rotation` (6) and `gripper_qpos` (2).
    Actions are stored as position, axis-angle, gripper (7) and given as position, 6-D rotation, gripper (10).
    """

    def tables(self, wanted: Wanted) -> list[Table]:
        if wanted.action_dim != POSE_ACTION or wanted.auxiliary:
            raise ValueError(
                f"{wanted}: LIBERO's actions are given as {POSE_ACTION} numbers (position, 6-D rotation, gripper), "
                "and there are no auxiliary targets"
            )
        tables = [self._table(path, wanted) for path in files(self.path)]
        rows = sum(len(table) for table in tables)
        if self.weight is None:
            return tables
        return [replace(table, weight=self.weight * len(table) / rows) for table in tables]

    def _table(self, path: Path, wanted: Wanted) -> Table:
        cameras = {camera: f"obs/{camera}" for camera in wanted.cameras}
        low_dim = {name: f"obs/{name}" for name in wanted.low_dim}
        vectors = [*low_dim.values(), *(["actions"] if self.has_action else [])]
        require_absolute(Hdf5Store(path, images=[], vectors=["actions"]))
        store = Hdf5Store(path, images=list(cameras.values()), vectors=vectors)
        return Table(
            store=store,
            cameras=cameras,
            low_dim={name: store.vectors[stored] for name, stored in low_dim.items()},
            action=to_pose_actions(store.vectors["actions"]) if self.has_action else None,
            instructions=(str(store.attributes[INSTRUCTION]),) * store.n_episodes,
        )


def files(location: str) -> list[Path]:
    """The file that `location` names, or those in the folder, by name. Raises FileNotFoundError when there are none."""
    path = Path(expand(location))
    if path.is_dir():
        return find_files(path, [".hdf5"], CACHES)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return [path]


def require_absolute(store: Hdf5Store) -> None:
    """Raise StoreError for a file that is not a converted one; says how to convert it."""
    if store.attributes.get(CONTROL) != "absolute" or INSTRUCTION not in store.attributes:
        raise StoreError(
            f"{store.location}: as LIBERO publishes it, its actions are steps; convert it, or its folder, with: "
            f"python scripts/replay_libero.py {store.location} --output NEW_FOLDER"
        )
    if store.vectors["actions"].shape[1] != AXIS_ANGLE_ACTION:
        raise StoreError(
            f"{store.location}: actions have {store.vectors['actions'].shape[1]} numbers, expected {AXIS_ANGLE_ACTION}"
        )
