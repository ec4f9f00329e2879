"""Turn other projects' checkpoints into this project's files.

    python scripts/convert_checkpoint.py IN.ckpt OUT

What IN is decides what OUT becomes:
    a policy of the paper's published code    a checkpoint folder for eval_sim.py and init_from=OUT
    its stage-1 weights, or MAR's checkpoint  a folder with what a new run can start from: init_from=OUT
    kl-f16 (kl16.ckpt, or latent diffusion's) a file OUT.safetensors for vae.weights=OUT.safetensors

IN is read as data: nothing in it is executed, and a file that asks for more than plain data is refused. OUT appears
whole or not at all.
"""

import argparse
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "uva_pusht"  # the paper's recipe, whose data and simulator a PushT policy keeps

log = logging.getLogger(Path(__file__).stem)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="IN", help="checkpoint of another project")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder or file to make; it must not exist yet")
    return parser.parse_args()


def convert(source: Path, target: Path) -> None:
    """Convert `source` into `target`.

    Raises:
        FileNotFoundError, FileExistsError: about `source`, `target`.
        ValueError: `source` is damaged, refused, or of no known kind.
    """
    from unified_video_action.compat import kl16
    from unified_video_action.compat.published import PAPER_SPEC, infer_network, read_published
    from unified_video_action.compat.tensors import shapes_of, unwrapped
    from unified_video_action.compat.torch_archive import load_checkpoint

    if target.exists():
        raise FileExistsError(f"{target} exists; name another output, or remove it")
    content = load_checkpoint(source)
    if not isinstance(content, dict):
        raise ValueError(f"{source}: holds a {type(content).__name__}, not a checkpoint")
    if "state_dicts" in content:
        try:
            published = read_published(content, str(source))
            config = configuration(published, str(source)) if published.learns_actions else {}
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{source}: its cfg is not of the published code ({repr(error)[:200]})") from error
        if published.learns_actions:
            write(target, lambda folder: write_policy(folder, published, config, str(source)))
        else:
            tensors = published.weights["ema"]
            write(target, lambda folder: write_start(folder, tensors, published.spec, published.network, str(source)))
    elif "model_ema" in content:
        tensors = unwrapped(content["model_ema"], str(source))
        network = infer_network(shapes_of(tensors))
        write(target, lambda folder: write_start(folder, tensors, PAPER_SPEC, network, str(source)))
    elif not kl16.is_ldm(codec := kl16.find(content, str(source))):
        raise ValueError(f"{source}: {unknown(content)}")
    elif target.suffix != ".safetensors":
        raise ValueError(f"{source} is a frame codec: name an output that ends with .safetensors, not {target}")
    else:
        write(target, lambda file: write_codec(file, codec, str(source)))
    log.info("wrote %s", target)


def unknown(content: dict[str, Any]) -> str:
    """What is said of a file of no known kind."""
    from torch import Tensor

    from unified_video_action.messages import few

    said = f"no known kind of checkpoint; it holds {few(content)}"
    place, tensors = next(
        ((key, content[key]) for key in ("state_dict", "model") if isinstance(content.get(key), dict)), ("", content)
    )
    if not any(isinstance(tensor, Tensor) for tensor in tensors.values()):
        return said
    if any("encoder_blocks." in str(name)[:100] for name in tensors):
        said += f". It has weights alone{f' ({place})' if place else ''}: give the file that the trainer wrote, which "
        said += "for a published policy has cfg and state_dicts.ema_model, and for MAR model_ema"
    elif place:
        said += f", with {few(tensors)} in {place}"
    return said


def write(target: Path, make: Callable[[Path], None]) -> None:
    """Let `make` fill a temporary sibling, flush it, and rename it to `target`."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        make(temporary)
        for path in (*temporary.glob("*"), temporary):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        os.rename(temporary, target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def save(tensors: dict[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def model_shapes(spec: Any, model: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our model's tensors, without making them."""
    import torch

    from unified_video_action.compat.tensors import shapes_of
    from unified_video_action.instantiate import build_dataclass
    from unified_video_action.model.config import ModelConfig
    from unified_video_action.model.uva import UVA

    with torch.device("meta"):
        return shapes_of(UVA(spec, build_dataclass(ModelConfig, model, "model")).state_dict())


def write_codec(path: Path, state: dict[str, Any], source: str) -> None:
    import torch

    from unified_video_action.compat import kl16
    from unified_video_action.compat.tensors import require_finite, require_same, shapes_of
    from unified_video_action.vae.kl import build_network

    converted = kl16.to_diffusers(state)
    with torch.device("meta"):
        expected = shapes_of(build_network().state_dict())
    require_same(expected, shapes_of(converted), source)
    require_finite(converted, source)
    save(converted, path)


def write_start(folder: Path, state: dict[str, Any], spec: Any, network: dict[str, Any], source: str) -> None:
    """The averaged weights that a new model of these sizes can start from."""
    from unified_video_action.compat.reference_names import matching
    from unified_video_action.compat.tensors import require_finite
    from unified_video_action.messages import few

    found = matching(state, model_shapes(spec, network), source)
    require_finite(found.tensors, source)
    folder.mkdir()
    save(found.tensors, folder / "ema.safetensors")
    missing = sorted({".".join(name.split(".")[: 2 if name.startswith("mar.") else 1]) for name in found.kept})
    log.info("%d tensors taken; not in this model: %s", len(found.tensors), few(found.left, 20))
    log.info("start a run with init_from=OUT 'init_allow_missing=[%s]'", ",".join(missing))


def write_policy(folder: Path, published: Any, config: dict[str, Any], source: str) -> None:
    """A checkpoint folder."""
    from omegaconf import OmegaConf

    from unified_video_action.compat.reference_names import to_ours
    from unified_video_action.compat.tensors import require_finite
    from unified_video_action.dataset.normalizer import Normalizer
    from unified_video_action.messages import few

    expected = model_shapes(published.spec, config["model"])
    folder.mkdir()
    for name, state in published.weights.items():
        require_finite(state, source)
        save(to_ours(state, expected, f"{source} ({name})"), folder / f"{name}.safetensors")
    write_codec(folder / "codec.safetensors", published.codec, f"{source} (vae_model)")
    fields = published.normalizer
    if fields and "action" not in fields:
        raise ValueError(f"{source}: its normaliser has no field for actions, only {few(fields)}")
    normalizer = Normalizer(fields) if fields else Normalizer.identity(identity_fields(config))
    (folder / "normalizer.json").write_text(normalizer.to_json())
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))


def identity_fields(config: dict[str, Any]) -> dict[str, int]:
    meta = config["task"]["shape_meta"]
    states = {name: entry["shape"][0] for name, entry in meta["obs"].items() if entry["type"] == "low_dim"}
    return {"action": meta["action"]["shape"][0], **states}


def configuration(published: Any, source: str) -> dict[str, Any]:
    """Our configuration for a published policy; one of the same sizes as PushT's keeps its data and simulator."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from unified_video_action.compat.published import asking_settings, task_settings
    from unified_video_action.policy.build import model_spec, observation_spec

    name = str(published.settings.get("task", {}).get("name"))[:60]
    name = name if re.fullmatch(r"\w+", name) else "policy"
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        composed = compose(CONFIG, [f"name=uva_{name}", "output_dir=outputs/${name}"])
    config = OmegaConf.to_container(OmegaConf.merge(composed, {"model": published.network}), resolve=True)
    config["policy"] |= asking_settings(published, source)
    observations = observation_spec(config["task"]["shape_meta"], published.spec.horizon)
    theirs, ours = task_settings(published, source), config["task"]["shape_meta"]["obs"]
    if model_spec(config, observations, published.spec.latent) != published.spec or theirs["shape_meta"]["obs"] != ours:
        log.info("%s is not %s: its config.yaml names no data and no simulator", name, CONFIG)
        config["task"] = theirs
    return config


def main() -> None:
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.path.insert(0, str(ROOT))
    try:
        convert(args.source, args.target)
    except (OSError, ValueError) as error:
        place = "" if str(args.source) in str(error) else f"{args.source}: "
        sys.exit(f"convert_checkpoint.py: {place}{error}")


if __name__ == "__main__":
    main()
