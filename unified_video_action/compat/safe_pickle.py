"""Reading foreign `.ckpt` files as data.

A pickle is a program: unpickled the usual way it may call anything its author liked. Here its instructions are read by
a small interpreter of our own, which imports nothing and calls nothing that the file names. Names it may mention are
on a list; each stands for a few lines in `pickle_globals.py` that build plain data. Any other name is refused.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from unified_video_action.compat.pickle_globals import ALLOWED, Allowed, Built, UnsafePickleError, plain
from unified_video_action.compat.torch_archive import DAMAGE, LegacyStorages, ZipStorages, is_zip

MARK = object()

CONSTANTS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
}
LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip


class Reader:
    """One pickle, interpreted. `persistent` resolves the references that torch makes to tensor storages."""

    def __init__(self, persistent: Callable[[Any], Any] | None = None) -> None:
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def load(self, file: BinaryIO) -> Any:
        """Read up to and including the pickle's STOP.

        Raises:
            UnsafePickleError: it names something that is not on the list, or uses an instruction that is not.
            ValueError: it is damaged.
        """
        try:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.step(opcode.name, argument)
        except UnsafePickleError:
            raise
        except ValueError as error:
            raise ValueError(f"damaged pickle: {error}") from error
        except DAMAGE as error:
            raise ValueError(f"damaged pickle: {error!r}") from error
        raise ValueError("damaged pickle: it has no end")

    def step(self, name: str, argument: Any) -> None:
        if name in LITERALS:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif handler := getattr(self, "do_" + name.lower(), None):
            handler(argument)
        elif name not in ("PROTO", "FRAME"):
            raise UnsafePickleError(f"pickle instruction {name}")

    def since_mark(self) -> list[Any]:
        start = next((i for i in reversed(range(len(self.stack))) if self.stack[i] is MARK), None)
        if start is None:
            raise ValueError("no mark on the stack")
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    # --- stack and memo ---

    def do_mark(self, _: None) -> None:
        self.stack.append(MARK)

    def do_pop(self, _: None) -> None:
        self.stack.pop()

    def do_pop_mark(self, _: None) -> None:
        self.since_mark()

    def do_dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def do_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def do_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    do_binput = do_long_binput = do_put
    do_binget = do_long_binget = do_get

    # --- containers ---

    def do_empty_list(self, _: None) -> None:
        self.stack.append([])

    def do_empty_dict(self, _: None) -> None:
        self.stack.append({})

    def do_empty_set(self, _: None) -> None:
        self.stack.append(set())

    def do_list(self, _: None) -> None:
        self.stack.append(self.since_mark())

    def do_tuple(self, _: None) -> None:
        self.stack.append(tuple(self.since_mark()))

    def do_frozenset(self, _: None) -> None:
        self.stack.append(frozenset(self.since_mark()))

    def do_dict(self, _: None) -> None:
        items = self.since_mark()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def do_tuple1(self, _: None) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def do_tuple2(self, _: None) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def do_tuple3(self, _: None) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def do_append(self, _: None) -> None:
        item = self.stack.pop()
        _require(self.stack[-1], list).append(item)

    def do_appends(self, _: None) -> None:
        items = self.since_mark()
        _require(self.stack[-1], list).extend(items)

    def do_additems(self, _: None) -> None:
        items = self.since_mark()
        _require(self.stack[-1], set).update(items)

    def do_setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _require(self.stack[-1], dict)[key] = value

    def do_setitems(self, _: None) -> None:
        items = self.since_mark()
        _require(self.stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))

    # --- names, and what would be calls ---

    def do_global(self, names: str) -> None:
        self.stack.append(allowed(*names.split(" ", 1)))

    def do_stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(allowed(module, name))

    def do_reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_require(function, Allowed).build(*_require(arguments, tuple)))

    do_newobj = do_reduce

    def do_newobj_ex(self, _: None) -> None:
        if _require(self.stack.pop(), dict):
            raise UnsafePickleError("an object made with keyword arguments")
        self.do_reduce(None)

    def do_build(self, _: None) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Built):
            target.set_state(state)
        elif not (isinstance(target, dict) and isinstance(state, dict)):  # state_dict()'s `_metadata` is not needed
            raise UnsafePickleError(f"state set on a {type(target).__name__}")

    def do_binpersid(self, _: None) -> None:
        if self.persistent is None:
            raise UnsafePickleError("a reference to data outside the pickle")
        self.stack.append(self.persistent(self.stack.pop()))


def _require(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"expected a {kind.__name__}, found a {type(value).__name__}")
    return value


def allowed(module: str, name: str) -> Allowed:
    """What a global stands for, also under its Python 2 name; raises UnsafePickleError if it is not on the list."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    found = ALLOWED.get(f"{module}.{name}")
    if found is None:
        raise UnsafePickleError(f"{module}.{name}")
    return found


def loads(data: bytes) -> Any:
    """Plain data of a pickle without tensors (also dill's, as long as it holds nothing but data)."""
    return plain(Reader().load(BytesIO(data)))


def load_checkpoint(path: str | Path) -> Any:
    """Read what `torch.save` wrote, with pickle or dill, in the zip or the older format, without running any of it.

    Tensors of a zip file are mapped from the file, so those that are not touched cost no memory. OmegaConf nodes come
    back as plain dicts and lists (interpolations as the strings they were).

    Raises:
        FileNotFoundError: no such file.
        UnsafePickleError: the file wants to run or build something that is not on the list; the message names it.
        ValueError: the file is damaged or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {path}")
    try:
        if is_zip(path):
            storages = ZipStorages(path)
            return plain(Reader(storages.resolve).load(BytesIO(storages.pickle())))
        with path.open("rb") as file:
            legacy = LegacyStorages(file, lambda: Reader().load(file))
            content = Reader(legacy.resolve).load(file)
            legacy.fill()
            return plain(content)
    except UnsafePickleError as error:
        raise UnsafePickleError(error.what, path) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged, perhaps not completely downloaded ({error!r})") from error


def decode_pickles(entries: dict[str, Any]) -> dict[str, Any]:
    """The `pickles` of a published checkpoint: plain numbers and strings decoded, all else left as bytes."""
    decoded = {}
    for name, data in entries.items():
        try:
            value = loads(data)
        except ValueError:
            value = data
        decoded[name] = value if isinstance(value, int | float | str | None) else data
    return decoded
