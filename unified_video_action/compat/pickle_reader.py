"""Pickles read as data, with bounds on what they can cost.

A pickle is a program: unpickled the usual way it may call anything its author liked. Here all its instructions are
looked through before the first is followed, and a name that it mentions stands for a few lines of ours that build plain
data; any other is refused. Bounded are its instructions, what the builders copy, and the depth and size of what comes
out, where a value that is shared counts as often as it is referred to.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import NoneType
from typing import Any

COPIED = 100_000_000  # bytes, most that the builders of one pickle copy beside its own length
VALUES = 1_000_000  # most in what a pickle holds; 64 letters or bytes count as one
DEPTH = 100  # of containers in containers
NUMBER_BITS = 512  # of a whole number
SCALARS = (str, bytes, int, float, NoneType)
CONTAINERS = (list, tuple, dict, set, frozenset)

# Instructions that plain data does not need: calls by other ways than the one that is checked, and buffers outside.
CODE = frozenset({"INST", "OBJ", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER", "NEWOBJ_EX"})
DAMAGE = (
    *(ValueError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, EOFError, LookupError, TypeError),
    *(AttributeError, NotImplementedError, OverflowError, MemoryError, RecursionError),
)


class UnsafePickleError(ValueError):
    """The pickle asks for something that is not on the list. `what` names it."""

    def __init__(self, what: str, source: str = "pickle") -> None:
        self.what = what
        super().__init__(
            f"{source}: refused, because it asks for {what}, which plain data does not need. Nothing of it was run. "
            "If you trust its author, ask for weights as safetensors."
        )


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Whatever reading damaged or hostile data raises becomes a ValueError that names the source."""
    try:
        yield
    except UnsafePickleError as error:
        raise UnsafePickleError(error.what, source) from None
    except DAMAGE as error:
        said = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{source}: damaged, or more than plain data: {said[:300]}") from error


@dataclass(frozen=True)
class Allowed:
    """A name on the list and what replaces it."""

    name: str
    make: Callable[..., Any] | None = None  # None: may be mentioned (as a type annotation), not built
    value: Any = None

    def build(self, *arguments: Any) -> Any:
        if self.make is None:
            raise UnsafePickleError(f"a call of {self.name}")
        return self.make(*arguments)


@dataclass
class Built:
    """An object whose state arrives after it is made."""

    state: Any = None

    def set_state(self, state: Any) -> None:
        self.state = state

    def content(self) -> Any:
        return self.state


def entries(items: Any) -> Iterable[Any]:
    """What a builder of containers copies; ValueError for what yields more than it holds, as tensors and texts do."""
    if not isinstance(items, CONTAINERS):
        raise ValueError(f"a container made of a {type(items).__name__}")
    return items


def pairs(items: Iterable[Any], keys: tuple[type, ...] = SCALARS) -> dict:
    """A dict of (key, value); keys are plain values whose hash is quickly computed and hardly ever the same."""
    made = list(items.items() if isinstance(items, dict) else items)
    check_keys([key for key, _ in made], keys)
    return dict(made)


def check_keys(found: Iterable[Any], kinds: tuple[type, ...] = SCALARS) -> None:
    for key in found:
        if not isinstance(key, kinds) or (isinstance(key, int) and abs(key) >= 2**60):
            raise ValueError("a dict or set whose keys are not texts" + (" or numbers" if len(kinds) > 1 else ""))


class Reader(pickle._Unpickler):
    """Reads pickles; what each kind of file may have is in its subclasses."""

    names: Mapping[str, Allowed] = {}
    refused = CODE
    most = 0  # instructions
    keys: tuple[type, ...] = SCALARS  # of a dict
    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")
        self.file, self.copied = file, 0

    def load(self) -> Any:
        """What is on top when the pickle stops; `content` makes data of it.

        Raises:
            UnsafePickleError: it names something that is not on the list, or uses an instruction that is not.
            DAMAGE: it is damaged, or larger than is allowed.
        """
        start = self.file.tell()
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self.file)):  # looked at, not followed
            if opcode.name in self.refused:
                raise UnsafePickleError(f"pickle instruction {opcode.name}")
            if count >= self.most:
                raise ValueError(f"more than {self.most} instructions")
            if type(argument) is int and argument.bit_length() > NUMBER_BITS:
                raise ValueError(f"a whole number of {argument.bit_length()} bits")
        self.copied -= self.file.tell() - start
        self.file.seek(start)
        return super().load()

    def content(self) -> Any:
        return plain(self.load())

    def find_class(self, module: str, name: str) -> Allowed:
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))  # Python 2's
        if (found := self.names.get(f"{module}.{name}")) is None:
            raise UnsafePickleError(f"{module}.{name}"[:100])
        return found

    def persistent_load(self, reference: Any) -> Any:
        raise UnsafePickleError("a reference to data outside the pickle")

    def load_frozenset(self) -> None:
        self.metastack[-1].append(set())
        self.load_additems()
        self.stack[-1] = frozenset(self.stack[-1])

    def load_additems(self) -> None:
        items = self.pop_mark()
        check_keys(items, self.keys)
        _require(self.stack[-1], set).update(items)

    def load_dict(self) -> None:
        self.metastack[-1].append({})
        self.load_setitems()

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _require(self.stack[-1], dict).update(pairs([(key, value)], self.keys))

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _require(self.stack[-1], dict).update(pairs(zip(items[::2], items[1::2], strict=True), self.keys))

    def load_reduce(self) -> None:
        arguments, function = _require(self.stack.pop(), tuple), self.stack.pop()
        self.copied += 8 * len(arguments) + sum(map(_copied, arguments))
        if self.copied > COPIED:
            raise ValueError(f"its objects take {COPIED} bytes more than the pickle itself")
        self.append(_require(function, Allowed).build(*arguments))

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Built):
            target.set_state(state)
        elif not (isinstance(target, dict) and isinstance(state, dict)):  # state_dict()'s `_metadata` is not needed
            raise UnsafePickleError(f"state set on a {type(target).__name__}")

    for _code, _method in (
        *((pickle.DICT, load_dict), (pickle.SETITEM, load_setitem), (pickle.SETITEMS, load_setitems)),
        *((pickle.ADDITEMS, load_additems), (pickle.FROZENSET, load_frozenset), (pickle.BUILD, load_build)),
        *((pickle.REDUCE, load_reduce), (pickle.NEWOBJ, load_reduce)),
    ):
        dispatch[_code[0]] = _method


def _require(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"expected a {kind.__name__}, found a {type(value).__name__}")
    return value


def _copied(value: Any) -> int:
    """Bytes that a builder may copy of an argument."""
    if isinstance(value, str | bytes | bytearray | memoryview):
        return len(value)
    return 8 * len(value) if isinstance(value, CONTAINERS) else 0


_UNFINISHED = (None, 0, 0)


def plain(value: Any) -> Any:
    """Replace what stands for an object by its content, all the way down; what was shared stays shared.

    Raises:
        ValueError: a container that holds itself, or more than VALUES values or DEPTH levels of containers.
    """
    done: dict[int, tuple[Any, int, int]] = {}  # of an object: what it becomes, how many values, how deep

    def convert(item: Any) -> tuple[Any, int, int]:
        if isinstance(item, str | bytes | memoryview):
            return item, 1 + len(item) // 64, 0
        if not isinstance(item, Built | Allowed | dict | list | tuple | set | frozenset):
            return item, 1, 0
        if done.get(id(item)) is _UNFINISHED:
            raise ValueError("a container that holds itself")
        if id(item) not in done:
            done[id(item)] = _UNFINISHED
            done[id(item)] = found = replace(item)
            if found[1] > VALUES or found[2] > DEPTH:
                raise ValueError(f"it holds more than {VALUES} values, or containers more than {DEPTH} deep")
        return done[id(item)]

    def replace(item: Any) -> tuple[Any, int, int]:
        if isinstance(item, Built):
            return convert(item.content())
        if isinstance(item, Allowed):
            return (item.name if item.value is None else item.value), 1, 0
        parts = [convert(entry) for entry in (item.values() if isinstance(item, dict) else item)]
        values = [part[0] for part in parts]
        made = dict(zip(item, values)) if isinstance(item, dict) else type(item)(values)
        parts += map(convert, item) if isinstance(item, dict) else ()
        return made, 1 + sum(part[1] for part in parts), 1 + max((part[2] for part in parts), default=0)

    try:
        return convert(value)[0]
    except RecursionError as error:
        raise ValueError(f"it holds containers more than {DEPTH} deep") from error
