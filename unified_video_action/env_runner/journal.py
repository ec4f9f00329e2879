"""Finished episodes on disk while an evaluation runs, so that one that was interrupted goes on where it stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unified_video_action.env_runner.episode import Episode
from unified_video_action.env_runner.results import write_json

log = logging.getLogger(__name__)
SETTINGS = "journal.json"  # what the episodes depend on
EPISODES = "journal.{rank}.jsonl"  # a finished episode a line, of each process that evaluates


class Journal:
    """Finished episodes of one evaluation, in its output folder.

    Args:
        folder: of the evaluation.
        settings: all that an episode depends on besides its seed: weights, sampler, simulator, length.
        rank: number of this process.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], rank: int = 0) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        self._own = folder / EPISODES.format(rank=rank)

    def begin(self) -> None:
        """Write down what the episodes depend on; the first process does."""
        write_json(self.folder / SETTINGS, self.settings)

    def add(self, episode: Episode) -> None:
        """Keep a finished episode; a crashed one is not, so that it is run again."""
        if episode.crashed is None:
            with self._own.open("a", encoding="utf-8") as file:
                # The new line before it ends one that was cut off in the middle.
                file.write("\n" + json.dumps(asdict(episode)) + "\n")

    def finished(self) -> dict[int, Episode]:
        """Episodes of the earlier part of the run, by seed; a damaged line does not count.

        Raises:
            ValueError: that run was of other weights or settings, which are named. FileNotFoundError: no such run.
        """
        path = self.folder / SETTINGS
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: there is no evaluation to continue in {self.folder}")
        before = json.loads(path.read_text())
        changed = sorted(
            key for key in before.keys() | self.settings.keys() if before.get(key) != self.settings.get(key)
        )
        if changed:
            told = "; ".join(f"{key} was {before.get(key)!r}, is {self.settings.get(key)!r}" for key in changed)
            raise ValueError(f"{self.folder} holds another evaluation and cannot be continued: {told}")
        episodes, torn = {}, 0
        for file in sorted(self.folder.glob(EPISODES.format(rank="*"))):
            for line in filter(None, file.read_text(encoding="utf-8", errors="replace").splitlines()):
                try:
                    episode = Episode(**json.loads(line))
                except (ValueError, TypeError):
                    torn += 1
                else:
                    episodes[episode.seed] = episode
        if torn:
            log.warning("%s: %d lines of the journal are damaged; their episodes are run again", self.folder, torn)
        return episodes

    def remove(self) -> None:
        """Delete it once results.json holds everything."""
        for file in (*self.folder.glob(EPISODES.format(rank="*")), self.folder / SETTINGS):
            file.unlink(missing_ok=True)


def left(seeds: Sequence[int], finished: Mapping[int, Episode]) -> list[int]:
    """Seeds that are still to be run, in order."""
    return [seed for seed in seeds if seed not in finished]
