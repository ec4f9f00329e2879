"""Texts from outside, and lists of names, as they may stand in a log or in an error."""

from __future__ import annotations

from collections.abc import Collection


def shown(text: object, most: int = 60) -> str:
    """One line of at most `most` characters: what is not printable is escaped, so that no text can forge a log line."""
    whole = str(text)
    line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in whole[:most])
    return line if len(line) <= most and len(whole) <= most else line[: most - 3] + "..."


def few(names: Collection[object], most: int = 6, separator: str = ", ") -> str:
    """The first of some names, and how many more there are."""
    listed = separator.join(shown(each, 100) for each in list(names)[:most]) or "none"
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")
