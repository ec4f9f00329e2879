"""UniPi (Du et al. 2023), composed of UVA's own modes: a video of what is to come, then the actions that it shows."""

from __future__ import annotations

from torch import Tensor

from unified_video_action.noise import Generators
from unified_video_action.policy.base import Keep, Observation
from unified_video_action.policy.uva import UnifiedVideoActionPolicy


class UniPiPolicy(UnifiedVideoActionPolicy):
    """Acts by its video model and its inverse dynamics (the paper's baseline in Table I)."""

    def can(self, mode: str) -> bool:
        if mode == "policy":
            return super().can("video") and super().can("inverse_dynamics")
        return super().can(mode)

    @property
    def imagines(self) -> bool:
        return self.can("policy")

    def predict_action(
        self,
        obs: Observation,
        generator: Generators = None,
        sampler: str | None = None,
        keep: Keep | None = None,
        chunks: int = 1,
    ) -> dict[str, Tensor]:
        """As `BasePolicy.predict_action`; each of the chunks has a video of its own.

        Raises:
            ValueError: the model was not trained to imagine, or not to read actions from frames.
        """
        if chunks > 1:
            obs = {name: _repeated(value, chunks) for name, value in obs.items()}
            keep = None if keep is None else tuple(_repeated(part, chunks) for part in keep)
            if isinstance(generator, list):
                generator = [each for each in generator for _ in range(chunks)]
        return self._act_by(self.predict_video(obs, generator, sampler), obs, generator, sampler, keep)

    def predict_action_and_video(
        self, obs: Observation, generator: Generators = None, sampler: str | None = None
    ) -> dict[str, Tensor]:
        """A plan, and the video that it was read from."""
        video = self.predict_video(obs, generator, sampler)
        return {**video, **self._act_by(video, obs, generator, sampler)}

    def _act_by(
        self,
        video: dict[str, Tensor],
        obs: Observation,
        generator: Generators,
        sampler: str | None,
        keep: Keep | None = None,
    ) -> dict[str, Tensor]:
        imagined = video["latents"]  # (B, P, F, C, h, w)
        future = {name: imagined[:, view] for view, name in enumerate(self.task.predicted_cameras)}
        hide = not self.model.config.masking.inverse_history
        return self._run("inverse_dynamics", obs, generator, sampler, future=future, hide_history=hide, keep=keep)


def _repeated(value: object, times: int) -> object:
    """Each row of a tensor, or of a tuple of tensors, so many times."""
    if isinstance(value, Tensor):
        return value.repeat_interleave(times, 0)
    return type(value)(*(None if part is None else part.repeat_interleave(times, 0) for part in value))
