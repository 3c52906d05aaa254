"""The models of the benchmarks: their published configurations, or a small one, with random weights.

    python -m tests.benchmarks.checkpoints small FOLDER [--vocabulary 151936]

All have the embedded model's tokenizer, in which a common word is a token.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from vlmexp.models import tiny

PATCH_SIZE = 14  # pixels, of all published models here
LLAVA_TEMPLATE = tiny.CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>\n")


def small(vocabulary: int) -> tuple[Any, Any]:
    """A Qwen2-VL of 6 million parameters (with 1,024 words); 28 x 28 pixels are a token, as in the published ones."""
    processor = patched(tiny.processor())
    config = tiny.config(processor.tokenizer)
    text, vision = config.text_config, config.vision_config
    text.vocab_size = vocabulary
    text.hidden_size, text.intermediate_size, text.num_attention_heads, text.num_key_value_heads = 256, 768, 8, 4
    vision.embed_dim, vision.hidden_size, vision.num_heads, vision.patch_size = 192, 256, 6, PATCH_SIZE
    return config, processor


def patched(processor: Any) -> Any:
    """The processor with the patches and the limits of Qwen2-VL as published."""
    patches: Any = {"patch_size": PATCH_SIZE, "merge_size": 2, "temporal_patch_size": 2}
    limits: Any = {"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28}
    processor.image_processor = hf.Qwen2VLImageProcessor(**patches, size=limits)
    processor.video_processor = hf.Qwen2VLVideoProcessor(**patches, size=limits)
    return processor


def qwen2vl_2b(vocabulary: int) -> tuple[Any, Any]:
    """The sizes of https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct."""
    processor = patched(tiny.processor())
    config = tiny.config(processor.tokenizer)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    text = {
        "vocab_size": vocabulary, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "bos_token_id": None, "eos_token_id": config.text_config.eos_token_id,
        "pad_token_id": config.text_config.pad_token_id, "tie_word_embeddings": True,
    }  # fmt: skip
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4}
    vision |= {"patch_size": PATCH_SIZE}
    made = hf.Qwen2VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True,
        **{name: getattr(config, name) for name in names},
    )  # fmt: skip
    return made, processor


def llava15_7b(vocabulary: int) -> tuple[Any, Any]:
    """The sizes of https://huggingface.co/llava-hf/llava-1.5-7b-hf."""
    words = tiny.tokenizer()
    ids: Any = {token: words.convert_tokens_to_ids(token) for token in tiny.SPECIAL_TOKENS}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
            patch_size=PATCH_SIZE, projection_dim=768,
        ),
        text_config=hf.LlamaConfig(
            vocab_size=vocabulary, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096, bos_token_id=None,
            eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"],
        ),
        image_token_index=ids["<|image_pad|>"], image_seq_length=576, vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    images = hf.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    processor = hf.LlavaProcessor(
        images, words, patch_size=PATCH_SIZE, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="<|image_pad|>", chat_template=LLAVA_TEMPLATE,
    )  # fmt: skip
    return config, processor


# Of each: the configuration, its published vocabulary, and its class.
MODELS = {
    "small": (small, 1024, hf.Qwen2VLForConditionalGeneration),
    "qwen2vl_2b": (qwen2vl_2b, 151_936, hf.Qwen2VLForConditionalGeneration),
    "llava15_7b": (llava15_7b, 32_064, hf.LlavaForConditionalGeneration),
}


def write(name: str, folder: Path, vocabulary: int | None, device: str = "cpu", shrunk: bool = False) -> None:
    """Write a model with random weights and its processor.

    Args:
        device: where the weights are drawn; on a GPU in bfloat16.
        shrunk: two layers of each tower and a hundredth of the width, to try on a CPU what is meant for a GPU.
    """
    make, published, model_class = MODELS[name]
    config, processor = make(vocabulary or published)
    if shrunk:
        shrink(config)
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        model = model_class._from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters")


def shrink(config: Any) -> None:
    """Two layers of each tower, heads of 32 numbers, and a small vocabulary."""
    text, vision = config.text_config, config.vision_config
    text.vocab_size, text.hidden_size, text.intermediate_size = 1024, 128, 256
    text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads = 2, 4, 2
    text.head_dim = 32
    text.layer_types = None if getattr(text, "layer_types", None) is None else text.layer_types[:2]
    if "mrope_section" in (text.rope_parameters or {}):
        text.rope_parameters = {**text.rope_parameters, "mrope_section": [4, 6, 6]}
    if hasattr(vision, "embed_dim"):
        vision.depth, vision.embed_dim, vision.hidden_size, vision.num_heads = 2, 128, 128, 4
    else:
        vision.hidden_size, vision.intermediate_size = 64, 128
        vision.num_hidden_layers, vision.num_attention_heads = 2, 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shrunk", action="store_true")
    given = parser.parse_args()
    write(given.name, given.folder, given.vocabulary, given.device, given.shrunk)
