"""The project's own rules, measured: style, the arrows between packages, and what no file may contain."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "unified_video_action"
LINES = 300  # no file is longer

ENTRY_POINTS = sorted(path for path in ROOT.glob("*.py") if path.name != "setup.py")
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
SOURCES = sorted(PACKAGE.rglob("*.py")) + ENTRY_POINTS + SCRIPTS + PLUGINS
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEXT_FILES = sorted(
    path
    for pattern in (
        "*",
        ".ci/*",
        "config/**/*",
        "plugins/**/*",
        "scripts/**/*",
        "unified_video_action/**/*",
        "tests/**/*",
    )
    for path in ROOT.glob(pattern)
    if path.suffix in {".py", ".yaml", ".toml", ".md", ".txt", ".sh", ""} and path.is_file() and path != Path(__file__)
)
FORBIDDEN_TEXT = {
    "a path of one machine": r"(?<![\w.])/(work|home|root|tmp|opt|mnt)/\w",
    "a package index": r"pypi\.|pythonhosted|--(extra-)?index-url|--find-links",
    "something unfinished": r"\b(TODO|FIXME|XXX|HACK)\b",
}
TASK_NAMES = re.compile(r"task_name|\b(pusht|libero|toolhang|umi)", re.IGNORECASE)
TASK_FREE = ("model", "policy", "workspace", "inference", "text", "vae", "evaluation", "env_runner")  # packages
PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
COMPANIONS = {  # pinned without being imported: tools, and what imported packages need in a version that fits
    *("aiohttp", "pygame", "torchvision"),
    *("dm-tree", "import-linter", "pytest-timeout", "pytest-xdist", "ruff"),
    *("ipykernel", "mkdocs-jupyter", "mkdocs-material", "mkdocstrings-python"),
    *("bddl", "hf-libero", "numba", "six", "termcolor"),
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(), filename=str(path)))


def faults(found: Iterator[str]) -> None:
    found = list(found)
    assert not found, "\n" + "\n".join(found)


def imported_modules(node: ast.AST) -> list[str]:
    """Top-level names of the modules that an import statement brings in."""
    if isinstance(node, ast.ImportFrom):
        return [] if node.level else [(node.module or "").split(".")[0]]
    return [alias.name.split(".")[0] for alias in node.names] if isinstance(node, ast.Import) else []


def called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def keyword(node: ast.Call, key: str) -> object:
    """Value of a call's constant keyword argument; None when it is absent."""
    return next((k.value.value for k in node.keywords if k.arg == key and isinstance(k.value, ast.Constant)), None)


def swallows(node: ast.AST) -> bool:
    return isinstance(node, ast.ExceptHandler) and (
        node.type is None or (ast.unparse(node.type) == "Exception" and isinstance(node.body[0], ast.Pass))
    )


def names_a_task(node: ast.AST) -> bool:
    word = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.col_offset else ""
    return " " not in word and bool(TASK_NAMES.search(word))


def names_hardware(node: ast.AST) -> bool:
    return (isinstance(node, ast.Constant) and node.value == "cuda") or (
        isinstance(node, ast.Attribute) and node.attr in ("cuda", "bfloat16", "float16", "half")
    )


RULES = {  # what -> where not, and how to tell
    "prints or evaluates": (SOURCES, lambda node: called(node) in ("print", "eval", "exec")),
    "opens pickles": (
        [path for path in SOURCES if "compat" not in path.parts],
        lambda node: bool(PICKLES.intersection(imported_modules(node))),
    ),
    "loads weights unsafely": (
        SOURCES,
        lambda node: called(node) == "torch.load" and keyword(node, "weights_only") is not True,
    ),
    "loads weights in part": (SOURCES, lambda node: "load" in called(node) and keyword(node, "strict") is False),
    "swallows an exception": (SOURCES, swallows),
    "names a task": ([path for each in TASK_FREE for path in (PACKAGE / each).rglob("*.py")], names_a_task),
    "names an accelerator or a dtype": (  # but for CUDA's graphs
        [path for path in (PACKAGE / "model").rglob("*.py") if path.name != "acceleration.py"],
        names_hardware,
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_no_code(rule: str) -> None:
    paths, breaks = RULES[rule]
    assert paths
    faults(
        f"{name(path)}:{node.lineno}: {ast.unparse(node)[:100]}"
        for path in paths
        for node in nodes(path)
        if breaks(node)
    )


@pytest.mark.parametrize(
    "command",
    [[sys.executable, "-m", "ruff", "check", "."], [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]],
    ids=["ruff", "import-linter"],
)
def test_linters_are_content(command: list[str]) -> None:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("what", FORBIDDEN_TEXT)
def test_no_file_contains(what: str) -> None:
    faults(
        f"{name(path)}:{number}: {line.strip()}"
        for path in TEXT_FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(FORBIDDEN_TEXT[what], line)
    )


def test_only_ci_knows_the_data_beside_the_checkout() -> None:
    faults(
        name(path)
        for path in TEXT_FILES
        if "shared/" in path.read_text().replace("box.com/shared/", "") and name(path) != ".ci/run"
    )


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCES}
    faults(f"{name(path)}: {length} lines" for path, length in lengths.items() if length > LINES)


def test_help_works_and_imports_nothing_heavy() -> None:
    """All of them in one process, which says after each what has been imported."""
    code = f"""
import contextlib, io, runpy, sys
for script in {list(map(str, [*ENTRY_POINTS, *SCRIPTS]))}:
    sys.argv, said = [script, "--help"], io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    assert len(said.getvalue()) > 100, script
    found = {{"torch", "diffusers", "matplotlib.pyplot", "huggingface_hub", "wandb"}} & set(sys.modules)
    assert not found, f"{{script}} --help imports {{found}}"
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def normal(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


def test_what_is_imported_is_bounded_and_pinned_and_the_other_way_round() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounded = set()
    for requirement in project["dependencies"] + sum(project["optional-dependencies"].values(), []):
        distribution, bounds = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?(.*)", requirement).groups()
        assert bounds or distribution == project["name"], f"{requirement}: expected a lower bound"
        bounded.add(normal(distribution))
    bounded -= {project["name"]}
    pinned, alone = {}, {}
    for file, found in (("constraints.txt", pinned), ("without_dependencies.txt", alone)):
        for line in (ROOT / "requirements" / file).read_text().splitlines():
            if not line.startswith("#"):
                distribution, version = line.split(" #")[0].split("==")
                found[normal(distribution)] = version
    assert pinned.keys() == bounded
    pinned |= alone
    owners = {
        module: set(map(normal, distributions))
        for module, distributions in importlib.metadata.packages_distributions().items()
    }
    imported = {module for path in SOURCES + TESTS for node in nodes(path) for module in imported_modules(node)}
    foreign = {module for module in imported if module in owners and module != PACKAGE.name}
    faults(f"{module} is imported but not pinned" for module in foreign if not owners[module] & set(pinned))
    used = set().union(*(owners[module] for module in foreign)) | COMPANIONS
    faults(f"{distribution} is pinned but not imported" for distribution in pinned if distribution not in used)
    installed = {distribution: importlib.metadata.version(distribution) for distribution in pinned}
    assert installed == pinned


def test_the_core_imports_without_the_extras() -> None:
    extras = "msgpack zmq websockets wandb submitit gym_pusht pymunk pygame shapely mujoco pybullet h5py numba".split()
    code = f"""
import sys
for name in {extras}:
    sys.modules[name] = None  # as if it were not installed
import unified_video_action.policy.build, unified_video_action.policy.diffusion_policy, unified_video_action.policy.uva
import unified_video_action.inference.session, unified_video_action.env_runner.runner, train
import unified_video_action.workspace.train_unified_video_action_workspace
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
