"""Says what a simulator lacks, a system library or a Python package, and how to install it; how MuJoCo draws."""

import ctypes
import importlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DEBIAN_PACKAGES = {  # start of the shared library's file name -> package that holds it
    "libGL.so": "libgl1",
    "libEGL.so": "libegl1",
    "libOpenGL.so": "libopengl0",
    "libOSMesa.so": "libosmesa6",
    "libglib-2.0.so": "libglib2.0-0",
    "libgthread-2.0.so": "libglib2.0-0",
    "libSDL2": "libsdl2-2.0-0",
    "libxcb.so": "libxcb1",
    "libX11.so": "libx11-6",
    "libXext.so": "libxext6",
    "libSM.so": "libsm6",
    "libICE.so": "libice6",
    "libgeos": "libgeos-c1v5",
}
RENDERERS = {"osmesa": "libOSMesa.so.8", "egl": "libEGL.so.1"}  # what each way of drawing loads
SIMULATORS = {"bddl", "h5py", "libero", "mujoco", "numba", "pybullet", "robomimic", "robosuite"}  # `make sims` adds


def missing_library_message(text: str) -> str | None:
    """What to install, read from the text of an ImportError; None when it is about something else."""
    match = re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file", text)
    if match is None:
        return None
    library = match[1]
    package = next((name for start, name in DEBIAN_PACKAGES.items() if library.startswith(start)), None)
    search = f"find its package with: apt-file search {library}, then install that with: sudo apt-get install"
    remedy = f"install it with: sudo apt-get install -y {package}" if package else search
    return f"the system library {library} is missing; {remedy}"


@contextmanager
def explain_missing_libraries() -> Iterator[None]:
    """Turn an ImportError about a shared library or a simulator's package into one that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in SIMULATORS:
            raise
        raise ModuleNotFoundError(
            f"the simulator's package {package} is not installed; add the simulators with: make sims", name=error.name
        ) from error
    except ImportError as error:
        message = missing_library_message(str(error))
        if message is None:
            raise
        raise ImportError(message) from error


def prepare_rendering() -> str:
    """Choose `MUJOCO_GL`, unless the user has: egl where an NVIDIA GPU is, else osmesa; returns the choice. Raises
    ImportError that names the package of a missing library."""
    default = "egl" if Path("/dev/nvidiactl").exists() else "osmesa"
    chosen = os.environ.setdefault("MUJOCO_GL", default)
    os.environ.setdefault("PYOPENGL_PLATFORM", chosen)
    if (
        chosen == "osmesa" and "OpenGL" not in sys.modules
    ):  # its LLVM crashes triton, which torch imports, if it is first
        with suppress(ImportError):
            importlib.import_module("triton._C.libtriton")
    try:
        if library := RENDERERS.get(chosen):
            ctypes.CDLL(library)
    except OSError as error:
        remedy = missing_library_message(f"{library}: cannot open shared object file")
        raise ImportError(f"MuJoCo cannot draw with MUJOCO_GL={chosen}: {remedy}") from error
    return chosen
