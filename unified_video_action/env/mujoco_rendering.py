"""How MuJoCo draws: on a GPU where there is one, otherwise in software. To be called before mujoco is imported."""

import ctypes
import os
from pathlib import Path

from unified_video_action.env.system_libraries import missing_library_message

LIBRARIES = {"osmesa": "libOSMesa.so.8", "egl": "libEGL.so.1"}  # what each way of drawing loads


def prepare_rendering() -> str:
    """Choose `MUJOCO_GL`, unless the user has: egl where an NVIDIA GPU is, else osmesa; returns the choice.

    Raises:
        ImportError: the library that draws is missing; names the package that has it.
    """
    default = "egl" if Path("/dev/nvidiactl").exists() else "osmesa"
    chosen = os.environ.setdefault("MUJOCO_GL", default)
    os.environ.setdefault("PYOPENGL_PLATFORM", chosen)
    try:
        if library := LIBRARIES.get(chosen):
            ctypes.CDLL(library)
    except OSError as error:
        remedy = missing_library_message(f"{library}: cannot open shared object file")
        raise ImportError(f"MuJoCo cannot draw with MUJOCO_GL={chosen}: {remedy}") from error
    return chosen
