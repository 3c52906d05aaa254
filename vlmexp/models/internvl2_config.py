"""The config of InternVL2: the Hub's config.json (model type `internvl_chat`) and InternVLConfig, both ways.

Source: configuration_internvl_chat.py, configuration_intern_vit.py and configuration_internlm2.py of
OpenGVLab/InternVL2-2B.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import InternVLConfig

MODEL_TYPE = "internvl_chat"
LANGUAGE_MODEL = "InternLM2ForCausalLM"
IMAGE_TOKEN_ID = 92546  # <IMG_CONTEXT>
END_OF_TURN_ID = 92542  # <|im_end|>, which the Hub's language model config does not name

# What a field is worth that the Hub's config leaves out: the defaults of InternVisionConfig and InternLM2Config.
VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 48, "num_attention_heads": 25,
    "num_channels": 3, "patch_size": 14, "image_size": 224, "hidden_act": "gelu", "norm_type": "rms_norm",
    "layer_norm_eps": 1e-6, "qkv_bias": False, "qk_normalization": True, "dropout": 0.0, "attention_dropout": 0.0,
    "initializer_range": 0.02,
}  # fmt: skip
TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 103168, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "initializer_range": 0.02,
    "rms_norm_eps": 1e-6, "use_cache": True, "bias": True, "rope_theta": 10000.0, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip


class InternVL2Config(InternVLConfig):
    """InternVLConfig that also reads the Hub's config.json, and keeps it in `hub_config` for the way back."""

    model_type = MODEL_TYPE

    hub_config: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read the Hub's form, told by its `llm_config`, or the form that `save_pretrained` writes.

        Raises:
            ValueError: the Hub's form describes a model of another make.
        """
        values = native_config(config_dict) if "llm_config" in config_dict else config_dict
        return super().from_dict(values, **kwargs)


def native_config(hub: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of InternVLConfig for the content of the Hub's config.json.

    Raises:
        ValueError: the language model is not InternLM2, the pixel shuffle is that of InternVL 1, or the weights hold
            adapters that were never merged.
    """
    llm, vision = dict(hub["llm_config"]), {**VISION_DEFAULTS, **dict(hub["vision_config"])}
    architecture = (llm.get("architectures") or [LANGUAGE_MODEL])[0]
    if architecture != LANGUAGE_MODEL:
        raise ValueError(f"llm_config.architectures is {architecture}; only {LANGUAGE_MODEL} is supported here.")
    if (version := hub.get("ps_version", "v1")) != "v2":
        raise ValueError(f"ps_version is {version}: its pixel shuffle is transposed; only v2 is supported here.")
    for name in ("use_backbone_lora", "use_llm_lora"):
        if hub.get(name):
            raise ValueError(f"{name} is {hub[name]}: the checkpoint holds an adapter; merge it first.")
    image_size = hub.get("force_image_size") or vision["image_size"]
    ratio = float(hub.get("downsample_ratio", 0.5))
    return {
        "vision_config": _vision_config(vision, image_size),
        "text_config": _text_config(llm),
        "downsample_ratio": ratio,
        "image_seq_length": int((image_size // vision["patch_size"]) ** 2 * ratio**2),
        "image_token_id": hub.get("image_token_id", IMAGE_TOKEN_ID),
        "vision_feature_layer": hub.get("select_layer", -1),
        "tie_word_embeddings": bool(llm.get("tie_word_embeddings", False)),
        "dtype": hub.get("torch_dtype"),
        "architectures": ["InternVL2ForConditionalGeneration"],
        "hub_config": copy.deepcopy(dict(hub)),
    }


def _vision_config(vision: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """InternVLVisionConfig fields. InternViT ends without a norm, which is what `use_mean_pooling` stands for."""
    same = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "patch_size",
        "hidden_act", "norm_type", "layer_norm_eps", "attention_dropout", "initializer_range",
    )  # fmt: skip
    return {
        "model_type": "internvl_vision",
        **{name: vision[name] for name in same},
        "image_size": image_size,
        "attention_bias": vision["qkv_bias"],
        "use_qk_norm": vision["qk_normalization"],
        "hidden_dropout_prob": vision["dropout"],
        "use_mean_pooling": True,
        "dtype": vision.get("torch_dtype"),
    }


def _text_config(llm: Mapping[str, Any]) -> dict[str, Any]:
    """LlamaConfig fields: InternLM2 is Llama but for the names of its weights and the packing of q, k and v."""
    values = {**TEXT_DEFAULTS, **{name: value for name, value in llm.items() if value is not None}}
    scaling = dict(values.get("rope_scaling") or {"type": "default"})
    kind = [scaling.pop(name, None) for name in ("type", "rope_type")]
    ends = [values["eos_token_id"], END_OF_TURN_ID] if values["vocab_size"] > END_OF_TURN_ID else values["eos_token_id"]
    same = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
        "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache", "bos_token_id", "pad_token_id",
        "tie_word_embeddings",
    )  # fmt: skip
    return {
        "model_type": "llama",
        **{name: values[name] for name in same},
        "num_key_value_heads": values.get("num_key_value_heads") or values["num_attention_heads"],
        "attention_bias": values["bias"],
        "eos_token_id": ends,
        "rope_parameters": {"rope_type": kind[0] or kind[1], "rope_theta": float(values["rope_theta"]), **scaling},
        "dtype": values.get("torch_dtype"),
    }


def hub_config(config: InternVL2Config, dtype: torch.dtype) -> dict[str, Any]:
    """The Hub's config.json for weights in `dtype`: as it was read, but for what can change in training.

    Raises:
        ValueError: the model was not loaded from the Hub's form, so its original config is not known.
    """
    if config.hub_config is None:
        raise ValueError("The config has no hub_config: only a model loaded from the Hub's form can be written in it.")
    hub = copy.deepcopy(config.hub_config)
    for part in (hub, hub["llm_config"], hub["vision_config"]):
        if part.get("torch_dtype") is not None:
            part["torch_dtype"] = str(dtype).removeprefix("torch.")
    hub["llm_config"]["vocab_size"] = config.get_text_config().vocab_size
    if config.image_token_id != IMAGE_TOKEN_ID:
        hub["image_token_id"] = config.image_token_id
    return hub
