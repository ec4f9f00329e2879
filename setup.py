from setuptools import setup

setup()  # everything is in pyproject.toml; this file serves tools that look for it
