"""The families' published files with random weights of tiny layers: real vocabulary, tokenizer, template and geometry.

The files are others' and no part of this project. `../shared/real` beside the checkout holds them with the script that
adds the tokenizers, which come from npm.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoConfig, AutoModelForImageTextToText

import vlmexp.models  # noqa: F401 (registers InternVL2 and Phi-3-Vision)
from tests.conftest import ROOT
from vlmexp.files import digest, file_digest

REAL = ROOT.parent / "shared" / "real"

TEXT = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
QWEN = {**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
GEMMA = {**TEXT, "head_dim": 16}

# What is smaller than in the published config.json; vocabulary, patch and image sizes are as published.
TINY: dict[str, dict[str, Any]] = {
    "qwen2vl": {
        **QWEN, "vision_config": {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 1, "hidden_size": 32},
    },
    "qwen25vl": {
        **QWEN,
        "vision_config": {
            "depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
    },
    "qwen3vl": {
        "text_config": {
            **TEXT, "head_dim": 16,
            "rope_scaling": {"rope_type": "default", "mrope_section": [3, 3, 2], "mrope_interleaved": True},
        },
        "vision_config": {
            "depth": 3, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
            "deepstack_visual_indexes": [0, 1],
        },
    },
    "llava15": {"text_config": TEXT, "vision_config": VISION},
    "llava_next": {"text_config": TEXT, "vision_config": VISION},
    "llava_onevision": {"text_config": TEXT, "vision_config": VISION},
    "internvl2": {"llm_config": TEXT, "vision_config": VISION},
    "internvl3": {"text_config": TEXT, "vision_config": VISION},
    "paligemma": {"hidden_size": 32, "projection_dim": 32, "text_config": GEMMA, "vision_config": VISION},
    "gemma3": {"text_config": GEMMA, "vision_config": VISION},
    "idefics3": {"text_config": TEXT, "vision_config": VISION},
    "smolvlm": {"text_config": {**TEXT, "head_dim": 16}, "vision_config": VISION},
    "phi3vision": {
        **TEXT, "num_key_value_heads": 2,
        "rope_scaling": {"type": "su", "short_factor": [1.05] * 8, "long_factor": [2.0] * 8},
        "vision_config": {**VISION, "image_size": 336, "patch_size": 14, "projection_dim": 32},
    },
}  # fmt: skip


# As published: the files of that time name an image processor of a name that it no longer has.
OUTDATED = "qwen25vl_feb2025"


def missing() -> str | None:
    """Why there are no published files here; None if there are."""
    if not (REAL / "build.py").exists():
        return f"the published files are not there ({REAL})"
    return None if shutil.which("npm") else "npm, which fetches the tokenizers, is not there"


def published_folders() -> list[str]:
    """Names of the published folders, which are `model` choices with a suffix where there are several forms."""
    return sorted(path.name for path in REAL.iterdir() if path.is_dir()) if REAL.is_dir() else []


def built() -> Path:
    """The folder of the published checkpoints, without weights; built once a machine and version of the files."""
    sources = sorted(path for path in REAL.rglob("*") if path.is_file())
    version = digest([[str(path.relative_to(REAL)), file_digest(path)] for path in sources])[:12]
    folder = Path(tempfile.gettempdir(), f"vlmexp-published-{os.getuid()}-{version}")
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            subprocess.run([sys.executable, REAL / "build.py", unfinished], check=True, capture_output=True)
            unfinished.rename(folder)
    return folder


def readable(published: Path, folder: Path) -> Path:
    """The published folder as the installed transformers reads it.

    That is the folder itself or, where its files name a class that is no more, a copy without that field, which is what
    the framework advises.
    """
    if published.name != OUTDATED:
        return published
    shutil.copytree(published, folder)
    path = folder / "preprocessor_config.json"
    values = json.loads(path.read_text())
    assert values.pop("image_processor_type") == "Qwen2_5_VLImageProcessor"
    path.chmod(0o644)
    path.write_text(json.dumps(values))
    return folder


def family_of(name: str) -> str:
    """The `model` choice whose sizes a published folder shares: `qwen25vl` for `qwen25vl_7b`."""
    return max((family for family in TINY if name.startswith(family)), key=len)


def write_checkpoint(published: Path, folder: Path) -> Path:
    """A published folder with weights of tiny layers; all but config.json and the weights is as published."""
    folder.mkdir(parents=True)
    for path in published.iterdir():
        if path.name not in ("config.json", "model.safetensors.index.json"):
            (folder / path.name).symlink_to(path)
    config = _with(json.loads((published / "config.json").read_text()), TINY[family_of(published.name)])
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.08)
            elif "lambda" in name:  # InternVL's scale of a layer, 1e-5 or so in the beginning
                parameter.fill_(0.5)
    with tempfile.TemporaryDirectory() as written:
        model.save_pretrained(written)
        shutil.move(Path(written, "model.safetensors"), folder)
    return folder


def _with(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The configuration with other values, inner dictionaries included."""
    config = copy.deepcopy(config)
    for name, value in values.items():
        config[name] = _with(config.get(name) or {}, value) if isinstance(value, dict) else value
    return config
