"""Check what pip cannot install: the Python version, its venv module and the shared libraries PushT needs.

Needs the standard library only, so that it runs before the environment exists.

    python3 scripts/check_system.py               exit 1 and a message naming what is missing and how to install it
    python3 scripts/check_system.py --packages    the missing apt packages on one line, nothing when all is there
"""

import argparse
import ctypes
import importlib.util
import sys

PYTHON_VERSIONS = ((3, 11), (3, 14))  # first supported, first unsupported; as in pyproject.toml
LIBRARIES = {  # what OpenCV loads, which gym-pusht imports -> the Debian and Ubuntu package
    "libGL.so.1": "libgl1",
    "libglib-2.0.so.0": "libglib2.0-0",
}
MODULES = {"venv": "python3-venv", "ensurepip": "python3-venv"}  # parts of Python that some systems package apart


def missing_packages() -> dict[str, str]:
    """What is missing (a library or a Python module) -> the apt package that has it."""
    missing = {name: package for name, package in MODULES.items() if importlib.util.find_spec(name) is None}
    if sys.platform == "linux":
        missing |= {name: package for name, package in LIBRARIES.items() if not _loads(name)}
    return missing


def version_fault(version: tuple[int, int]) -> str | None:
    """A message when this Python version is not supported."""
    first, last = PYTHON_VERSIONS
    if first <= version < last:
        return None
    return (
        f"Python {version[0]}.{version[1]} at {sys.executable} is not supported: "
        f"{first[0]}.{first[1]} to {last[0]}.{last[1] - 1} are. Name another one: make PYTHON=python3.11"
    )


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", action="store_true", help="only list the missing apt packages")
    options = parser.parse_args()
    missing = missing_packages()
    packages = " ".join(sorted(set(missing.values())))
    if options.packages:
        if packages:
            sys.stdout.write(packages + "\n")
        return 0
    faults = [fault for fault in [version_fault(sys.version_info[:2])] if fault]
    faults += [f"missing: {name} (package {package})" for name, package in missing.items()]
    if packages:
        faults.append(f"install with: sudo apt-get install -y {packages}")
    if faults:
        sys.stderr.write("\n".join(faults) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
