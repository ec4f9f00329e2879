"""MuJoCo, imported after its way of drawing was chosen; whoever needs it imports it from here."""

import logging

from unified_video_action.env.mujoco_rendering import prepare_rendering
from unified_video_action.env.system_libraries import explain_missing_libraries

logging.getLogger("OpenGL.acceleratesupport").setLevel(logging.WARNING)  # it tells everybody what it could not find
with explain_missing_libraries():
    prepare_rendering()
    import mujoco

__all__ = ["mujoco"]
