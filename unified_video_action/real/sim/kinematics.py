"""Where the simulated arm's hand is for its joints, and joints that bring it somewhere."""

from __future__ import annotations

import numpy as np

from unified_video_action.poses import pose_matrix
from unified_video_action.real.sim.engine import mujoco
from unified_video_action.real.sim.scene import JOINTS, model_xml

CLOSE = 1e-8  # metres and radians within which a pose counts as reached: neighbouring poses get smooth joints
STEPS = 40  # of a search
PATIENCE = 5  # steps without coming nearer after which a search is given up, so that what is out of reach costs little
LONGEST = 0.35  # radians that a joint turns in one step of a search, so that it stays on one branch
DAMPING = 1e-3  # of the least squares, so that a stretched arm does not thrash


class Kinematics:
    """For one thread: it thinks in a model of its own."""

    def __init__(self) -> None:
        self._model = mujoco.MjModel.from_xml_string(model_xml(None))
        self._data = mujoco.MjData(self._model)
        self._hand = self._model.site("hand").id
        self._columns = np.array([self._model.joint(f"joint{n}").dofadr[0] for n in range(1, len(JOINTS) + 1)])
        self._low, self._high = (np.array([getattr(joint, end) for joint in JOINTS]) for end in ("low", "high"))

    def pose_of(self, joints: np.ndarray) -> np.ndarray:
        """Joints (6,) -> the hand's pose (4, 4)."""
        self._data.qpos[self._columns] = joints
        mujoco.mj_kinematics(self._model, self._data)
        return pose_matrix(self._data.site_xpos[self._hand], self._data.site_xmat[self._hand].reshape(3, 3))

    def joints_for(self, pose: np.ndarray, near: np.ndarray) -> np.ndarray | None:
        """Joints (6,) within their ranges that bring the hand to `pose`; None where a search from `near` finds none.

        Damped least squares; the arm stays as it is bent near `near`: other ways to the same pose are not looked for.
        """
        if not np.isfinite(pose).all():
            return None
        joints = np.clip(near, self._low, self._high)
        model, data, across = self._model, self._data, np.zeros((6, self._model.nv))
        eye, turn, quaternion = DAMPING**2 * np.eye(6), np.zeros(3), np.zeros(4)
        best, waited = np.inf, 0
        for _ in range(STEPS):
            now = self.pose_of(joints)
            mujoco.mju_mat2Quat(quaternion, (pose[:3, :3] @ now[:3, :3].T).ravel())
            mujoco.mju_quat2Vel(turn, quaternion, 1.0)
            error = np.concatenate([pose[:3, 3] - now[:3, 3], turn])
            distance = np.linalg.norm(error)
            if distance < CLOSE:
                return joints
            best, waited = (distance, 0) if distance < 0.98 * best else (best, waited + 1)
            if waited == PATIENCE:
                return None
            mujoco.mj_comPos(model, data)
            mujoco.mj_jacSite(model, data, across[:3], across[3:], self._hand)
            jacobian = across[:, self._columns]  # (6, 6)
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + eye, error)
            step *= min(1.0, LONGEST / max(np.abs(step).max(), 1e-12))
            joints = np.clip(joints + step, self._low, self._high)
        return None
