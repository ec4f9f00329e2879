"""A dataset of several sources of any kind, each with its share of the training samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from unified_video_action.dataset.augmentation import VideoAugmentation
from unified_video_action.dataset.sequence import WindowOptions
from unified_video_action.dataset.tables import Table
from unified_video_action.dataset.transforms import EndEffectorWindows, WindowTransform
from unified_video_action.dataset.window_dataset import WindowDataset
from unified_video_action.poses import EndEffectorSpec
from unified_video_action.spec import Horizon


@dataclass(frozen=True)
class Wanted:
    """What a task reads, by the names of its shape_meta."""

    cameras: tuple[str, ...]
    low_dim: tuple[str, ...]
    action_dim: int
    auxiliary: bool = False


@dataclass(frozen=True)
class Source(ABC):
    """One source of recordings, as a configuration names it."""

    path: str  # file, folder or fsspec URL; ~ and environment variables are expanded
    weight: float | None = field(default=None, kw_only=True)  # share of the training samples; None: by its size
    val_ratio: float | None = field(default=None, kw_only=True)  # share of its episodes held out; None: the data set's

    def __post_init__(self) -> None:
        if not self.path or self.path == "???":
            raise ValueError(f"{type(self).__name__} has no path: say where its recordings are")
        if self.weight is not None and not self.weight > 0:
            raise ValueError(f"source {self.path}: weight={self.weight} must be positive, or null")

    @abstractmethod
    def tables(self, wanted: Wanted) -> list[Table]:
        """Open it: the cameras, states and actions that are wanted, under the task's names.

        Raises:
            FileNotFoundError: nothing is there. StoreError: it is damaged, or lacks what is wanted.
        """

    def require(self, wanted: Wanted, hint: str = "", **offered: Collection[str]) -> None:
        """Raise ValueError, with a hint, for wanted `cameras` or `low_dim` that are not among those offered."""
        for part, names in offered.items():
            for name in getattr(wanted, part):
                if name not in names:
                    raise ValueError(
                        f"source {self.path}: the task reads {name!r}, but its {part} are "
                        f"{', '.join(names) or 'none'}{hint and '; ' + hint}"
                    )


@dataclass(frozen=True)
class StoreSource(Source):
    """A source whose format says what its actions are."""

    has_action: bool = field(default=True, kw_only=True)  # False: a video to learn from; actions are not read
    has_low_dim: bool = field(default=True, kw_only=True)  # False: nor are states


class MixtureDataset(WindowDataset):
    """Windows of every source; sources may be of different kinds, and may lack actions.

    Args:
        sources: one, or several in a list or by name, such as `LeRobotSource` or `VideoFolderSource`.
        wanted: what their tables are to hold.
        end_effector: how recorded poses become the task's states and actions; the last of the transforms.
        Others as in `WindowOptions` and config/dataset/mixture.yaml.
    """

    def __init__(
        self,
        sources: Source | Sequence[Source] | Mapping[str, Source] | None,
        wanted: Wanted,
        horizon: Horizon,
        val_ratio: float = 0.02,
        split_seed: int = 42,
        max_train_episodes: int | None = None,
        pad_before: int | None = 1,
        pad_after: int | None = 7,
        augmentation: bool | VideoAugmentation = False,
        raw_dims: Mapping[str, Sequence[int]] | None = None,
        low_dim_steps: int | None = None,
        history_actions: bool = False,
        future_low_dim: bool | Sequence[str] = False,
        history_frequency: str = "fixed",
        down_sample: int = 1,
        latency: Mapping[str, float] | None = None,
        transforms: Sequence[WindowTransform] | None = None,
        end_effector: EndEffectorSpec | None = None,
        normalizer: str = "limits",
    ) -> None:
        sources = [sources] if isinstance(sources, Source) else sources
        sources = list(sources.values() if isinstance(sources, Mapping) else sources or ())
        if not sources:
            raise ValueError("task.dataset.sources is empty: name at least one source")
        for source in sources:
            if not isinstance(source, Source):
                raise ValueError(f"task.dataset.sources: {source!r} is not a source; give a mapping with its _target_")
        if isinstance(augmentation, bool):
            augmentation = VideoAugmentation() if augmentation else None
        options = WindowOptions(
            horizon=horizon,
            pad_before=pad_before,
            pad_after=pad_after,
            low_dim_steps=low_dim_steps,
            history_actions=history_actions,
            future_low_dim=future_low_dim,
            history_frequency=history_frequency,
            augmentation=augmentation,
            down_sample=down_sample,
            latency=latency or {},
            transforms=(*(transforms or ()), *([] if end_effector is None else [EndEffectorWindows(end_effector)])),
        )
        plain = replace(wanted, low_dim=(), auxiliary=False)
        asked = [plain if isinstance(source, StoreSource) and not source.has_low_dim else wanted for source in sources]
        tables = [table for source, of_it in zip(sources, asked) for table in _tables(source, of_it)]
        if end_effector is not None:
            _require_states(tables)
        super().__init__(
            tables, wanted.action_dim, options, val_ratio, split_seed, max_train_episodes, raw_dims, normalizer
        )


def _tables(source: Source, wanted: Wanted) -> list[Table]:
    """A source's tables with what it says of them all; they share its weight by their sizes."""
    tables, weight = source.tables(wanted), source.weight
    rows = sum(map(len, tables))
    weights = [None if weight is None else weight * len(table) / rows for table in tables]
    return [replace(table, weight=own, val_ratio=source.val_ratio) for table, own in zip(tables, weights, strict=True)]


def _require_states(tables: Sequence[Table]) -> None:
    """Raise ValueError where an end effector's states are needed and there are none."""
    for table in tables:
        if table.action is not None and not table.low_dim:
            raise ValueError(
                f"source {table.store.location}: task.end_effector makes actions of states, which has_low_dim: false "
                "leaves out; set has_action: false as well, or has_low_dim: true"
            )
    if not any(table.low_dim for table in tables):
        raise ValueError("task.end_effector makes states and actions of recorded poses, but no source has states")
