"""The packages; the rest is in pyproject.toml. `config/` is installed as a folder of the package."""

from setuptools import find_namespace_packages, setup

CONFIG = "unified_video_action.config"

setup(
    packages=[*find_namespace_packages(include=["unified_video_action*"]), CONFIG],
    package_dir={CONFIG: "config"},
)
