"""Build objects from configuration, and only objects of this package and of those that the user trusts.

A configuration also arrives inside checkpoints, from strangers. `hydra.utils.instantiate` would call whatever its
`_target_` names; here every key that may hold an object names the class of its target, no function is ever called,
and nothing is built before all of a node has been checked. A target outside `unified_video_action` is refused before
anything is imported. Whoever starts the program may trust further packages, their own environment's say:
UVA_PLUGINS=my_package,another. No configuration or checkpoint can add to that list.
"""

import dataclasses
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf

PACKAGE = "unified_video_action"
T = TypeVar("T")
MOVED = {  # classes that configurations and checkpoints of earlier versions name; below the package
    "dataset.lerobot.LeRobotSource": "dataset.formats.lerobot.LeRobotSource",
    "dataset.video_folder.VideoFolderSource": "dataset.formats.video_folder.VideoFolderSource",
    "dataset.umi.UmiSource": "dataset.formats.umi.UmiSource",
    "dataset.zarr_source.ZarrSource": "dataset.formats.zarr.ZarrSource",
    "dataset.robomimic.RobomimicSource": "dataset.formats.hdf5.RobomimicSource",
    "dataset.libero.LiberoSource": "dataset.formats.hdf5.LiberoSource",
    "dataset.window_transforms.StartNoise": "dataset.transforms.StartNoise",
    "dataset.window_transforms.HandWindows": "dataset.transforms.EndEffectorWindows",
    "dataset.transforms.HandWindows": "dataset.transforms.EndEffectorWindows",
}
PLUGINS = "UVA_PLUGINS"  # environment variable: further packages or modules, separated by commas


def trusted_packages() -> tuple[str, ...]:
    """This package, and those that the user named in UVA_PLUGINS. Raises ValueError for a name there that is none of a
    package, or that is the standard library's: it can do anything."""
    plugins = [name.strip() for name in os.environ.get(PLUGINS, "").split(",") if name.strip()]
    for name in plugins:
        if not all(part.isidentifier() for part in name.split(".")) or name.split(".")[0] in sys.stdlib_module_names:
            raise ValueError(f"{PLUGINS}: {name!r} is refused; name packages of your own, such as {PLUGINS}=my_package")
    return PACKAGE, *plugins


def resolve_class(target: Any, interface: type, where: str = "config") -> type:
    """The class that a dotted path in a trusted package names, where a configuration expects `interface`.

    Raises ValueError for one outside those packages, one that does not exist, and no concrete subclass of `interface`.
    """
    where, trusted = f"{where}._target_", trusted_packages()
    if not isinstance(target, str) or not target.startswith(tuple(f"{package}." for package in trusted)):
        raise ValueError(
            f"{where}: {target!r} is refused; a configuration may build {'.*, '.join(trusted)}.* only. If "
            f"this is code of yours, name its package when you start the program: {PLUGINS}=my_package"
        )
    below = target.removeprefix(f"{PACKAGE}.")
    target = f"{PACKAGE}.{MOVED[below]}" if below in MOVED else target
    module_name, _, attribute = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a missing third-party package is its own, clear message
        hint = "" if module_name.startswith(PACKAGE) else "; is its folder in PYTHONPATH, or the package installed?"
        raise ValueError(f"{where}: no module {error.name!r}{hint}") from error
    found = getattr(module, attribute, None)
    if getattr(found, "__module__", None) != module_name:
        raise ValueError(f"{where}: {module_name!r} defines no {attribute!r}")
    if not inspect.isclass(found) or not issubclass(found, interface) or inspect.isabstract(found):
        raise ValueError(f"{where}: {target!r} is refused; a class derived from {_name(interface)} is needed here")
    return found


def check_node(node: Any, interface: type, where: str = "config", given: Iterable[str] = ()) -> type:
    """Check a configuration node and all nodes in it, building nothing; return the class that it names.

    Args:
        node: mapping with `_target_` (a dotted path in a trusted package) and the constructor's arguments. Arguments
            may be nodes too, or hold some in lists and mappings, where the constructor's type hints name a class.
        where: name of the node in the configuration, for messages. given: arguments that the node need not have.

    Raises:
        ValueError: no mapping with `_target_`, a refused target, or an argument that is unknown or missing.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ValueError(f"{where}: expected a mapping with _target_, got {node!r}")
    target = resolve_class(node["_target_"], interface, where)
    known = inspect.signature(target).parameters
    for key in node.keys() - {"_target_"}:
        _require_known(key, target, known, where)
        for path, inner in _nodes(node[key], f"{where}.{key}"):
            interfaces = _interfaces(target, key)
            matching = [each for each in interfaces if _fits(inner["_target_"], each, path)]
            if not matching:
                names = " or ".join(map(_name, interfaces))
                needed = f"a class derived from {names} is needed here" if names else "no object is expected here"
                raise ValueError(f"{path}._target_: {inner['_target_']!r} is refused; {needed}")
            check_node(inner, matching[0], path)
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in node and key not in given:
            raise ValueError(f"{where}.{key}: {target.__name__} needs a value for it")
    return target


def instantiate(node: Any, interface: type[T], where: str = "config", **extra: Any) -> T:
    """Build the object that a configuration node describes, once all of it has been checked (see `check_node`).

    `extra` are further arguments; they win over the node's.
    """
    if isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.to_container(node, resolve=True)
    if isinstance(node, Mapping):
        node = {key: value for key, value in node.items() if key not in extra}
    target = check_node(node, interface, where, extra)
    for key in extra:
        _require_known(key, target, inspect.signature(target).parameters, where)
    return target(**{key: _build(value) for key, value in node.items() if key != "_target_"}, **extra)


def _build(value: Any) -> Any:
    if isinstance(value, Mapping):
        built = {key: _build(item) for key, item in value.items() if key != "_target_"}
        return resolve_class(value["_target_"], object)(**built) if "_target_" in value else built
    return [_build(item) for item in value] if isinstance(value, list) else value


def _nodes(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The outermost nodes in a value, with their keys."""
    if isinstance(value, Mapping) and "_target_" in value:
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _nodes(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _nodes(item, f"{where}[{index}]")


def _interfaces(target: type, argument: str) -> list[type]:
    """Classes of trusted packages in the type hint of a constructor's argument."""
    roots = {package.split(".")[0] for package in trusted_packages()}

    def classes(hint: Any) -> Iterator[type]:
        inner = typing.get_args(hint)
        for each in inner:
            yield from classes(each)
        if not inner and inspect.isclass(hint) and hint.__module__.split(".")[0] in roots:
            yield hint

    return list(classes(typing.get_type_hints(target.__init__).get(argument)))


def _fits(target: Any, interface: type, where: str) -> bool:
    try:
        return bool(resolve_class(target, interface, where))
    except ValueError:
        return False


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _require_known(key: str, kind: type, known: Mapping[str, Any], where: str) -> None:
    if key not in known:
        raise ValueError(f"{where}.{key}: {kind.__name__} has no such field; it has {', '.join(known)}")


def build_dataclass(kind: type, node: Any, where: str) -> Any:
    """Fill a dataclass from a plain mapping, and its fields that are dataclasses from nested mappings.

    Raises:
        ValueError: an unknown key, a missing field, or a value the dataclass rejects, named by its key.
    """
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node, resolve=True)
    if not isinstance(node, dict):
        raise ValueError(f"{where}: expected a mapping with the fields of {kind.__name__}, got {node!r}")
    types, values = typing.get_type_hints(kind), {}
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key, value in node.items():
        _require_known(key, kind, known, where)
        wanted = types[key]
        nested = [each for each in (wanted, *typing.get_args(wanted)) if dataclasses.is_dataclass(each)]
        if nested and isinstance(value, dict):
            value = build_dataclass(nested[0], value, f"{where}.{key}")
        elif wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif wanted in (int, float, str, bool) and not isinstance(value, wanted):
            raise ValueError(f"{where}.{key}: expected {wanted.__name__}, got {value!r}")
        values[key] = value
    for name, field in known.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in values and not optional:
            raise ValueError(f"{where}.{name}: {kind.__name__} needs a value for it")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
