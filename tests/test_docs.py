"""The pages: their commands can be typed, their notebook runs, and they build into a site."""

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from unittest import mock

import nbformat
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from nbclient import NotebookClient
from omegaconf import OmegaConf

from unified_video_action.env_runner.preparation import CHANGEABLE
from unified_video_action.files import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "checkpoints").glob("*/README.md"))]
SCRIPT = re.compile(r"(train|eval_sim|eval_real|scripts/\w+)\.py")
INLINE = re.compile(
    r"(\w+=\S+ )*(make \w|(python|torchrun) .*\.py (?!\.\.\.))"
)  # a script without options is only named
YOURS = ("policy=cloning",)  # files of config/ that a page has its reader write


class Parsed(Exception):
    """Carries what a script has made of its command line, in place of doing it."""


def commands(page: str) -> list[str]:
    """Lines of ```bash blocks, and inline code that begins like one of them."""
    blocks = re.findall(r"```bash\n(.*?)```", page, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"```.*?```", "", page, flags=re.S)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    return [*lines, *(code for code in inline if INLINE.match(code))]


def checked(command: str) -> str | None:
    """What is wrong with a command; None for a good one, and for one of other programs."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"\w+=\S+", words[0]):
        words = words[1:]
    if words[:1] == ["make"]:
        return None if f"\n{words[1]}:" in (ROOT / "Makefile").read_text() else "no such target"
    script = next((word for word in words if SCRIPT.fullmatch(word)), None) if words else None
    if script is None:
        return None
    if not (ROOT / script).is_file():
        return "no such script"
    arguments = words[words.index(script) + 1 :]
    try:
        composes(*taken(script, arguments))
    except (SystemExit, Exception) as error:
        return str(error)
    return None


def taken(script: str, arguments: list[str]) -> tuple[str | None, list[str], Path]:
    """The configuration that a command line names, its words for Hydra, and its folder. SystemExit: it is refused."""
    if script == "train.py":
        given = dict(word.split("=", 1) for word in arguments if re.match("--config-(name|dir)=", word))
        words = [word for word in arguments if not word.startswith("--") and word != "job"]
        return given["--config-name"], words, ROOT / given.get("--config-dir", "config")
    said = io.StringIO()

    def parse(real):
        def parse_only(self, words=None, namespace=None):
            raise Parsed(real(self, words, namespace))

        return parse_only

    patches = [
        mock.patch.object(ArgumentParser, name, parse(getattr(ArgumentParser, name)))
        for name in ("parse_args", "parse_intermixed_args")
    ]
    with contextlib.ExitStack() as stack:
        for each in [*patches, mock.patch.object(sys, "argv", [script, *arguments]), contextlib.redirect_stderr(said)]:
            stack.enter_context(each)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except Parsed as parsed:
            options: Namespace = parsed.args[0]
        except SystemExit as refused:
            raise SystemExit(said.getvalue()) from refused
    changes = getattr(options, "set", None) or []
    if getattr(options, "checkpoint", None) and (
        wrong := [word for word in changes if not word.startswith(CHANGEABLE)]
    ):
        raise SystemExit(f"--set {wrong[0]}")
    words = [*changes, *(getattr(options, "overrides", None) or [])]
    return getattr(options, "config_name", None), words, ROOT / "config"


def composes(name: str | list | None, words: list[str], folder: Path) -> list[str]:
    """The configurations as YAML. Raises for words that they refuse; of a sweep the first value is taken."""
    made = []
    words = [word for word in words if word not in YOURS]
    names = name if isinstance(name, list) else [name] if name else []
    for each in (each for each in names if not each.isupper()):  # NAME stands for any
        parsed = OverridesParser.create().parse_overrides(words)
        first = [
            f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
            if override.is_sweep_override()
            else override.input_line
            for override in parsed
        ]
        with initialize_config_dir(str(folder), version_base="1.3"):
            made.append(OmegaConf.to_yaml(compose(each, first)))
    return made


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_accepted_by_its_script(page: Path) -> None:
    wrong = {command: fault for command in commands(page.read_text()) if (fault := checked(command))}
    assert not wrong, "\n".join(f"{command}\n    {fault}" for command, fault in wrong.items())


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("python eval_sim.py --checkpoint X --n-episode 3 --vidoes 2  # a look", "unrecognized arguments: --vidoes"),
        ("torchrun --nproc-per-node 4 train.py --config-name=uva_pusht training.batchsize=3", "batchsize"),
        ("python eval_sim.py --checkpoint X --set model.x=1", "--set model.x=1"),
    ],
)
def test_a_wrong_command_is_found(command: str, fault: str) -> None:
    assert fault in checked(command)


def test_the_notebook_runs_as_it_is_shown() -> None:
    path = ROOT / "docs" / "quickstart.ipynb"
    shown = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    run = NotebookClient(nbformat.read(path, as_version=4), timeout=200, resources=resources).execute()
    for notebook in (shown, run):
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
        assert any("21.4 M parameters" in str(output.get("data")) for output in outputs)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Unified Video Action model" in (tmp_path / "index.html").read_text()
    assert "predict_forward_dynamics" in (tmp_path / "api" / "index.html").read_text()


def test_files_of_tests_that_pages_name_exist():
    named = {path for page in PAGES for path in re.findall(r"\btests/[\w/]+\.py", page.read_text())}
    assert named and not [path for path in named if not (ROOT / path).is_file()]
