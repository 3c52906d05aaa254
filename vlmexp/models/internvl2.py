"""InternVL2 (OpenGVLab/InternVL2-2B, model type `internvl_chat`) in transformers' own InternVL and Llama classes.

The Hub's repository holds remote code and no class of transformers. Importing this module registers one, so that

    AutoModelForImageTextToText.from_pretrained(folder)
    AutoProcessor.from_pretrained(folder)

work on a folder in the Hub's format without remote code. Names and layout of the weights are converted while loading
and converted back while saving, by transformers itself.

Source: modeling_internvl_chat.py, modeling_intern_vit.py and modeling_internlm2.py of OpenGVLab/InternVL2-2B.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLModel,
    InternVLProcessor,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, ConversionOps, WeightConverter, WeightRenaming

from vlmexp.files import write_json
from vlmexp.models.internvl2_config import MODEL_TYPE, InternVL2Config, hub_config
from vlmexp.models.internvl2_processor import InternVL2ImageProcessor, InternVL2Processor, plain_processor


class SplitPackedQKV(ConversionOps):
    """InternLM2's `wqkv` to q, k and v.

    Its rows are (kv_head, group + 2, head_dim): for each key-value head its `group` query heads, its key, its value.
    """

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        packed = _single(next(iter(input_dict.values())))
        kv_heads, group = _heads(kwargs["config"])
        packed = packed.unflatten(0, (kv_heads, group + 2, -1))
        parts = packed[:, :group].flatten(0, 2), packed[:, group].flatten(0, 1), packed[:, group + 1].flatten(0, 1)
        return dict(zip(target_patterns, (part.contiguous() for part in parts), strict=True))

    @property
    def reverse_op(self) -> ConversionOps:
        return PackQKV()


class PackQKV(ConversionOps):
    """The inverse of SplitPackedQKV."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        q, k, v = (_single(input_dict[pattern]) for pattern in source_patterns)
        kv_heads, group = _heads(kwargs["config"])
        parts = (q.unflatten(0, (kv_heads, group, -1)), *(part.unflatten(0, (kv_heads, 1, -1)) for part in (k, v)))
        return {target_patterns[0]: torch.cat(parts, dim=1).flatten(0, 2).contiguous()}

    @property
    def reverse_op(self) -> ConversionOps:
        return SplitPackedQKV()


def _single(tensors: Any) -> torch.Tensor:
    return tensors[0] if isinstance(tensors, list) else tensors


def _heads(config: Any) -> tuple[int, int]:
    """Number of key-value heads, and of query heads for each of them."""
    text = config.get_text_config()
    return text.num_key_value_heads, text.num_attention_heads // text.num_key_value_heads


def weight_conversions() -> list[WeightRenaming | WeightConverter]:
    """From the Hub's names to those of InternVLForConditionalGeneration; transformers derives the way back."""
    renamings = {
        r"^vision_model\.embeddings\.class_embedding": "model.vision_tower.embeddings.cls_token",
        r"^vision_model\.embeddings\.position_embedding": "model.vision_tower.embeddings.position_embeddings",
        r"^vision_model\.embeddings\.patch_embedding\.": "model.vision_tower.embeddings.patch_embeddings.projection.",
        r"^vision_model\.encoder\.layers\.": "model.vision_tower.encoder.layer.",
        r"\.attn\.proj\.": ".attention.projection_layer.",
        r"\.attn\.q_norm\.": ".attention.q_norm.",
        r"\.attn\.k_norm\.": ".attention.k_norm.",
        r"\.norm1\.": ".layernorm_before.",
        r"\.norm2\.": ".layernorm_after.",
        r"\.ls1": ".lambda_1",
        r"\.ls2": ".lambda_2",
        r"^mlp1\.0\.": "model.multi_modal_projector.layer_norm.",
        r"^mlp1\.1\.": "model.multi_modal_projector.linear_1.",
        r"^mlp1\.3\.": "model.multi_modal_projector.linear_2.",
        r"^language_model\.output\.": "lm_head.",
        r"^language_model\.model\.tok_embeddings\.": "model.language_model.embed_tokens.",
        r"^language_model\.model\.norm\.": "model.language_model.norm.",
        r"^language_model\.model\.layers\.": "model.language_model.layers.",
        r"\.attention\.wo\.": ".self_attn.o_proj.",
        r"\.feed_forward\.w1\.": ".mlp.gate_proj.",
        r"\.feed_forward\.w2\.": ".mlp.down_proj.",
        r"\.feed_forward\.w3\.": ".mlp.up_proj.",
        r"\.attention_norm\.": ".input_layernorm.",
        r"\.ffn_norm\.": ".post_attention_layernorm.",
    }
    heads = ("q_proj", "k_proj", "v_proj")
    return [
        *(WeightRenaming(source, target) for source, target in renamings.items()),
        WeightConverter(".attn.qkv.", [f".attention.{head}." for head in heads], operations=[Chunk(dim=0)]),
        WeightConverter(".attention.wqkv.", [f".self_attn.{head}." for head in heads], operations=[SplitPackedQKV()]),
    ]


class InternVL2Model(InternVLModel):
    """InternVLModel under a name of its own: by the parent's name transformers would add renamings of other models."""

    config_class = InternVL2Config


class InternVL2ForConditionalGeneration(InternVLForConditionalGeneration):
    """InternVLForConditionalGeneration that reads and writes weights under the Hub's names."""

    config_class = InternVL2Config
    config: InternVL2Config

    def __init__(self, config: InternVL2Config) -> None:
        super(InternVLForConditionalGeneration, self).__init__(config)
        text = config.get_text_config()
        self.model = InternVL2Model(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        loaded = super().from_pretrained(*arguments, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.generation_config.eos_token_id is None:
            # Without a generation_config.json transformers reads config.json, where the Hub names no end of an answer.
            model.generation_config = GenerationConfig.from_model_config(model.config)
        return loaded


def export_hub(model: InternVL2ForConditionalGeneration, processor: InternVLProcessor, folder: Path) -> None:
    """Write the model as the Hub holds it, with its keys and its config.json, and the processor beside it.

    Untrained weights are bit for bit those that were loaded, if they were loaded in the checkpoint's dtype.

    Raises:
        ValueError: the model was not loaded from the Hub's form.
    """
    config = hub_config(model.config, model.dtype)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_json(folder / "config.json", config)


def export_plain(model: InternVL2ForConditionalGeneration, processor: InternVLProcessor, folder: Path) -> str:
    """Write the model as plain `internvl` with a plain InternVLProcessor: transformers alone loads both.

    transformers writes down no image backend and takes torchvision when it loads; its pixels differ (on noise by 0.26
    after normalisation) from those that the model was trained on. AutoProcessor hands `backend="pil"` on to the video
    processor, which has no such version, so the right pixels take one more line:

        processor = AutoProcessor.from_pretrained(folder)
        processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")

    Returns:
        The backend, "pil".
    """
    values = model.config.to_dict()
    for name in ("model_type", "architectures", "hub_config", "transformers_version"):
        values.pop(name, None)
    with torch.device("meta"):
        plain = InternVLForConditionalGeneration(InternVLConfig(**values))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = copy.deepcopy(model.generation_config)
    plain.save_pretrained(folder)
    plain_processor(processor).save_pretrained(folder)
    return "pil"


def _register() -> None:
    """Make the Auto classes know `internvl_chat`; on a second import nothing changes."""
    AutoConfig.register(MODEL_TYPE, InternVL2Config, exist_ok=True)
    AutoModelForImageTextToText.register(InternVL2Config, InternVL2ForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(InternVL2Config, InternVL2Processor, exist_ok=True)
    # There is one image processor: whichever backend is asked for, the model gets the pixels that it was trained on.
    backends: dict[str, type] = {"pil": InternVL2ImageProcessor, "torchvision": InternVL2ImageProcessor}
    AutoImageProcessor.register(InternVL2Config, image_processor_classes=backends, exist_ok=True)
    register_checkpoint_conversion_mapping(MODEL_TYPE, weight_conversions(), overwrite=True)


_register()
