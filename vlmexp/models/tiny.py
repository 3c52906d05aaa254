"""The embedded model, without its weights: a Qwen2-VL of 2 M parameters with a vocabulary of its own.

    python -m vlmexp.models.tiny FOLDER [TRAINED]

writes config, tokenizer, chat template and processor to FOLDER, and with them the weights of the model in the folder
TRAINED in bfloat16: the `deployment_model` of `python -m vlmexp experiment=pretrain_tiny`.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from transformers.models.qwen2 import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
VOCABULARY_SIZE = 1024
PATCH_SIZE = 8  # pixels; four patches are merged into one token, so 64x64 pixels are 16 tokens

# The usual 0.02 is for a width of thousands; at a width of 128 it starves the vision tower of signal, and leaves the
# output rows of words that pre-training never shows so much alike that fine-tuning cannot tell them apart.
INITIALIZER_RANGE = 0.08

# Words that get one token each, with and without a space before them; every other text is spelled in bytes and pieces.
WORDS = """
user assistant system answer answers answered question image picture photo video frame briefly describe the a an and or
of in on at to is are was does do did not no yes there this that it its what which where who how many much color colour
shape size position object objects shown present contain contains red green blue yellow teal brown black gray white
orange purple pink circle rectangle triangle square line small large big tall wide top middle bottom left right center
above below between near behind front background light dark one two three four five six seven eight nine ten zero first
second last more less than same different any all some none other with without from for by as man woman boy girl people
person child cat dog horse bird car bus train plane boat bicycle street road building house tree grass sky water sun
table chair food pizza cake plate cup phone computer ball game tennis baseball playing sitting standing walking running
wearing holding looking day night old new open closed full empty number letter word text sign time year name type kind
""".split()

# Qwen2-VL's conversation format without its default system message and without line breaks between turns.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE in which every entry of WORDS is one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = [*WORDS, *(word.capitalize() for word in ("answer", "what", "is", "how", "describe", "the", "a"))]
    bpe.train_from_iterator([text for word in words for text in (word, f" {word}")], trainer)
    state = json.loads(bpe.to_str())["model"]
    vocab = state["vocab"] | {token: len(state["vocab"]) + n for n, token in enumerate(SPECIAL_TOKENS)}
    merges: Any = [tuple(merge) for merge in state["merges"]]
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=4096,
    )


def config(text: Qwen2Tokenizer) -> Qwen2VLConfig:
    """4 vision layers and 4 text layers of width 128."""
    ids: Any = {token: text.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    return Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "initializer_range": INITIALIZER_RANGE,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 4,
            "embed_dim": 128,
            "hidden_size": 128,
            "num_heads": 4,
            "mlp_ratio": 3,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": INITIALIZER_RANGE,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def processor() -> Qwen2VLProcessor:
    """Qwen2-VL's own processor at this model's patch size; images of 64x64 up to 512x512 pixels keep their size."""
    sizes: Any = {"patch_size": PATCH_SIZE, "merge_size": 2, "temporal_patch_size": 2}
    limits: Any = {"shortest_edge": 32 * 32, "longest_edge": 512 * 512}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes, size=limits),
        tokenizer=tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**sizes, size=limits),
        chat_template=CHAT_TEMPLATE,
    )


def write(folder: Path) -> None:
    """Write everything but the weights to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = processor()
    parts.save_pretrained(folder)
    model_config = config(parts.tokenizer)
    model_config.architectures = ["Qwen2VLForConditionalGeneration"]
    model_config.save_pretrained(folder)


def write_weights(trained: Path, folder: Path) -> None:
    """Copy the weights of a trained model to `folder` in bfloat16."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(trained, dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        shutil.copy(Path(temporary) / "model.safetensors", folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    if len(sys.argv) > 2:
        write_weights(Path(sys.argv[2]), Path(sys.argv[1]))
