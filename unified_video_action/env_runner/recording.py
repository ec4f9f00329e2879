"""Observations of finished episodes, kept on disk until it is known which of them become films."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unified_video_action.env_runner.episode import Episode
from unified_video_action.env_runner.worker import Observation


class Recordings:
    """One compressed file per episode under `folder`, which the caller makes and removes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, episode: Episode, observations: Sequence[Observation]) -> None:
        """Keep an episode's observations; crashed episodes are not kept."""
        if episode.crashed is None:
            stacked = {name: np.stack([observation[name] for observation in observations]) for name in observations[0]}
            np.savez_compressed(self.folder / f"{episode.seed}.npz", **stacked)  # each (steps + 1, ...)

    def load(self, seed: int) -> list[Observation]:
        """Observations of an episode: before its first step, and after each."""
        with np.load(self.folder / f"{seed}.npz", allow_pickle=False) as stored:
            stacked = {name: stored[name] for name in stored.files}
        length = len(next(iter(stacked.values())))
        return [{name: values[index] for name, values in stacked.items()} for index in range(length)]


def pick_for_films(episodes: Sequence[Episode], count: int) -> list[tuple[str, Episode]]:
    """Choose `count` completed episodes spread from the best score to the worst, each with a label.

    One is the best; two are the best and the worst; three are the best, the median and the worst.
    """
    ranked = sorted((episode for episode in episodes if episode.crashed is None), key=lambda e: (-e.score, e.seed))
    last = len(ranked) - 1
    places = sorted({int(place) for place in np.linspace(0, last, min(count, len(ranked)))}) if ranked else []
    names = {last // 2: "median", last: "worst", 0: "best"}
    return [(names.get(place, f"rank {place + 1} of {len(ranked)}"), ranked[place]) for place in places]
