"""What stands between a dataset or a robot and the policy: names, a batch axis, the device. No normalisation."""

from __future__ import annotations

from typing import Any

from lerobot.policies.act.processor_act import make_act_pre_post_processors

from lerobot_policy_uva.configuration_uva import UvaConfig


def make_uva_pre_post_processors(config: UvaConfig, dataset_stats: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """LeRobot's usual pair, which is ACT's; values pass as they are, since `config.normalization_mapping` says identity
    for all."""
    return make_act_pre_post_processors(config, dataset_stats)
