"""What the paper's published code computes, computed by the fast path (see tests/golden/README.md)."""

import torch
from safetensors.torch import load_file

from tests.inference.test_session import SmallCodec
from tests.reseed import GOLDEN, MODEL_SEED, reseed
from unified_video_action.compat.published import infer_spec
from unified_video_action.compat.reference_names import load_reference
from unified_video_action.compat.tensors import shapes_of
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.inference.engine import Engine
from unified_video_action.model.config import ModelConfig
from unified_video_action.model.inputs import ModelInputs
from unified_video_action.model.uva import UVA
from unified_video_action.policy.base import ObservationSpec
from unified_video_action.policy.config import PolicyConfig
from unified_video_action.policy.unified_video_action_policy import UnifiedVideoActionPolicy

ABSOLUTE = 1e-4
ROWS = slice(None, None, 31)  # of the joint latent that are kept


def policy_of(name: str, sampler: str) -> UnifiedVideoActionPolicy:
    state = reseed(name, MODEL_SEED)
    model = UVA(infer_spec(shapes_of(state)), ModelConfig()).eval()
    load_reference(model, state, f"{name}_keys.json")
    normalizer = Normalizer.identity({"action": model.spec.action_dim})
    return UnifiedVideoActionPolicy(
        model, SmallCodec(), normalizer, ObservationSpec("image"), PolicyConfig(sampler=sampler)
    ).eval()


def test_joint_latent_and_actions() -> None:
    golden, policy = load_file(GOLDEN / "pusht.safetensors"), policy_of("pusht", "ancestral100")
    inputs = ModelInputs(golden["inputs/cond"])
    for steps in (16, 100):
        engine = Engine(policy, sampler=f"ancestral{steps}")
        if steps == 16:
            z = engine.joint_latent(inputs)
            assert (z[:, ROWS] - golden["z_policy"].reshape(z[:, ROWS].shape)).abs().max() < ABSOLUTE
        generator = torch.Generator().manual_seed(0)
        noise = engine.draw_noise(policy.model.action_head, engine.samplers[0], 16, [generator])
        actions = engine.denoise_actions(z, noise)
        assert (actions - golden[f"policy{steps}"].reshape(actions.shape)).abs().max() < ABSOLUTE


def test_a_model_with_language() -> None:
    golden, policy = load_file(GOLDEN / "libero10.safetensors"), policy_of("libero10", "ancestral16")
    engine = Engine(policy)
    text = engine.instruction(golden["inputs/text_latents"][0]).unsqueeze(0)
    made = engine.sample(ModelInputs(golden["inputs/cond"], text=text), [torch.Generator().manual_seed(0)])
    torch.testing.assert_close(made.actions, golden["policy16"].reshape(made.actions.shape), atol=ABSOLUTE, rtol=0)
