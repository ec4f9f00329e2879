"""Check what pip cannot install: the Python version, its venv module and the shared libraries simulators need.

Needs the standard library only, so that it runs before the environment exists.

    python3 scripts/check_system.py               exit 1 and a message naming what is missing and how to install it
    python3 scripts/check_system.py --sims        also what robosuite, robomimic and LIBERO draw with
    python3 scripts/check_system.py --packages    the missing Debian packages on one line, nothing when all is there
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON_VERSIONS = ((3, 11), (3, 14))  # first supported, first unsupported; as in pyproject.toml
LIBRARIES = ("libGL.so.1", "libglib-2.0.so.0")  # what OpenCV loads, which gym-pusht imports
SIMULATOR_LIBRARIES = ("libEGL.so.1", "libOSMesa.so.8")  # what MuJoCo draws with
MODULES = {"venv": "python3-venv", "ensurepip": "python3-venv"}  # parts of Python that Debian packages apart


def version_fault(version: tuple[int, int]) -> str | None:
    """A message when this Python version is not supported."""
    first, last = PYTHON_VERSIONS
    if first <= version < last:
        return None
    return (
        f"Python {version[0]}.{version[1]} ({sys.executable}) is not supported, only {first[0]}.{first[1]} to "
        f"{last[0]}.{last[1] - 1}. Name another one: make PYTHON=python{first[0]}.{first[1]}"
    )


def missing_packages(sims: bool) -> dict[str, str]:
    """What is missing (a library or a Python module) -> the Debian package that has it."""
    sys.path.insert(0, str(ROOT))  # the package is not installed yet
    from unified_video_action.env.system_libraries import DEBIAN_PACKAGES

    missing = {name: package for name, package in MODULES.items() if importlib.util.find_spec(name) is None}
    for name in (*LIBRARIES, *(SIMULATOR_LIBRARIES if sims else ())) if sys.platform == "linux" else ():
        try:
            ctypes.CDLL(name)
        except OSError:
            missing[name] = next(package for start, package in DEBIAN_PACKAGES.items() if name.startswith(start))
    return missing


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", action="store_true", help="only list the missing Debian packages")
    parser.add_argument("--sims", action="store_true", help="also what the simulators of robots need")
    options = parser.parse_args(arguments)
    if fault := version_fault(sys.version_info[:2]):
        sys.stderr.write(fault + "\n")
        return 1
    missing = missing_packages(options.sims)
    packages = " ".join(sorted(set(missing.values())))
    if options.packages:
        sys.stdout.write(packages + "\n" if packages else "")
        return 0
    for name, package in missing.items():
        sys.stderr.write(f"missing: {name} (Debian package {package})\n")
    if missing:
        sys.stderr.write(f"install it with: sudo apt-get install -y {packages}\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
