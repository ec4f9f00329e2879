"""Build objects from configuration, and only objects of this package and of those that the user trusts.

A configuration also arrives inside checkpoints, from strangers. `hydra.utils.instantiate` would call whatever its
`_target_` names; here a target outside `unified_video_action` is refused before anything is imported. Whoever starts
the program may trust further packages, their own environment's say: UVA_PLUGINS=my_package,another. No configuration
or checkpoint can add to that list.
"""

import dataclasses
import importlib
import inspect
import os
import sys
import typing
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

PACKAGE = "unified_video_action"
PLUGINS = "UVA_PLUGINS"  # environment variable: further packages or modules, separated by commas


def trusted_packages() -> tuple[str, ...]:
    """This package, and those that the user named in UVA_PLUGINS.

    Raises:
        ValueError: a name there that is none of a package, or that is the standard library's: it can do anything.
    """
    plugins = [name.strip() for name in os.environ.get(PLUGINS, "").split(",") if name.strip()]
    for name in plugins:
        if not all(part.isidentifier() for part in name.split(".")) or name.split(".")[0] in sys.stdlib_module_names:
            raise ValueError(f"{PLUGINS}: {name!r} is refused; name packages of your own, such as {PLUGINS}=my_package")
    return PACKAGE, *plugins


def resolve_target(target: str, where: str = "config") -> Any:
    """Return the class or function that a dotted path in a trusted package names.

    Raises:
        ValueError: the target lies outside those packages, or does not exist.
    """
    trusted = trusted_packages()
    if not isinstance(target, str) or not target.startswith(tuple(f"{package}." for package in trusted)):
        raise ValueError(
            f"{where}._target_: {target!r} is refused; a configuration may build {'.*, '.join(trusted)}.* only. If "
            f"this is code of yours, name its package when you start the program: {PLUGINS}=my_package"
        )
    module_name, _, attribute = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a missing third-party package is its own, clear message
        hint = "" if module_name.startswith(PACKAGE) else "; is its folder in PYTHONPATH, or the package installed?"
        raise ValueError(f"{where}._target_: no module {error.name!r}{hint}") from error
    found = getattr(module, attribute, None)
    if found is None or getattr(found, "__module__", None) != module_name:
        raise ValueError(f"{where}._target_: {module_name!r} defines no {attribute!r}")
    return found


def instantiate(node: Any, where: str = "config", **extra: Any) -> Any:
    """Build the object a configuration node describes; nested nodes with a `_target_` are built first.

    Args:
        node: mapping with `_target_` (a dotted path in a trusted package) and the constructor's arguments.
        where: name of the node in the configuration, for messages.
        extra: further arguments; they win over the node's.

    Raises:
        ValueError: unknown or missing argument, refused target, or a value the constructor rejects.
    """
    if isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.to_container(node, resolve=True)
    if not isinstance(node, dict) or "_target_" not in node:
        raise ValueError(f"{where}: expected a mapping with _target_, got {node!r}")
    target = resolve_target(node["_target_"], where)
    arguments = {key: _build(value, f"{where}.{key}") for key, value in node.items() if key != "_target_"} | extra
    known = inspect.signature(target).parameters
    for key in arguments:
        if key not in known:
            raise ValueError(f"{where}.{key}: {target.__name__} has no such field; it has {', '.join(known)}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise ValueError(f"{where}.{key}: {target.__name__} needs a value for it")
    return target(**arguments)


def _build(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        if "_target_" in value:
            return instantiate(value, where)
        return {key: _build(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_build(item, f"{where}[{index}]") for index, item in enumerate(value)]
    return value


def build_dataclass(kind: type, node: Any, where: str) -> Any:
    """Fill a dataclass from a plain mapping, and its fields that are dataclasses from nested mappings.

    Raises:
        ValueError: an unknown key, a missing field, or a value the dataclass rejects, with its place.
    """
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node, resolve=True)
    if not isinstance(node, dict):
        raise ValueError(f"{where}: expected a mapping with the fields of {kind.__name__}, got {node!r}")
    types, values = typing.get_type_hints(kind), {}
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key, value in node.items():
        if key not in known:
            raise ValueError(f"{where}.{key}: {kind.__name__} has no such field; it has {', '.join(known)}")
        kinds = [each for each in (types[key], *typing.get_args(types[key])) if dataclasses.is_dataclass(each)]
        nested = kinds and isinstance(value, dict)
        values[key] = build_dataclass(kinds[0], value, f"{where}.{key}") if nested else value
        if types[key] is float and isinstance(value, int) and not isinstance(value, bool):
            values[key] = float(value)
        elif types[key] in (int, float, str, bool) and not isinstance(values[key], types[key]):
            raise ValueError(f"{where}.{key}: expected {types[key].__name__}, got {value!r}")
    for name, field in known.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in values and not optional:
            raise ValueError(f"{where}.{name}: {kind.__name__} needs a value for it")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
