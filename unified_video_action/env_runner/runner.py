"""EnvRunner: evaluate a policy in a simulator, during training or from a checkpoint."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from unified_video_action.env.state_reader import StateReader
from unified_video_action.env_runner import distributed
from unified_video_action.env_runner.recordings import write_lerobot, write_rerun
from unified_video_action.env_runner.results import Journal, describe_results, summarise, write_json
from unified_video_action.env_runner.rollout import Episode, load_observations, rollout, save_observations
from unified_video_action.env_runner.simulators import EnvProcesses, EnvSource, Observation
from unified_video_action.env_runner.videos import (
    Rollout,
    RolloutVideo,
    imagine_episode,
    pick_for_videos,
    video_frames,
    video_note,
    write_mp4,
)
from unified_video_action.inference.planner import Planner
from unified_video_action.inference.session import PolicySession

log = logging.getLogger(__name__)


class EnvRunner:
    """Rolls a policy out over fixed start seeds; the result of a seed does not depend on `n_envs`.

    Under torchrun, or in a training of several processes, all of them call `run` and share the episodes.

    Args:
        env_config: the environment (a mapping with `_target_`), or an importable function that returns one. Its
            observations are a dict; its step info holds `score` in [0, 1] (progress now) and `is_success`.
        n_episodes: episodes, on seeds start_seed, start_seed + 1, ...
        n_envs: environments at a time of every process that evaluates, each in one of its own; default one per core.
        max_steps, action_steps: control steps of an episode at most, and between two plans.
        metrics: further entries of the step info whose largest value over an episode is reported.
        timeout_s: a simulator that takes longer over one chunk counts as crashed.
        fps: of the rollout videos; 10 shows an environment of 10 control steps a second in its own time.
        reader: of positions in frames, by which videos show how far imagined frames are off; None: their PSNR.

    Raises:
        ValueError: a count below 1.
    """

    def __init__(
        self,
        env_config: EnvSource,
        n_episodes: int = 50,
        start_seed: int = 100_000,
        n_envs: int | None = None,
        max_steps: int = 300,
        action_steps: int = 8,
        metrics: Sequence[str] = (),
        timeout_s: float = 300.0,
        fps: int = 10,
        reader: StateReader | None = None,
    ) -> None:
        if isinstance(env_config, DictConfig):
            env_config = OmegaConf.to_container(env_config, resolve=True)
        self.env_config = env_config
        self.n_envs = min(distributed.own_cores() if n_envs is None else n_envs, n_episodes)
        counts = {"n_episodes": n_episodes, "n_envs": self.n_envs, "max_steps": max_steps}
        for name, value in {**counts, "action_steps": action_steps, "fps": fps, "timeout_s": timeout_s}.items():
            if not value >= 1:
                raise ValueError(f"EnvRunner.{name} must be at least 1, got {value}")
        self.seeds = range(start_seed, start_seed + n_episodes)
        self.max_steps = max_steps
        self.action_steps = action_steps
        self.metrics = tuple(metrics)
        self.timeout_s = timeout_s
        self.fps = fps
        self.reader = reader

    def run(
        self,
        policy: Any,
        output_dir: Path | str | None = None,
        *,
        sampler: str | None = None,
        precision: str = "no",
        planner: Planner | None = None,
        try_in_simulator: bool = False,
        world: Any = None,
        videos: int = 3,
        rerun: Path | None = None,
        dataset: Path | None = None,
        title: str = "Evaluation",
        facts: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        training_log: Path | None = None,
        progress: bool = True,
        journal: bool = False,
        resume: bool = False,
    ) -> dict[str, float]:
        """Evaluate `policy` and return the metrics that `results.summarise` describes, alike in all processes.

        Args:
            output_dir: where the first process writes results.json, videos/*.mp4 and report.html; None: nowhere.
            sampler: name of the sampler of actions and frames; default the policy's own.
            precision: of matrix products, "no" (float32), "bf16" or "fp16".
            planner: chooses among several plans; default the policy's own, if it has one.
            try_in_simulator: the planner tries its plans in the simulator instead of imagining them: the bound of what
                it can win with a perfect model. Rollout videos are then of the policy without a planner.
            world: another policy, in which the planner imagines its plans.
            videos: episodes with a rollout video, spread from the best to the worst.
            rerun, dataset: a file and a folder to write with all episodes, see `recordings`.
            title, facts, training_log: for the report, see `report.write_report`.
            config: resolved configuration, kept in results.json.
            journal: keep finished episodes in `output_dir` while it runs, in a file of each process, so that it can be
                continued.
            resume: continue an evaluation in `output_dir` that was interrupted, without its finished episodes.

        Raises:
            ValueError, FileNotFoundError: `resume`, but there is no evaluation in `output_dir`, or another one.
            ValueError: `rerun` or `dataset` in several processes: one has seen its own episodes alone.
            RuntimeError: the simulator does not start, every episode crashed, or the policy's plan is not finite.
        """
        rank, size = distributed.rank_and_size()
        output = None if output_dir is None else Path(output_dir)
        videos, everything = 0 if output is None else videos, rerun or dataset
        if everything and size > 1:
            raise ValueError("rollouts are recorded (--rerun, --record-dataset) in one process: run without torchrun")
        if output is not None and rank == 0:
            output.mkdir(parents=True, exist_ok=True)
        kept = Journal(output, self._settings(facts), rank) if output is not None and journal else None
        finished = self.finished(output, facts) if resume else {}
        distributed.gather([])  # all have read what is finished before one of them writes
        if kept is not None and rank == 0:
            kept.begin()
        mine = [seed for seed in self.seeds if seed not in finished][rank::size]

        def session(slots: int, envs: EnvProcesses | None = None) -> PolicySession:
            chosen = planner
            if planner is not None and try_in_simulator:
                steps = policy.task.horizon.future_offsets or (policy.task.horizon.actions,)
                tried = partial(envs.try_actions, steps=steps) if envs else None
                chosen = replace(planner, simulate=tried) if tried else None
            return PolicySession(policy, slots, self.action_steps, sampler, precision, chosen, chosen and world)

        was_training = policy.training
        policy.eval()
        try:
            with tempfile.TemporaryDirectory(prefix="uva_rollouts_") as folder:
                recordings = Path(folder) if videos or everything else None
                rolled, plan_ms = self._roll(session, mine, recordings, progress and rank == 0, kept)
                before = [finished[seed] for seed in self.seeds if seed in finished]
                episodes = sorted([*before, *distributed.gather(rolled)], key=lambda episode: episode.seed)
                metrics = summarise(episodes, self.metrics)
                chosen = pick_for_videos(episodes, videos)
                shown = [e for e in episodes if e.crashed is None] if everything else [each for _, each in chosen]
                again = [episode.seed for episode in shown if episode.seed in finished][rank::size]
                # The earlier part of the run has seen them, this one has not.
                repeated, _ = self._roll(session, again, recordings)

                def stored(seed: int) -> list[Observation]:
                    return load_observations(recordings / f"{seed}.npz")

                own = [episode.seed for _, episode in chosen if episode.seed in (*mine, *again)]
                seen = dict(distributed.gather([(seed, stored(seed)) for seed in own]))
                results = describe_results(metrics, episodes, config, facts, plan_ms)
                if output is not None and rank == 0:
                    write_json(output / "results.json", results)
                imagining = session(1) if (chosen or rerun) and policy.imagines else None
                all_seen = {episode.seed: episode for episode in (*shown, *repeated)}.values()
                if rerun:
                    write_rerun(rerun, self._rollouts(all_seen, stored, imagining), self.fps, title, policy.task)
                if dataset:
                    name = self._env_name.rpartition(".")[2]
                    write_lerobot(dataset, self._rollouts(all_seen, stored), self.fps, name, policy.task)
            if output is None or rank > 0:
                return metrics
            rollouts = self._rollouts((episode for _, episode in chosen), seen.get, imagining)
            shown = tqdm(zip(chosen, rollouts), "rollout videos", len(chosen), unit="video", disable=not progress)
            camera, written = policy.task.camera_names[0], []
            for (label, _), rollout in shown:
                written.append(self._video(rollout, label, camera, output / "videos"))
        finally:
            policy.train(was_training)
        from unified_video_action.env_runner.report import write_report  # matplotlib takes a while to import

        plan_first = getattr(getattr(policy, "config", None), "plan_first", False)
        note = video_note(policy.imagines, plan_first, self.action_steps, self.reader)
        write_report(output / "report.html", results, title, written, training_log, note)
        if kept is not None:
            kept.remove()
        return metrics

    def finished(self, output_dir: Path | str, facts: Mapping[str, str] | None = None) -> dict[int, Episode]:
        """Episodes by seed that an interrupted evaluation in `output_dir` has finished.

        Raises:
            FileNotFoundError: there is none. ValueError: it was of other weights or settings.
        """
        return Journal(Path(output_dir), self._settings(facts)).finished()

    @property
    def _env_name(self) -> str:
        env = self.env_config
        return env["_target_"] if isinstance(env, Mapping) else f"{env.__module__}.{env.__qualname__}"

    def _settings(self, facts: Mapping[str, str] | None) -> dict[str, Any]:
        """All that an episode depends on besides its seed."""
        env = self.env_config
        return {
            **(facts or {}),
            "env": dict(env) if isinstance(env, Mapping) else self._env_name,
            "max_steps": self.max_steps,
            "action_steps": self.action_steps,
            "metrics": list(self.metrics),
        }

    def _roll(
        self,
        make_session: Callable[[int, EnvProcesses], PolicySession],
        seeds: Sequence[int],
        recordings: Path | None,
        progress: bool = False,
        journal: Journal | None = None,
    ) -> tuple[list[Episode], dict[str, float] | None]:
        """Run the episodes of `seeds`, and keep their observations and themselves where these are to be kept.

        Returns:
            the episodes, and the median time of a plan in ms for so many environments together.
        """
        if not seeds:
            return [], None
        done: list[Episode] = []
        n_envs = min(self.n_envs, len(seeds))
        with (
            EnvProcesses(self.env_config, n_envs, self.timeout_s) as envs,
            tqdm(total=len(seeds), desc="evaluating", unit="episode", disable=not progress) as bar,
        ):
            session = make_session(n_envs, envs)

            def on_end(episode: Episode, observations: list[Observation]) -> None:
                if journal is not None:
                    journal.add(episode)
                if episode.crashed is not None:
                    log.warning("Episode with seed %d crashed: %s", episode.seed, episode.crashed)
                else:
                    done.append(episode)
                    if recordings is not None:
                        save_observations(recordings / f"{episode.seed}.npz", observations)
                    score, successes = (sum(getattr(each, name) for each in done) for name in ("score", "success"))
                    text = {"score": f"{score / len(done):.3f}", "success": f"{successes}/{len(done)}"}
                    bar.set_postfix(text, refresh=False)
                bar.update()

            limits = {"max_steps": self.max_steps, "action_steps": self.action_steps, "metrics": self.metrics}
            keep = recordings is not None
            episodes = rollout(session, envs, seeds, **limits, on_end=on_end, keep_observations=keep)
        seconds = session.plan_seconds
        return episodes, {"median": 1000 * median(seconds), "environments": n_envs} if seconds else None

    def _rollouts(
        self,
        episodes: Iterable[Episode],
        seen_in: Callable[[int], Sequence[Observation]],
        session: PolicySession | None = None,
    ) -> Iterator[Rollout]:
        """Episodes with what was seen (by seed) and, with a session, imagined in them."""
        for episode in episodes:
            seen, imagined = seen_in(episode.seed), []
            if session is not None:
                imagined = imagine_episode(session, seen, episode.seed, self.action_steps)
            yield Rollout(episode, seen, imagined)

    def _video(self, rollout: Rollout, label: str, camera: str, folder: Path) -> RolloutVideo:
        episode = rollout.episode
        folder.mkdir(exist_ok=True)
        path = folder / f"{label.replace(' ', '_')}_seed_{episode.seed}.mp4"
        write_mp4(path, video_frames(rollout, camera, label, self.reader), self.fps)
        return RolloutVideo(label, episode.seed, episode.score, path)
