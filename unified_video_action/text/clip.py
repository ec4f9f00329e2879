"""CLIP text features of instructions, computed once per instruction (paper, section III-B).

The text tower of OpenAI's ViT-B/32, in open_clip's layout, without the image tower. The feature is the pooled and
projected one, not normalised: what `get_text_features` returns in transformers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from unified_video_action.compat.tensors import load_exactly, read_safetensors
from unified_video_action.files import written

HUB_REPOSITORY = "timm/vit_base_patch32_clip_224.openai"
HUB_FILE = "open_clip_model.safetensors"
URL = f"https://huggingface.co/{HUB_REPOSITORY}/resolve/main/{HUB_FILE}"
REMEDY = f"Download {URL} and name the file with text.weights=FILE"
HEAD_WIDTH = 64  # of every published CLIP text tower
IMAGE_TENSORS = ("visual.", "logit_scale")  # of the full model's file; the text tower has no use for them


class ClipText:
    """Turns instructions into features and remembers them, in memory and, when `cache` names a file, on disk.

    The weights are read at the first instruction that is not remembered. Options: config/text/clip.yaml.
    """

    def __init__(self, weights: str | None = None, tokens: int = 30, cache: str | None = None) -> None:
        if tokens < 2:
            raise ValueError(f"text.tokens={tokens}: at least 2, for the start and the end of the text")
        self.weights, self.tokens, self.cache = weights, tokens, Path(cache) if cache else None
        self._features: dict[str, Tensor] = {}
        self._key: str | None = None  # of the weights that made the remembered features, where known
        self._tower: nn.Module | None = None
        if self.cache and self.cache.exists():
            self.remember(self.cache.read_bytes(), str(self.cache))

    def encode(self, instructions: Sequence[str]) -> Tensor:
        """Instructions, n strings -> features (n, width), float32; width is 512 for the published weights.

        Raises FileNotFoundError for a new instruction without weights, ValueError for damaged weights, or others than
        made the cache file.
        """
        if isinstance(instructions, str):
            raise ValueError(f"instructions={instructions!r}: expected a list of strings, got one string")
        if new := [text for text in dict.fromkeys(instructions) if text not in self._features]:
            self._add(new)
        return torch.stack([self._features[text] for text in instructions])  # (n, width)

    def to_json(self, instructions: Sequence[str]) -> str:
        """The features of these instructions, for a checkpoint that is to follow them without the tower's weights."""
        features = dict(zip(instructions, self.encode(instructions).tolist(), strict=True))
        return json.dumps({"tokens": self.tokens, "weights": self._key, "features": features})

    def remember(self, text: str | bytes, source: str) -> None:
        """Take in what `to_json` wrote to the file `source`. Raises ValueError for anything else."""
        try:
            known = json.loads(text)
            features = {name: torch.tensor(values) for name, values in known["features"].items()}
            tokens, key = known["tokens"], known.get("weights")
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{source} holds no features of instructions ({repr(error)[:200]})") from error
        if tokens != self.tokens:
            raise ValueError(f"{source} holds features of {tokens} tokens, but text.tokens={self.tokens}")
        self._features |= features
        self._key, self._source = key, source

    @torch.no_grad()
    def _add(self, texts: list[str]) -> None:
        from open_clip import SimpleTokenizer

        if self._tower is None:
            path = Path(self.weights) if self.weights else download()
            if not path.is_file():
                raise FileNotFoundError(f"CLIP text weights {path} are missing. {REMEDY}")
            key = hashlib.sha256(path.read_bytes()).hexdigest()
            if self._key not in (None, key):
                raise ValueError(f"{self._source} holds features of other CLIP weights than {path}: delete it")
            self._key, self._tower = key, build_tower(path, self.tokens)
        ids = SimpleTokenizer()(texts, context_length=self.tokens)  # (n, tokens)
        self._features |= dict(zip(texts, self._tower(ids), strict=True))
        if self.cache:
            with written(self.cache) as partial:
                partial.write_text(self.to_json(list(self._features)))


def download() -> Path:
    """The published weights, which the hub's client keeps (about 600 MB)."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB_REPOSITORY, HUB_FILE))
    except (OSError, ValueError) as error:  # offline, or a read-only cache
        raise FileNotFoundError(f"CLIP text weights could not be downloaded. {REMEDY}") from error


def build_tower(path: Path, tokens: int) -> nn.Module:
    """Text tower with the weights of `path`, its sizes read from the tensors' shapes: ids (n, tokens) -> (n, width)."""
    from open_clip.transformer import QuickGELU, TextTransformer

    tensors = {name: x.float() for name, x in read_safetensors(path).items() if not name.startswith(IMAGE_TENSORS)}
    try:
        vocabulary, width = tensors["token_embedding.weight"].shape
        positions, output = tensors["positional_embedding"], tensors["text_projection"].shape[1]
    except KeyError as error:
        raise ValueError(f"{path} is not a CLIP text tower in open_clip's layout: it has no {error}") from error
    if tokens > len(positions):
        raise ValueError(f"text.tokens={tokens}: the weights in {path} allow {len(positions)}")
    tensors["positional_embedding"] = positions[:tokens]  # (tokens, width)
    tower = TextTransformer(
        context_length=tokens,
        vocab_size=vocabulary,
        width=width,
        heads=width // HEAD_WIDTH,
        layers=len({name.split(".")[2] for name in tensors if name.startswith("transformer.resblocks.")}),
        output_dim=output,
        act_layer=QuickGELU,
    )
    load_exactly(tower, tensors, f"{path} is not a CLIP text tower in open_clip's layout")
    return tower.requires_grad_(False).eval()
