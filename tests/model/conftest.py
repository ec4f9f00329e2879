import pytest
import torch

from unified_video_action.model.config import HeadConfig, ModelConfig, TransformerConfig
from unified_video_action.model.inputs import ModelInputs
from unified_video_action.model.losses import Targets
from unified_video_action.model.masking import draw_corruption
from unified_video_action.model.task_modes import TASK_MODES
from unified_video_action.model.uva import UVA
from unified_video_action.spec import Horizon, LatentShape, ModelSpec

PLAIN = ModelSpec(Horizon(), LatentShape(4, 4, 4), action_dim=2, patch_size=2)
EVERYTHING = ModelSpec(
    Horizon(),
    LatentShape(4, 4, 4),
    action_dim=3,
    patch_size=2,
    history_actions=True,
    views=3,
    predicted_views=2,
    proprio_dim=5,
    proprio_steps=4,
    proprio_output_dim=6,
    text_dim=8,
    text_tokens=3,
    auxiliary_dim=6,
)
TINY = ModelConfig(
    TransformerConfig(dim=32, encoder_depth=1, decoder_depth=1, heads=4, dropout=0, attention_dropout=0),
    video_head=HeadConfig(width=32, depth=2),
    action_head=HeadConfig(width=32, depth=2, pool=2),
    patch_size=2,
)


class Sample:
    """A model, and a random batch for it with every task mode in turn."""

    def __init__(self, spec: ModelSpec, config: ModelConfig = TINY, batch: int = 5, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.spec, self.model = spec, UVA(spec, config).eval()
        for parameter in self.model.parameters():  # a fresh head outputs exactly 0, which would prove nothing
            parameter.data.add_(0.02 * torch.randn_like(parameter))
        horizon, latent = spec.horizon, spec.latent

        def frames(views, count):
            return torch.randn(batch, views, count, latent.channels, latent.height, latent.width)

        self.inputs = ModelInputs(frames(spec.views, horizon.history), frames(spec.predicted_views, horizon.future))
        self.inputs.actions = torch.rand(batch, horizon.actions, spec.action_dim) * 2 - 1
        if spec.history_actions:
            self.inputs.history_actions = torch.rand(batch, horizon.actions, spec.action_dim)
        if spec.proprio_dim:
            self.inputs.proprio = torch.randn(batch, spec.proprio_steps, spec.proprio_dim)
        if spec.text_dim:
            self.inputs.text = torch.randn(batch, spec.text_dim)
        self.targets = Targets(
            torch.ones(batch, horizon.future, dtype=torch.bool), torch.ones(batch, horizon.actions, dtype=torch.bool)
        )
        if spec.proprio_output_dim:
            self.targets.proprio = torch.rand(batch, horizon.actions, spec.proprio_output_dim)
        if spec.auxiliary_dim:
            self.targets.auxiliary = torch.rand(batch, horizon.history + horizon.future, spec.auxiliary_dim)
        self.modes = [list(TASK_MODES.values())[i % 5] for i in range(batch)]
        self.corruption = draw_corruption(spec, config, range(batch), self.modes)

    def losses(self) -> dict[str, float]:
        terms = self.model.loss_terms(self.inputs, self.targets, self.corruption)
        return {name: (term.total / term.weight).item() for name, term in terms.items()}


@pytest.fixture
def plain() -> Sample:
    return Sample(PLAIN)


@pytest.fixture
def everything() -> Sample:
    return Sample(EVERYTHING)
