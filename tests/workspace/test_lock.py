import os
import subprocess
import sys

import pytest

from unified_video_action.workspace.lock import locked

HOLD = "import sys, time; from pathlib import Path; from unified_video_action.workspace.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_a_second_training_in_a_folder_is_refused_and_names_the_first(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"output_dir={tmp_path}: process {other.pid} on .* trains there"):
            with locked(tmp_path):
                pass
        other.kill()  # the lock of a process that was killed is free
    with locked(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".training.owner").read_text()
    with locked(tmp_path):  # and so is that of one that ended
        pass
