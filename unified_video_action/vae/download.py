"""Finding the weights of pretrained codecs: a path, the data folder, or the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

KL16_URL = "https://www.dropbox.com/scl/fi/hhmuvaiacrarfg28qxhwz/kl16.ckpt?rlkey=l44xipsezc8atcffdp4q7mwmh&dl=1"
TAEF2_REPOSITORY, TAEF2_FILE = "madebyollin/taef2", "taef2.safetensors"
TAEF2_URL = f"https://huggingface.co/{TAEF2_REPOSITORY}/resolve/main/{TAEF2_FILE}"


def in_data_folder(*names: str) -> Path | None:
    """The first of `names` that exists in `${UVA_DATA_DIR}/vae`, or None."""
    folder = os.environ.get("UVA_DATA_DIR")
    paths = [Path(folder) / "vae" / name for name in names] if folder else []
    return next((path for path in paths if path.exists()), None)


def missing(codec: str, looked_for: str | Path, url: str) -> FileNotFoundError:
    """The error to raise when a codec's weights are nowhere: path, public home, and the options that help."""
    return FileNotFoundError(
        f"no weights for the {codec} codec: {looked_for} does not exist. Download {url} and name the file with "
        f"vae.weights=PATH, or put it into $UVA_DATA_DIR/vae; vae.weights=random starts from random weights."
    )


def from_hub(codec: str, repository: str, filename: str) -> Path:
    """Download (once; cached) a file from the Hugging Face hub. Raises FileNotFoundError when it cannot be had."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, filename))
    except (OSError, ValueError) as error:  # offline, no such file, or a read-only cache
        url = f"https://huggingface.co/{repository}/resolve/main/{filename}"
        raise missing(codec, f"{filename} in the Hugging Face cache ({error})", url) from error
