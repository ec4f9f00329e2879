"""Every configuration composes, and says what it should."""

from itertools import zip_longest

import pytest
from hydra.errors import ConfigCompositionException

from tests.shrunk import CONFIG, read
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.env_runner.runner import EnvRunner
from unified_video_action.instantiate import build_dataclass, instantiate
from unified_video_action.model.task_modes import TASK_MODES
from unified_video_action.policy.build import build_policy
from unified_video_action.workspace.settings import TrainerSettings, TrainingSettings
from unified_video_action.workspace.train_unified_video_action_workspace import check_config, differences

NAMES = sorted(path.stem for path in CONFIG.glob("uva_*.yaml"))
DIFFUSION_POLICIES = sorted(path.stem for path in CONFIG.glob("dp_*.yaml"))
BEYOND_THE_PAPER = [name for name in NAMES if name == "uva_lift" or name.endswith(("_small", "_mini"))]
SIBLINGS = [name for name in BEYOND_THE_PAPER if name.startswith("uva_pusht")]  # of one recipe
GROUPS = {
    group: sorted(path.stem for path in (CONFIG / group).glob("*.yaml")) for group in ("model", "vae", "training")
}


def untrained(config: dict):
    config["vae"]["weights"] = "random"
    return build_policy(config, Normalizer.identity({"action": 2, "agent_pos": 2}))


@pytest.mark.parametrize("name", NAMES + DIFFUSION_POLICIES)
def test_every_configuration_is_accepted(name):
    config = read(name)
    check_config(config)
    training = build_dataclass(TrainingSettings, config["training"], "training")
    build_dataclass(TrainerSettings, config["trainer"], "trainer")
    assert config["name"] == name and config["output_dir"].startswith(f"outputs/{name}/")
    assert training.steps > training.schedule.warmup_steps
    if config["task"].get("env_runner"):
        runner = instantiate(
            config["task"]["env_runner"], EnvRunner, "task.env_runner", env_config=config["task"]["env"]
        )
        assert runner.action_steps == config["policy"]["action_steps"] == (4 if name in SIBLINGS else 8)


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_composes_with_every_option_of_each_group(name):
    for options in zip_longest(*GROUPS.values()):
        check_config(read(name, *(f"{group}={option}" for group, option in zip(GROUPS, options) if option)))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BEYOND_THE_PAPER])
def test_diffusion_policy_learns_every_task_of_the_paper(name):
    for option in ("diffusion_unet", "diffusion_transformer"):
        check_config(read(name, f"policy={option}"))


def test_the_preset_is_the_papers_recipe():
    config = read("uva_pusht")
    training = build_dataclass(TrainingSettings, config["training"], "training")
    assert (training.optimizer.learning_rate, training.optimizer.betas) == (1e-4, [0.9, 0.95])
    assert (training.optimizer.weight_decay, training.optimizer.clip) == (0.02, None)
    assert (training.schedule.shape, training.schedule.warmup_steps) == ("cosine", 1000)
    assert (training.ema.power, training.ema.max_decay, training.ema.decay) == (0.75, 0.9999, None)
    assert training.batch_size == 8 * config["trainer"]["micro_batch"] == 256
    policy = untrained(config)
    assert sum(p.numel() for p in policy.model.parameters()) == 261_079_156
    assert policy.codec.image_size == 256 and policy.model.spec.tokens == 1024 and policy.model.spec.proprio_dim == 0
    assert policy.config.sampler == policy.config.video_sampler == "ancestral100" and policy.config.temperature == 0.95
    for head in (policy.model.config.video_head, policy.model.config.action_head):
        assert (head.prediction, head.learned_variance, head.width, head.depth) == ("epsilon", True, 1024, 6)
    assert list(policy.model.config.mode_mix.quotas.values()) == [1.0] * 5
    masking = policy.model.config.masking
    assert (masking.mean, masking.std, masking.low, masking.high) == (1.0, 0.25, 0.7, 1.0)
    assert policy.model.config.transformer.dropout == 0.1


@pytest.mark.parametrize(
    ("option", "wanted"), [("joint", set(TASK_MODES)), ("video", {"video"}), ("action", {"policy"})]
)
def test_the_group_training_chooses_the_modes_and_nothing_else(option, wanted):
    chosen, usual = read("uva_pusht", f"training={option}"), read("uva_pusht")
    quotas = chosen["model"]["mode_mix"]["quotas"]
    assert {mode for mode, share in quotas.items() if share > 0} == wanted
    changed = differences(chosen, usual, "config")
    assert all(key.startswith("config.model.mode_mix.quotas.") for key in changed if key != "config.output_dir")


def test_a_simulator_of_ones_own_is_imported_for_rollouts_only(monkeypatch):
    monkeypatch.setenv("UVA_PLUGINS", "a_simulator_that_is_elsewhere")
    own = "task.env._target_=a_simulator_that_is_elsewhere.env.Env"
    check_config(read("uva_pusht_mini", own))  # trains
    with pytest.raises(ValueError, match="task.env._target_: no module 'a_simulator_that_is_elsewhere'"):
        check_config(read("uva_pusht_mini", own, "trainer.evaluate_every=5"))


@pytest.mark.parametrize("override", ["trainer.max_step=5", "model.transformer.width=3", "training=both", "colour=red"])
def test_a_wrong_key_does_not_compose(override):
    with pytest.raises(ConfigCompositionException):
        read("uva_pusht_mini", override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.action_head.chunk=pairs", "chunk must be rows or vector, got 'pairs'"),
        ("+vae.scale=2", "vae.scale: PatchMLP has no such field"),
        ("vae._target_=os.system", "vae._target_: 'os.system' is refused"),
        (
            "task.env._target_=unified_video_action.downloads.download",
            "derived from gymnasium.core.Env is needed",
        ),
        ("task.horizon.stride=0", "Horizon.stride must be a positive integer, got 0"),
    ],
)
def test_what_composes_but_is_wrong_is_named(override, message):
    with pytest.raises(ValueError) as caught:
        check_config(read("uva_pusht_mini", override))
    assert message in str(caught.value)
