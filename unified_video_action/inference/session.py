"""What a policy has to remember between control steps, for one or several episodes at a time."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from unified_video_action.inference.continuation import Continuation
from unified_video_action.inference.episode import Episode, Observation, Step
from unified_video_action.inference.planner import Planner, repeated
from unified_video_action.policy.base import BasePolicy, Keep

log = logging.getLogger(__name__)


class PolicySession:
    """Runs a policy in one or several environments (slots), each with its own history and noise.

    What the policy made of a frame (`encode_frames`, where it has that) is kept for as long as a plan can need it
    again; actions are those of a policy that encodes every frame of every history. Before there is enough history, the
    oldest observation stands in for what is missing. Plans come from `policy.accelerated(precision)`: after the weights
    have changed the session refuses to plan, so make a new one.

    Args:
        policy: on its device, in evaluation mode.
        slots: how many environments there are.
        action_steps: actions of a plan that `act` executes before it plans again; the policy's own number when None.
        sampler: overrides the policy's samplers, such as "ddim10".
        precision: of matrix products, "no" (float32), "bf16" or "fp16".
        planner: chooses among several plans; when None, the one that the policy's configuration names, if any.
        world: another policy, in which the planner imagines them (the paper's Table V); None: the policy itself.
    """

    def __init__(
        self,
        policy: BasePolicy,
        slots: int = 1,
        action_steps: int | None = None,
        sampler: str | None = None,
        precision: str = "no",
        planner: Planner | None = None,
        world: BasePolicy | None = None,
    ) -> None:
        chunk = policy.task.horizon.actions
        action_steps = policy.action_steps if action_steps is None else action_steps
        if slots < 1:
            raise ValueError(f"slots={slots}: expected at least 1")
        if not 1 <= action_steps <= chunk:
            raise ValueError(f"action_steps={action_steps}: the policy plans {chunk} actions")
        self.policy = policy.accelerated(precision)
        self.task, self.action_steps, self.sampler = policy.task, action_steps, sampler
        configured = getattr(policy.config, "planner", None)
        self.planner = Planner.build(configured) if planner is None and configured is not None else planner
        self._candidates = 1 if self.planner is None else self.planner.candidates
        self.tried: tuple[np.ndarray, np.ndarray] | None = None  # the planner's latest plans and their scores
        self.plan_seconds: deque[float] = deque(maxlen=1000)  # how long the latest plans took, all slots together
        self._episodes: list[Episode | None] = [None] * slots
        self._world = None if world is None else PolicySession(world, slots, precision=precision)
        if world is not None:
            chunk = attrgetter("horizon.actions", "horizon.action_offset", "action_dim")
            if chunk(world.task) != chunk(policy.task):
                raise ValueError(f"world: its chunks are {chunk(world.task)}, the policy's {chunk(policy.task)}")
            if self.planner is None:
                raise ValueError("world: it needs a planner")
        if policy.device.type == "cuda":
            log.info("getting ready to plan in %d environments at a time", slots)
            self._warm_up()

    def _warm_up(self) -> None:
        """Plan once for nothing: a CUDA device captures its graphs for this many environments."""
        spec = self.task
        planner, world, self.planner, self._world = self.planner, self._world, None, None  # it has warmed up itself
        blank = {camera.name: np.zeros((*camera.size, 3), np.uint8) for camera in spec.cameras}
        blank |= {name: np.zeros(width, np.float32) for name, width in spec.states.items()}
        for slot in range(len(self._episodes)):
            self.reset(slot, text=torch.zeros(spec.text_dim))
            self.observe(blank, slot)
        self.plan()
        self.planner, self._world, self._episodes = planner, world, [None] * len(self._episodes)
        self.plan_seconds.clear()

    def reset(self, slot: int = 0, seed: int = 0, text: Tensor | str | None = None) -> None:
        """Start a new episode in a slot.

        Args:
            seed: the episode's noise follows from it alone.
            text: the instruction, or its feature (text_dim,), for a policy that follows one.

        Raises:
            ValueError: the policy follows instructions, and there is none.
        """
        if self._world is not None:
            self._world.reset(slot, seed, text)
        follows = self.task.text_dim > 0
        if follows and text is None:
            raise ValueError("this policy follows instructions: reset(..., text=INSTRUCTION) needs one")
        if follows and isinstance(text, str):
            text = self.policy.encode_text([text])[0]
        text = text.to(self.policy.device) if follows else None
        self._episodes[slot] = Episode.begin(slot, seed, self.task.horizon, text)

    def observe(self, obs: Observation, slot: int = 0) -> None:
        """Take in what the environment shows, at every control step.

        Args:
            obs: for every camera of the policy a uint8 (H, W, 3) frame, for every state a float (d,) vector.

        Raises:
            ValueError: a camera or state is missing, or a frame is not uint8 (H, W, 3).
            RuntimeError: the slot was never reset.
        """
        if self._world is not None:
            self._world.observe(obs, slot)
        episode = self._episode(slot)
        episode.recent.append(Step.of(obs, self.task))
        episode.recalled = None
        if episode.coming:
            episode.executed.append(episode.coming.popleft())
        else:
            episode.executed.clear()  # no plan was followed to get here

    def recall(self, history: Sequence[Observation], slot: int = 0) -> None:
        """Take in a whole history, oldest first, in place of what was observed: for robots, which keep their own time.

        Frames that the history before had as well are not encoded again. What was executed meanwhile is not known to
        a policy that reads past actions.

        Raises:
            ValueError: not `horizon.history` observations, or a bad one (see `observe`).
            RuntimeError: the slot was never reset.
        """
        episode = self._episode(slot)
        if self._world is not None:
            raise ValueError("recall: a policy that plans in another one's world is shown every step (observe)")
        if len(history) != self.task.horizon.history:
            raise ValueError(f"{len(history)} observations: the policy reads {self.task.horizon.history}")
        steps = [Step.of(obs, self.task) for obs in history]
        for step, known in product(steps, episode.recalled or ()):
            for camera, encoded in known.encoded.items():
                if np.array_equal(known.observation[camera], step.observation[camera]):
                    step.encoded[camera] = encoded
        episode.recalled = steps
        for memory in (episode.recent, episode.executed, episode.coming):
            memory.clear()

    def plan(
        self, slots: Sequence[int] | None = None, going_on: Mapping[int, Continuation] | None = None
    ) -> np.ndarray:
        """Plan from the newest observation of each slot (all slots when None): float32 (n, A, D), in the data's units.

        The plan is taken to be executed from its start, one action between two observations, until the next plan.

        Args:
            going_on: slot -> what is left of the plan under way there, which the new one keeps to.

        Raises:
            ValueError: the planner's score is not finite.
        """
        started, shape = time.perf_counter(), (self.task.horizon.actions, self.task.action_dim)
        episodes = self._observed(slots)
        kept = {slot: each.padded(*shape) for slot, each in (going_on or {}).items()}
        chunks = self._each(episodes, lambda group: self._plan(group, kept))
        for episode, chunk in zip(episodes, chunks, strict=True):
            episode.coming = deque(chunk)
        self.plan_seconds.append(time.perf_counter() - started)
        return chunks

    def imagine(self, slots: Sequence[int] | None = None) -> np.ndarray:
        """What the policy expects its first camera to see while it acts: uint8 (n, F, H, W, 3).

        Leaves later plans as they are. With `policy.plan_first`, right after `plan`, these are the frames of that plan.

        Raises:
            ValueError: the policy imagines nothing.
        """
        if not self.policy.imagines:
            raise ValueError(f"{type(self.policy).__name__} imagines no frames")
        frames = self._each(self._observed(slots), self._imagine)
        return np.moveaxis(frames, 2, -1)  # (n, F, H, W, 3)

    def observation(self, slots: Sequence[int] | None = None) -> dict:
        """What the policy's own methods take, of the newest moment of each slot (all slots when None)."""
        return self._observation(self._observed(slots))

    def act(self, obs: Observation, slot: int = 0) -> np.ndarray:
        """For one environment: the action (D,) to execute now. Plans again after every `action_steps` actions."""
        self.observe(obs, slot)
        episode = self._episode(slot)
        if len(episode.coming) <= self.task.horizon.actions - self.action_steps:
            self.plan([slot])
        return episode.coming[0]

    def _episode(self, slot: int) -> Episode:
        episode = self._episodes[slot]
        if episode is None:
            raise RuntimeError(f"slot {slot} has no episode: call reset(slot={slot}, seed=...) first")
        return episode

    def _observed(self, slots: Sequence[int] | None) -> list[Episode]:
        episodes = [self._episode(slot) for slot in (range(len(self._episodes)) if slots is None else slots)]
        for episode in episodes:
            if not (episode.recent or episode.recalled):
                raise RuntimeError(f"slot {episode.slot} has seen nothing yet: call observe(obs, slot={episode.slot})")
        return episodes

    def _each(self, episodes: Sequence[Episode], predict: Callable[[Sequence[Episode]], Tensor]) -> np.ndarray:
        """What `predict` makes of a batch, (n, ...), for every episode."""
        groups = [list(range(len(episodes)))]
        if self.task.history_actions:  # a batch has them for all of its rows, or for none
            groups = [[row for row in groups[0] if episodes[row].knows_past is known] for known in (True, False)]
        results: dict[int, np.ndarray] = {}
        for rows in filter(None, groups):
            predicted = predict([episodes[row] for row in rows])
            results |= dict(zip(rows, predicted.cpu().numpy(), strict=True))
        return np.stack([results[row] for row in range(len(episodes))])

    @torch.no_grad()
    def _plan(self, episodes: Sequence[Episode], kept: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> Tensor:
        """(n, A, D)"""
        observation, candidates = self._observation(episodes), self._candidates
        generators, keep = [episode.acting for episode in episodes], self._keep(episodes, kept)
        made = self.policy.predict_action(observation, generators, self.sampler, keep, candidates)
        chunks = made["action_pred"]  # (n*K, A, D)
        if self.planner is None:
            return chunks[::candidates]
        world = self if self._world is None else self._world
        own = episodes if world is self else [world._episode(episode.slot) for episode in episodes]
        seen = observation if world is self else world._observation(own)
        seen = repeated(seen, candidates)
        scores = self.planner.scores(world.policy, seen, chunks, own, world.sampler)  # (n, K)
        self.tried = (plans := chunks.unflatten(0, (-1, candidates))).cpu().numpy(), scores
        return plans[torch.arange(len(episodes)), torch.from_numpy(self.planner.choose(scores))]

    def _keep(self, episodes: Sequence[Episode], kept: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> Keep | None:
        """None: every plan is free."""
        if not any(episode.slot in kept for episode in episodes):
            return None
        steps, dim = self.task.horizon.actions, self.task.action_dim
        free = np.zeros((steps, dim), np.float32), np.zeros(steps, np.float32)
        each = [kept.get(episode.slot, free) for episode in episodes]
        return tuple(torch.from_numpy(np.stack(part)) for part in zip(*each, strict=True))

    @torch.no_grad()
    def _imagine(self, episodes: Sequence[Episode]) -> Tensor:
        """uint8 (n, F, 3, H, W)"""
        generators = [episode.imagining for episode in episodes]
        observation, steps = self._observation(episodes), self.task.horizon.actions
        if getattr(self.policy.config, "plan_first", False) and all(len(each.coming) == steps for each in episodes):
            plans = torch.from_numpy(np.stack([episode.coming for episode in episodes]))  # (n, A, D)
            return self.policy.predict_forward_dynamics(observation, plans, generators, self.sampler)["frames"]
        return self.policy.predict_action_and_video(observation, generators, self.sampler)["frames"]

    def _observation(self, episodes: Sequence[Episode]) -> dict:
        """The policy's observation of a batch of episodes."""
        histories = [episode.history(self.task.horizon.history_offsets) for episode in episodes]
        inputs: dict = {}
        for camera in self.task.camera_names:
            self._encode_new(camera, [step for history in histories for step in history])
            rows = [[step.encoded[camera] for step in history] for history in histories]
            kind, count = type(rows[0][0]), len(rows[0][0])
            parts = [torch.stack([torch.stack([each[i] for each in row]) for row in rows]) for i in range(count)]
            inputs[camera] = parts[0] if kind is tuple else kind(*parts)  # (n, H, ...)
        for name in self.task.states:
            states = np.stack([[step.observation[name] for step in history] for history in histories])
            inputs[name] = torch.from_numpy(states).float()  # (n, H, d)
        if self.task.text_dim:
            inputs["text"] = torch.stack([episode.text for episode in episodes])  # (n, text_dim)
        if self.task.history_actions and episodes[0].knows_past:
            inputs["history_action"] = torch.from_numpy(np.stack([episode.executed for episode in episodes]))
        return inputs

    def _encode_new(self, camera: str, steps: Sequence[Step]) -> None:
        """Encode, in one batch, the frames that no earlier plan has encoded; keep frames where the policy does not."""
        new = list({id(step): step for step in steps if camera not in step.encoded}.values())
        if not new:
            return
        frames = torch.from_numpy(np.stack([step.observation[camera] for step in new])).movedim(-1, 1)  # (n, 3, H, W)
        if not hasattr(self.policy, "encode_frames"):
            for step, frame in zip(new, frames, strict=True):
                step.encoded[camera] = (frame,)
            return
        encoded = self.policy.encode_frames(frames[:, None])  # each (n, 1, ...)
        for row, step in enumerate(new):
            step.encoded[camera] = type(encoded)(*(part[row, 0] for part in encoded))
