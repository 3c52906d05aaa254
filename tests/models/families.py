"""Tiny checkpoints of every family, made from the real classes with random weights.

A byte-level tokenizer has the family's special tokens, and a chat template the family's shape; both are small, so that
a checkpoint is made and loaded in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from vlmexp.models.internvl2 import InternVL2Config
from vlmexp.models.internvl2_processor import InternVL2ImageProcessor, InternVL2Processor
from vlmexp.models.phi3_vision import Phi3VConfig, Phi3VImageProcessor, Phi3VProcessor

Parts = tuple[hf.PreTrainedConfig, hf.ProcessorMixin]

TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14,
}  # fmt: skip
WORDS = """what color is the shape in image how many are there does contain a is not yes no red green blue teal
circle square triangle rectangle answer en briefly user assistant system"""


def tokenizer(
    special: str,
    named: dict[str, str] | None = None,
    prepend_bos: bool = False,
    added: tuple[str, ...] = (),
    **roles: str,
) -> Any:
    """A byte-level BPE tokenizer with these special tokens; `named` become attributes such as `image_token`.

    Args:
        added: further tokens, which are not special: text that a model reads and says.
    """
    tokens = special.split()
    backend = Tokenizer(models.BPE(unk_token=roles.get("unk_token")))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + len(tokens) + 40,
        initial_alphabet=alphabet,
        special_tokens=tokens,
        show_progress=False,
    )
    backend.train_from_iterator([WORDS], trainer)
    if prepend_bos:
        bos = roles["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B:1", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    rest = [token for token in tokens if token not in {*roles.values(), *(named or {}).values()}]
    more = {"model_specific_special_tokens": named} if named else {}
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, extra_special_tokens=rest, model_max_length=4096, **roles, **more
    )
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return made


def chat_template(
    turn: str,
    image: str,
    end: str,
    video: str = "",
    start: str = "",
    before_text: str = "",
    answer: str = "assistant",
    prompt: str | None = None,
) -> str:
    """A chat template: `turn` opens a message (`{role}` in it), `end` closes it, `image` stands for an image.

    Args:
        prompt: what opens the turn that the model is to speak, if it is not what opens a finished one.
    """
    opened = turn.replace("{role}", "' + role + '")
    generation = prompt or turn.replace("{role}", answer)
    return (
        f"{start}{{% for message in messages %}}"
        f"{{% set role = '{answer}' if message['role'] == 'assistant' else message['role'] %}}{{{{ '{opened}' }}}}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{{{{ '{image}' }}}}{{% elif part['type'] == 'video' %}}{{{{ '{video}' }}}}"
        f"{{% else %}}{{{{ '{before_text}' + part['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}{{{{ '{end}' }}}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '{generation}' }}}}{{% endif %}}"
    )


QWEN_TEMPLATE = chat_template(
    "<|im_start|>{role}\\n", "<|vision_start|><|image_pad|><|vision_end|>", "<|im_end|>\\n",
    "<|vision_start|><|video_pad|><|vision_end|>",
)  # fmt: skip


def _qwen_tokenizer() -> Any:
    return tokenizer(
        "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>",
        added=("<think>", "</think>", "<tool_call>", "</tool_call>"), eos_token="<|im_end|>", pad_token="<|endoftext|>",
    )  # fmt: skip


def _qwen_ids(words: Any) -> dict[str, int]:
    names = {
        "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
    }  # fmt: skip
    return {name: words.convert_tokens_to_ids(token) for name, token in names.items()}


def _rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **more}


def qwen2_vl() -> Parts:
    words = _qwen_tokenizer()
    config = hf.Qwen2VLConfig(
        text_config={**TEXT, "vocab_size": len(words), "bos_token_id": None, "eos_token_id": words.eos_token_id,
                     "rope_parameters": _rope(2, 3, 3)},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2,
                       "patch_size": 14},
        tie_word_embeddings=True, **_qwen_ids(words),
    )  # fmt: skip
    images = hf.Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 84 * 84})
    videos = hf.Qwen2VLVideoProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56})
    return config, hf.Qwen2VLProcessor(images, words, videos, chat_template=QWEN_TEMPLATE)


def qwen2_5_vl() -> Parts:
    words = _qwen_tokenizer()
    config = hf.Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": len(words), "bos_token_id": None, "eos_token_id": words.eos_token_id,
                     "rope_parameters": _rope(2, 3, 3)},
        vision_config={"depth": 2, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "num_heads": 2,
                       "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]},
        tie_word_embeddings=True, **_qwen_ids(words),
    )  # fmt: skip
    images = hf.Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 84 * 84})
    videos = hf.Qwen2VLVideoProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56})
    return config, hf.Qwen2_5_VLProcessor(images, words, videos, chat_template=QWEN_TEMPLATE)


def qwen3_vl() -> Parts:
    words = _qwen_tokenizer()
    config = hf.Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": len(words), "head_dim": 16,
                     "rope_parameters": _rope(3, 3, 2, mrope_interleaved=True)},
        vision_config={"depth": 3, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "num_heads": 2,
                       "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        tie_word_embeddings=True, **_qwen_ids(words),
    )  # fmt: skip
    half = [0.5, 0.5, 0.5]
    images = hf.Qwen2VLImageProcessor(
        patch_size=16, size={"shortest_edge": 64 * 64, "longest_edge": 96 * 96}, image_mean=half, image_std=half
    )
    videos = hf.Qwen3VLVideoProcessor(size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64 * 8})
    return config, hf.Qwen3VLProcessor(images, words, videos, chat_template=QWEN_TEMPLATE)


def _llama_tokenizer() -> Any:
    return tokenizer(
        "<unk> <s> </s> <image> <pad>", prepend_bos=True,
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip


# As the Hub's: nothing ends the assistant's turn.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def llava() -> Parts:
    words = _llama_tokenizer()
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION, image_size=28, projection_dim=32),
        text_config=hf.LlamaConfig(
            **TEXT, vocab_size=len(words) + 1, bos_token_id=1, eos_token_id=2, pad_token_id=words.pad_token_id
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"), image_seq_length=4,
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    images = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return config, hf.LlavaProcessor(
        images, words, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )  # fmt: skip


# As the Hub's: a text follows another without a space, and there is no generation prompt.
MISTRAL_TEMPLATE = (
    "{% for message in messages %}{% set parts = message['content'] %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + parts[0]['text'] + '\n<</SYS>>\n\n' }}{% elif message['role'] == 'user' %}[INST] "
    "{% for part in parts if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in parts if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% else %}{{ ' ' + parts[0]['text'] + '</s> ' }}{% endif %}{% endfor %}"
)
PINPOINTS = [[28, 56], [56, 28], [56, 56]]


def llava_next() -> Parts:
    words = _llama_tokenizer()
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**VISION, image_size=28, projection_dim=32),
        text_config=hf.MistralConfig(
            **TEXT, vocab_size=len(words) + 1, bos_token_id=1, eos_token_id=2, pad_token_id=words.pad_token_id
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"), image_seq_length=4,
        image_grid_pinpoints=PINPOINTS, vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=PINPOINTS
    )
    return config, hf.LlavaNextProcessor(
        images, words, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=MISTRAL_TEMPLATE,
    )  # fmt: skip


def llava_onevision() -> Parts:
    words = tokenizer(
        "<|endoftext|> <|im_start|> <|im_end|> <image> <video>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    pinpoints = [[28, 28], *PINPOINTS]
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=28, vision_use_head=False),
        text_config=hf.Qwen2Config(
            **TEXT, vocab_size=len(words), bos_token_id=None, eos_token_id=words.eos_token_id
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints, vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    images = hf.LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints)
    videos = hf.LlavaOnevisionVideoProcessor(size={"height": 28, "width": 28})
    return config, hf.LlavaOnevisionProcessor(
        images, words, videos, num_image_tokens=4, vision_feature_select_strategy="full",
        chat_template=chat_template(  # as the Hub's: a finished turn does not begin as the prompt for one ends
            "<|im_start|>{role} ", "<image>", "<|im_end|>", "<video>", before_text="\\n",
            prompt="<|im_start|>assistant\\n",
        ),
    )  # fmt: skip


def _internvl_parts(text_class: Any) -> tuple[dict[str, Any], Any]:
    """Configuration and tokenizer; `<video>` is the last token, of which the model has no embedding."""
    words = tokenizer(
        "<|endoftext|> <|im_start|> <|im_end|> <img> </img> <IMG_CONTEXT> <ref> </ref>",
        named={"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
               "video_token": "<video>"},
        eos_token="<|im_end|>", pad_token="<|endoftext|>",
    )  # fmt: skip
    vision = {**VISION, "image_size": [28, 28], "patch_size": [7, 7], "attention_bias": True}
    config = {
        "vision_config": hf.InternVLVisionConfig(**vision),
        "text_config": text_class(
            **TEXT, vocab_size=len(words) - 1, bos_token_id=None, eos_token_id=words.eos_token_id
        ),
        "image_token_id": words.convert_tokens_to_ids("<IMG_CONTEXT>"), "image_seq_length": 4, "downsample_ratio": 0.5,
    }  # fmt: skip
    return config, words


INTERNVL_TEMPLATE = chat_template("<|im_start|>{role}\\n", "<IMG_CONTEXT>\\n", "<|im_end|>\\n", "<video>\\n")
INTERNVL_TILES: dict[str, Any] = {"size": {"height": 28, "width": 28}, "crop_to_patches": True, "max_patches": 4}


def internvl3() -> Parts:
    options, words = _internvl_parts(hf.Qwen2Config)
    images = hf.GotOcr2ImageProcessor(**INTERNVL_TILES)
    videos = hf.InternVLVideoProcessor(size={"height": 28, "width": 28})
    processor = hf.InternVLProcessor(images, words, videos, image_seq_length=4, chat_template=INTERNVL_TEMPLATE)
    return hf.InternVLConfig(**options), processor


def internvl2() -> Parts:
    options, words = _internvl_parts(hf.LlamaConfig)
    images = InternVL2ImageProcessor(**INTERNVL_TILES)
    videos = hf.InternVLVideoProcessor(size={"height": 28, "width": 28})
    processor = InternVL2Processor(images, words, videos, image_seq_length=4, chat_template=INTERNVL_TEMPLATE)
    return InternVL2Config(**options), processor


def paligemma(text_class: Any = hf.GemmaConfig) -> Parts:
    words = tokenizer(
        "<pad> <eos> <bos> <unk>", bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    images = hf.SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(images, words)  # adds its own tokens to the tokenizer
    text = {**TEXT, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": len(words) + 8}
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=28, vision_use_head=False),
        text_config=text_class(**text), image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=64, hidden_size=64,
    )  # fmt: skip
    return config, processor


def paligemma2() -> Parts:
    return paligemma(hf.Gemma2Config)


def gemma3() -> Parts:
    words = tokenizer(
        "<pad> <eos> <bos> <unk> <start_of_turn> <end_of_turn> <start_of_image> <end_of_image> <image_soft_token>",
        named={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
        prepend_bos=True, added=("\n\n", "\n\n\n", "\t", "<table>", "<b>", "</b>"),
        bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip
    ids = words.convert_tokens_to_ids
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=56, vision_use_head=False),
        text_config=hf.Gemma3TextConfig(
            **TEXT, head_dim=16, query_pre_attn_scalar=16, vocab_size=len(words), sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
        ),
        mm_tokens_per_image=4, boi_token_index=ids("<start_of_image>"), eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
    )  # fmt: skip
    images = hf.Gemma3ImageProcessor(size={"height": 56, "width": 56})
    images.image_seq_length = 4
    template = chat_template(
        "<start_of_turn>{role}\\n", "<start_of_image>", "<end_of_turn>\\n", start="{{ bos_token }}", answer="model"
    )
    return config, hf.Gemma3Processor(images, words, image_seq_length=4, chat_template=template)


def _idefics_tokenizer() -> Any:
    rows = " ".join(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5))
    return tokenizer(
        "<|endoftext|> <|im_start|> <end_of_utterance> <fake_token_around_image> <image> <global-img> " + rows,
        bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|endoftext|>", unk_token="<|endoftext|>",
    )  # fmt: skip


def _idefics_config(words: Any) -> dict[str, Any]:
    pad = words.pad_token_id
    return {
        "vision_config": {**VISION, "image_size": 56},
        "text_config": hf.LlamaConfig(
            **TEXT, vocab_size=len(words), pad_token_id=pad, eos_token_id=words.eos_token_id
        ),
        "image_token_id": words.convert_tokens_to_ids("<image>"), "scale_factor": 2, "pad_token_id": pad,
    }  # fmt: skip


# As the Hub's: a space follows the colon where text does, and none in the generation prompt.
IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% if message['content'][0]['type'] == 'text' %}{{ ' ' }}{% endif %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<' + part['type'] + '>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
IDEFICS_SIZES: dict[str, Any] = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}


def idefics3() -> Parts:
    words = _idefics_tokenizer()
    images = hf.Idefics3ImageProcessor(**IDEFICS_SIZES)
    processor = hf.Idefics3Processor(images, words, image_seq_len=4, chat_template=IDEFICS_TEMPLATE)
    return hf.Idefics3Config(**_idefics_config(words)), processor


def smolvlm() -> Parts:
    words = _idefics_tokenizer()
    videos = hf.SmolVLMVideoProcessor(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 56}, num_frames=4, fps=1
    )
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(**IDEFICS_SIZES), words, videos, image_seq_len=4, chat_template=IDEFICS_TEMPLATE
    )
    return hf.SmolVLMConfig(**_idefics_config(words)), processor


def phi3_vision() -> Parts:
    words = tokenizer(
        "<unk> <s> <|endoftext|> <|assistant|> <|end|> <|system|> <|user|> <|image|>",
        prepend_bos=True, added=("</s>",),
        bos_token="<s>", eos_token="<|endoftext|>", pad_token="<|endoftext|>", unk_token="<unk>",
    )  # fmt: skip
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 2048,
        "short_factor": [1.05] * 8, "long_factor": [2.0] * 8,
    }  # fmt: skip
    config = Phi3VConfig(
        vision_config={**VISION, "patch_size": 7, "image_size": 28, "projection_dim": 32},
        **{**TEXT, "num_key_value_heads": 4}, vocab_size=len(words), original_max_position_embeddings=2048,
        pad_token_id=words.pad_token_id, bos_token_id=words.bos_token_id,
        eos_token_id=words.convert_tokens_to_ids("</s>"), rope_parameters=rope,
        image_token_id=words.convert_tokens_to_ids("<|image|>"),
    )  # fmt: skip
    return config, Phi3VProcessor(Phi3VImageProcessor(num_crops=4, num_img_tokens=4, tile_size=28), words)


# Choice of the `model` group -> how its family's parts are made.
FAMILIES: dict[str, Callable[[], Parts]] = {
    "qwen2vl": qwen2_vl,
    "qwen25vl": qwen2_5_vl,
    "qwen3vl": qwen3_vl,
    "llava15": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "internvl2": internvl2,
    "internvl3": internvl3,
    "paligemma": paligemma,
    "paligemma2": paligemma2,
    "gemma3": gemma3,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "phi3vision": phi3_vision,
}


# What generation_config.json says ends an answer; elsewhere it is the tokenizer's EOS.
ENDS = {
    **dict.fromkeys(("qwen2vl", "qwen25vl", "qwen3vl"), ("<|im_end|>", "<|endoftext|>")),
    "internvl2": ("<|im_end|>", "<|im_start|>"),
    "gemma3": ("<eos>", "<end_of_turn>"),
    "idefics3": ("<end_of_utterance>", "<|endoftext|>"),
    "phi3vision": ("</s>",),
}


def write_checkpoint(choice: str, folder: Path) -> Path:
    """A checkpoint with random weights that are large enough for every input to matter."""
    config, processor = FAMILIES[choice]()
    torch.manual_seed(0)
    model = hf.AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.08)
            elif "lambda" in name:  # InternVL's scale of a layer, 1e-5 or so in the beginning
                parameter.fill_(0.5)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    ends = ENDS.get(choice, (processor.tokenizer.eos_token,))
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids(list(ends))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
