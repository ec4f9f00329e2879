"""MuJoCo, imported after its way of drawing was chosen; whoever needs it imports it from here."""

import importlib
import logging

from unified_video_action.env.mujoco_rendering import prepare_rendering
from unified_video_action.env.system_libraries import explain_missing_libraries

logging.getLogger("OpenGL.acceleratesupport").setLevel(logging.WARNING)  # it tells everybody what it could not find
with explain_missing_libraries():
    prepare_rendering()
    import mujoco
    from mujoco.rendering.classic import gl_context

    importlib.reload(gl_context)  # whoever imported MuJoCo earlier may have let it choose a window

__all__ = ["mujoco"]
