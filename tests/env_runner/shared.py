"""An evaluation of the toy environment in a process of its own: `python shared.py OUTPUT`, also under torchrun."""

import sys
from pathlib import Path

from tests.env_runner import toy
from tests.env_runner.toy_policy import ToyPolicy, ToySession
from unified_video_action.env_runner import processes
from unified_video_action.env_runner import runner as runner_module
from unified_video_action.env_runner.runner import EnvRunner


def main() -> None:
    runner_module.PolicySession = ToySession
    runner = EnvRunner(toy.ToyEnv, n_episodes=5, start_seed=9, n_envs=2, max_steps=30, metrics=["coverage"])
    output = Path(sys.argv[1])
    with processes.joined():
        metrics = runner.run(ToyPolicy(), output, films=2, progress=False)
        (output.parent / f"{output.name}_{processes.place()[0]}.txt").write_text(repr(sorted(metrics.items())))


if __name__ == "__main__":
    main()
