"""What the paper's published code computes, computed here (see tests/golden/README.md)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.reseed import GOLDEN, MODEL_SEED, VAE_SEED, reseed
from unified_video_action.compat.published import infer_spec
from unified_video_action.compat.reference_names import reference_name, to_ours
from unified_video_action.compat.tensors import shapes_of
from unified_video_action.model.config import ModelConfig
from unified_video_action.model.diffusion import draw_noise
from unified_video_action.model.inputs import ModelInputs, Visibility
from unified_video_action.model.losses import Targets
from unified_video_action.model.masking import TrainingCorruption
from unified_video_action.model.samplers import Sampler
from unified_video_action.model.task_modes import TASK_MODES, TaskMode
from unified_video_action.model.uva import UVA
from unified_video_action.vae.kl import SCALE, AutoencoderKL, read_weights

ABSOLUTE, RELATIVE, VAE_ABSOLUTE = 1e-4, 1e-4, 1e-3
ROWS = slice(None, None, 31)  # of the joint latent that are kept
PIXELS = slice(None, None, 7)  # of the decoded image
TOKENS, ACTIONS = 1024, 16
YES, NO = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
EMPTY = torch.empty(0)

Golden = dict[str, Tensor]


def close(found: Tensor, expected: Tensor, absolute: float = ABSOLUTE) -> None:
    torch.testing.assert_close(found.reshape(expected.shape), expected, atol=absolute, rtol=0)


def close_relative(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.reshape(expected.shape), expected, atol=1e-7, rtol=RELATIVE)


def build(name: str) -> UVA:
    state = reseed(name, MODEL_SEED)
    with init_empty_weights(include_buffers=False):
        model = UVA(infer_spec(shapes_of(state)), ModelConfig()).eval()
    model.load_state_dict(to_ours(state, shapes_of(model.state_dict()), f"{name}_keys.json"), assign=True)
    return model


# --- two models; the names and the tensors are those of PushT and of LIBERO-10 ----------------------------------------


@pytest.fixture(scope="module")
def pusht() -> Golden:
    return load_file(GOLDEN / "pusht.safetensors")


@pytest.fixture(scope="module")
def pusht_model() -> UVA:
    return build("pusht")


@pytest.fixture(scope="module")
def z_policy(pusht: Golden, pusht_model: UVA) -> Tensor:
    return joint_latent(pusht_model, ModelInputs(pusht["inputs/cond"]), None)


def views(inputs: ModelInputs) -> ModelInputs:
    """Of the one view that the published values have."""
    future = None if inputs.future is None else inputs.future.unsqueeze(1)
    return replace(inputs, history=inputs.history.unsqueeze(1), future=future)


@torch.no_grad()
def joint_latent(model: UVA, inputs: ModelInputs, masked: Tensor | None, sees_history: Tensor = YES) -> Tensor:
    inputs = views(inputs)
    masked = torch.ones(1, TOKENS, dtype=torch.bool) if masked is None else masked.reshape(1, TOKENS) > 0.5
    sees_actions = YES if inputs.actions is not None else NO
    return model.mar(inputs, Visibility(masked, sees_history, sees_actions, YES))


@pytest.mark.parametrize("name", ["z_policy", "z_inverse", "z_full_dynamic_partial", "z_dynamic_partial"])
def test_joint_latents(pusht: Golden, pusht_model: UVA, z_policy: Tensor, name: str) -> None:
    if name == "z_policy":
        found = z_policy
    else:
        actions = pusht["nactions"] if name == "z_dynamic_partial" else None
        inputs = ModelInputs(pusht["inputs/cond"], future=pusht["inverse_x"], actions=actions)
        inverse = name == "z_inverse"
        masked = torch.zeros(TOKENS) if inverse else pusht["mask_partial"]
        found = joint_latent(pusht_model, inputs, masked, sees_history=NO if inverse else YES)
    close(found[:, ROWS], pusht[name])


@pytest.mark.parametrize("steps", [16, 100])
def test_actions(pusht: Golden, pusht_model: UVA, z_policy: Tensor, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        noise = draw_noise((ACTIONS, 2), 1 + steps, generator, torch.device("cpu"))
        actions = pusht_model.action_head.sample_chunk(z_policy, noise, Sampler("ancestral", steps, 0.95))
    close(actions, pusht[f"policy{steps}"])


def test_video_in_two_iterations(pusht: Golden, pusht_model: UVA) -> None:
    order = np.arange(256)
    np.random.RandomState(0).shuffle(order)
    made = pusht_model.sample(
        views(ModelInputs(pusht["inputs/cond"])),
        TASK_MODES["policy_and_video"],  # the published video mode samples actions too
        sampler=Sampler("ancestral", 4, 0.95),
        iterations=2,
        generator=torch.Generator().manual_seed(0),
        order=torch.from_numpy(order).unsqueeze(0),
        resample_actions=True,
    )
    close(made.actions, pusht["video4_iter2_action4"])
    # Four steps of a network with random weights leave values up to 1e5, so agreement is relative to their size.
    close(made.frames, pusht["video4_iter2"], ABSOLUTE * float(pusht["video4_iter2"].abs().max()))


class Step:
    """One training step of one sample, with the noise and masks that the published code drew."""

    def __init__(self, model: UVA, golden: Golden, mode: TaskMode) -> None:
        self.golden, self.key, self.mode, self.model = golden, f"loss/{mode.reference_name}", mode, model
        text = golden.get("inputs/text_latents")
        self.inputs = views(ModelInputs(self["cond"], future=self["z"], actions=self["actions"], text=text))
        self.corruption = self._corruption()
        self.targets = Targets(torch.ones(1, 4, dtype=torch.bool), torch.ones(1, ACTIONS, dtype=torch.bool))

    def __getitem__(self, name: str) -> Tensor:
        return self.golden[f"{self.key}/{name}"]

    def _corruption(self) -> TrainingCorruption:
        masked = self["captured/mask"].reshape(1, TOKENS) > 0.5
        frames = self.mode.learns_frames
        return TrainingCorruption(
            sees_history=YES,
            sees_actions=NO,
            sees_text=YES,
            masked=torch.ones_like(masked) if self.mode.future == "masked" else masked,
            video_samples=torch.arange(int(frames)),
            video_rows=torch.arange(TOKENS).unsqueeze(0),
            video_t=self["captured/diffloss/t"].reshape(1, 1, 1, TOKENS) if frames else EMPTY,
            video_noise=self["captured/diffloss/noise"].reshape(1, 1, 1, TOKENS, -1) if frames else EMPTY,
            action_samples=torch.arange(1),
            action_t=self["captured/diffactloss/t"].reshape(1, 1, ACTIONS),
            action_noise=self["captured/diffactloss/noise"].reshape(1, 1, ACTIONS, -1),
            proprio_t=EMPTY,
            proprio_noise=EMPTY,
        )

    def check(self, norms: dict[str, float]) -> None:
        """Rows, losses and the gradient norms of all parameters, from one pass."""
        with (
            captured(self.model.video_heads[0], "loss") as video,
            captured(self.model.action_head, "chunk_loss") as action,
        ):
            terms = self.model.loss_terms(self.inputs, self.targets, self.corruption)
        heads = {"diffactloss": action[0]} | ({"diffloss": video[0]} if video else {})
        assert bool(video) == self.mode.learns_frames
        for head, rows in heads.items():  # squared error and bound of every row, before they are averaged
            for kind, found in zip(("mse", "vb"), rows, strict=True):
                expected = self[f"captured/{head}/{kind}"]
                close_relative(found.detach().reshape(len(expected), -1).mean(-1), expected)
        losses = {name: term.total / term.weight for name, term in terms.items()}
        close_relative(losses["action"], self["act_loss"])
        close_relative(losses.get("video", torch.zeros(())), self["video_loss"])
        loss = sum(losses.values())
        close_relative(loss, self["loss"])
        loss.backward()
        parameters = {reference_name(name): each for name, each in self.model.named_parameters()}
        found = {name: float(each.grad.norm()) for name, each in parameters.items() if each.grad is not None}
        self.model.zero_grad(set_to_none=True)
        assert not {name: norm for name, norm in found.items() if name not in norms and norm > 0}
        assert {name: found[name] for name in norms} == pytest.approx(norms, rel=RELATIVE)


@contextmanager
def captured(module: nn.Module, name: str) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What a method returns, in order."""
    kept, method = [], getattr(module, name)
    setattr(module, name, lambda *given: (kept.append(method(*given)), kept[-1])[1])
    yield kept
    delattr(module, name)


def grad_norms(name: str, mode: TaskMode) -> dict[str, float]:
    return json.loads((GOLDEN / f"{name}_grad_norms.json").read_text())[f"loss/{mode.reference_name}"]


@pytest.mark.parametrize("mode", ["policy", "policy_and_video"])
def test_losses_and_gradients(pusht: Golden, pusht_model: UVA, mode: str) -> None:
    Step(pusht_model, pusht, TASK_MODES[mode]).check(grad_norms("pusht", TASK_MODES[mode]))


def test_a_model_with_language() -> None:
    golden, model = load_file(GOLDEN / "libero10.safetensors"), build("libero10")
    made = model.sample(
        views(ModelInputs(golden["inputs/cond"], text=golden["inputs/text_latents"])),
        TASK_MODES["policy"],
        sampler=Sampler("ancestral", 16, 0.95),
        generator=torch.Generator().manual_seed(0),
    )
    close(made.actions, golden["policy16"])
    Step(model, golden, TASK_MODES["policy_and_video"]).check(grad_norms("libero10", TASK_MODES["policy_and_video"]))


# --- the VAE ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> AutoencoderKL:
    """kl-f16 loaded as users load it, from a file like MAR's kl16.ckpt."""
    path = tmp_path_factory.mktemp("vae") / "kl16.ckpt"
    torch.save({"model": reseed("vae", VAE_SEED)}, path)
    codec = AutoencoderKL(weights=str(path))
    path.unlink()
    return codec


def test_vae(codec: AutoencoderKL, tmp_path: Path) -> None:
    golden = load_file(GOLDEN / "vae.safetensors")
    moments = codec.moments(golden["image"].unsqueeze(0))
    close(moments.mean, golden["mean"], VAE_ABSOLUTE)
    close(moments.logvar, golden["logvar"], VAE_ABSOLUTE)
    close(codec.encode(golden["image"].unsqueeze(0)), golden["mean"] * SCALE, VAE_ABSOLUTE)
    with torch.no_grad():
        decoded = codec.decode_images(golden["z"])
    close(decoded[:, :, PIXELS, PIXELS], golden["decoded"], VAE_ABSOLUTE)
    frames = codec.decode(golden["z"].unsqueeze(0) * SCALE)
    close(frames[..., PIXELS, PIXELS], golden["decoded"].clamp(-1, 1), VAE_ABSOLUTE)

    codec.save(tmp_path / "kl16.safetensors")
    saved = read_weights(tmp_path / "kl16.safetensors")
    assert all(torch.equal(tensor, saved.pop(name)) for name, tensor in codec.network.state_dict().items())
    assert not saved
