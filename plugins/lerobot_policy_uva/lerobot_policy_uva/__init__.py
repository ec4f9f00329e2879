"""UVA as a policy of LeRobot: `--policy.type=uva` in its commands. An adapter: there is no model here."""

from lerobot_policy_uva.configuration_uva import UvaConfig as UvaConfig
from lerobot_policy_uva.modeling_uva import UvaPolicy as UvaPolicy
from lerobot_policy_uva.processor_uva import make_uva_pre_post_processors as make_uva_pre_post_processors
