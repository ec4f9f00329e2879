"""Long work in parts with time limits, each of which is a few commands; what is done is done once.

A part that fails or takes too long is recorded, and the next begins.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified_video_action.files import ROOT, written

log = logging.getLogger(__name__)

GRACE = 3.0  # seconds for a command to end in, once its time is up
LEAST = 5.0  # seconds without which no part is begun
LIMIT = 3.0  # a part may take so many times what it should, if there is time
START = 12.0  # seconds that every part needs, however small its work
PACKED = 14e6  # bytes of files that are packed together, before compression
SUFFIXES = {".json", ".jsonl", ".txt", ".yaml", ".md", ".html", ".png", ".svg", ".webp", ".mp4", ".xml"}  # of those


class NotHere(Exception):
    """A part that cannot be done on this machine, or not yet; the message says why."""


@dataclass(frozen=True)
class Command:
    """Arguments of Python: a script of this project and its own."""

    words: tuple[str, ...]
    makes: Path | None = None  # a file that says that it is done
    grace: float = GRACE

    def __str__(self) -> str:
        return f"python {shlex.join(self.words)}"

    def run(self, seconds: float, environment: Mapping[str, str], output: Path) -> int | None:
        """Run it with its output appended to a file: its exit status, None if its time was up."""
        grace = min(self.grace, seconds / 2)
        with output.open("a") as file:
            file.write(f"\n$ {self}\n")
            file.flush()
            command, to = [sys.executable, *self.words], {"stdout": file, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, cwd=ROOT, env=dict(environment), start_new_session=True, **to)
            try:
                return process.wait(seconds - grace)
            except subprocess.TimeoutExpired:
                return None
            finally:
                _end(process, grace)


@dataclass(frozen=True)
class Part:
    """Something to do. What `figures` returns is kept in the results."""

    name: str
    about: str
    minutes: float  # kept free for it; a part with 0 gets all that the parts after it do not need
    commands: Callable[[float], list[Command]]  # given the minutes until its limit; may raise NotHere
    figures: Callable[[], Any] = lambda: None
    needs: tuple[str, ...] = ()  # parts whose results it uses: when they are done again, it is too


class Parts:
    """Does parts, in order, within a time. Results are in folder/results.json, whole after every part.

    Args:
        folder: of results and logs; what is recorded there as done is not done again.
        environment: of the commands.
    """

    def __init__(self, parts: Sequence[Part], folder: Path, environment: Mapping[str, str]) -> None:
        self.parts, self.folder, self.environment = parts, folder, environment
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self.records: dict[str, dict[str, Any]] = read_json(folder / "results.json")

    def do(self, wanted: Sequence[str], deadline: float, scale: float, after: Callable[[], None]) -> None:
        """Do the parts of these names that are not done, or not with what is new.

        Args:
            deadline: of time.monotonic().
            scale: of the parts' minutes.
            after: called after each part.
        """
        todo: list[Part] = []
        for part in (part for part in self.parts if part.name in wanted):
            if not self._done(part) or any(each.name in part.needs for each in todo):
                todo.append(part)
        for number, part in enumerate(todo):
            left = deadline - time.monotonic()
            own, *later = (max(60 * scale * each.minutes, START) for each in todo[number:])
            seconds = min(left, max(left - sum(later), own))
            seconds = min(seconds, LIMIT * own) if part.minutes else seconds
            if seconds < LEAST:
                continue
            log.info("%s: %s, up to %.0f s", part.name, part.about, seconds)
            self.records[part.name] = record = self._do(part, seconds)
            log.info("%s: %s after %.0f s %s", part.name, record["state"], record["seconds"], record["reason"])
            with written(self.folder / "results.json") as part_of_it:
                part_of_it.write_text(json.dumps(self.records, indent=2) + "\n")
            after()

    def log_owed(self) -> None:
        """Say which parts are not done, and how to do them by hand."""
        owed = [part for part in self.parts if not self._done(part)]
        log.info("\nResults: %s", self.folder / "results.json")
        log.info("Still owed: %s", ", ".join(part.name for part in owed) or "none of these parts")
        for part in owed:
            record = self.records.get(part.name, {"state": "not begun", "reason": ""})
            log.info("  %s: %s, %s %s", part.name, part.about, record["state"], record["reason"])
            for command in record.get("commands", []):
                log.info("    %s", command)

    def _done(self, part: Part) -> bool:
        return self.records.get(part.name, {}).get("state") == "done"

    def _do(self, part: Part, seconds: float) -> dict[str, Any]:
        """Do a part within its limit: its record."""
        began, output = time.monotonic(), self.folder / "logs" / f"{part.name}.txt"
        record: dict[str, Any] = {"state": "done", "reason": ""}
        try:
            commands = part.commands(seconds / 60)
            record["commands"] = list(map(str, commands))
            for command in commands:
                if command.makes and command.makes.is_file():
                    continue
                status = command.run(max(1.0, seconds - (time.monotonic() - began)), self.environment, output)
                if status:
                    last = output.read_text(errors="replace").strip().replace("\r", "\n").splitlines()[-1][:300]
                    record |= {"state": "failed", "reason": f"(exit status {status}) {last}"}
                elif status is None:
                    record["state"] = "out of time"
                if record["state"] != "done":
                    break  # what follows may build on it
            record["figures"] = part.figures()
        except NotHere as error:
            record |= {"state": "not here", "reason": f"({error})"}
        except Exception as error:  # the other parts must not suffer
            if record["state"] == "done":
                record |= {"state": "failed", "reason": f"({error!r})"}
        return record | {"seconds": round(time.monotonic() - began, 1)}


def pack(folder: Path, target: Path, left_out: set[str], pieces: str) -> None:
    """Copy what should be kept of `folder` into `target`: files like `pieces`, and all small ones as results.tar.gz.

    Small files in folders named in `left_out` are not kept, and no more than PACKED bytes, the largest files last.
    """
    files = [path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    files = [path for path in files if not left_out.intersection(path.relative_to(folder).parts)]
    bytes_left = PACKED
    with written(target / "results.tar.gz") as partial, tarfile.open(partial, "w:gz") as archive:
        for path in sorted(files, key=lambda path: path.stat().st_size):
            bytes_left -= path.stat().st_size
            if bytes_left < 0:
                log.info("%s, and what is larger, is not packed", path)
                break
            archive.add(path, path.relative_to(folder))
    for path in folder.glob(pieces):
        if not (target / path.name).is_file() or (target / path.name).stat().st_mtime < path.stat().st_mtime:
            shutil.copy2(path, target / path.name)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _end(process: subprocess.Popen, seconds: float) -> None:
    """End a command that may still run, and whatever it has started; all of them may save something first."""
    until = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            while time.monotonic() < until:
                process.poll()  # one that has ended and was not waited for counts as a member of its group
                os.killpg(process.pid, 0)
                time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
