"""CLIP text features, against open_clip's own full model with small random weights."""

from pathlib import Path

import pytest
import torch
from open_clip import CLIP, SimpleTokenizer
from safetensors.torch import load_file, save_file

from unified_video_action.text.clip import URL, ClipText

TEXTS = ["push the T onto its goal", "put both moka pots on the stove"]


@pytest.fixture(scope="module")
def clip() -> CLIP:
    """CLIP with a narrow text tower and the real vocabulary."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    return CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()


@pytest.fixture(scope="module")
def weights(clip: CLIP, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_file(clip.state_dict(), path)
    return str(path)


@torch.no_grad()
def reference(clip: CLIP, texts: list[str]) -> torch.Tensor:
    return clip.encode_text(SimpleTokenizer()(texts, context_length=77))


def test_features_equal_the_full_models(clip: CLIP, weights: str) -> None:
    features = ClipText(weights).encode(TEXTS)
    assert features.shape == (2, 24) and features.dtype == torch.float32
    torch.testing.assert_close(features, reference(clip, TEXTS), rtol=1e-5, atol=1e-5)


def test_long_instructions_are_cut(clip: CLIP, weights: str) -> None:
    long = " ".join(["push"] * 60)
    cut = " ".join(["push"] * 28)  # 30 tokens less the start and the end
    features = ClipText(weights).encode([long, cut])
    torch.testing.assert_close(features[0], features[1])
    torch.testing.assert_close(features[1:], reference(clip, [cut]), rtol=1e-5, atol=1e-5)


def test_features_that_are_known_need_no_weights(weights: str, tmp_path: Path) -> None:
    cache = tmp_path / "features" / "text.json"
    first = ClipText(weights, cache=str(cache))
    features = first.encode(TEXTS)
    assert [file.name for file in cache.parent.iterdir()] == [cache.name]
    sent = ClipText("/nowhere")
    sent.remember(first.to_json(TEXTS), "instructions.json")
    for again in (ClipText("/nowhere", cache=str(cache)), sent):
        assert torch.equal(again.encode([TEXTS[1], TEXTS[0], TEXTS[1]]), features[[1, 0, 1]])
        with pytest.raises(FileNotFoundError, match="/nowhere"):
            again.encode(["something new"])


def test_a_cache_of_other_weights_is_refused(weights: str, tmp_path: Path) -> None:
    cache = tmp_path / "text.json"
    ClipText(weights, cache=str(cache)).encode(TEXTS)
    other = {name: tensor * 1.1 for name, tensor in load_file(weights).items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other CLIP weights"):
        ClipText(str(tmp_path / "other.safetensors"), cache=str(cache)).encode(["something new"])
    with pytest.raises(ValueError, match="tokens=20"):
        ClipText(weights, tokens=20, cache=str(cache))


def test_missing_weights_name_the_file_the_url_and_the_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for weights, file in ((None, ""), (str(tmp_path / "absent.safetensors"), "absent.safetensors")):
        with pytest.raises(FileNotFoundError, match=rf"{file}.*{URL}.*text\.weights"):
            ClipText(weights).encode(TEXTS)


def test_damaged_weights_name_the_tensor(weights: str, tmp_path: Path) -> None:
    tensors, name = load_file(weights), "transformer.resblocks.1.mlp.c_fc.weight"
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, tmp_path / "damaged.safetensors")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        ClipText(str(tmp_path / "damaged.safetensors")).encode(TEXTS)
