"""Demonstrations of PushT-M by PushT's scripted expert, one episode per attempt number."""

from __future__ import annotations

from dataclasses import dataclass, field

from unified_video_action.env.pusht import collect


@dataclass(frozen=True)
class Collector(collect.Collector):
    """PushT's collector, with another goal pose in every episode."""

    goal: str = field(default="random", init=False)
