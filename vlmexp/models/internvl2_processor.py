"""The processor of InternVL2, put together from what the Hub's repository holds: a SentencePiece model and a config.

Source: conversation.py (template `internlm2-chat`), `chat` in modeling_internvl_chat.py and the model card's
`dynamic_preprocess` of OpenGVLab/InternVL2-2B.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transformers import AddedToken, AutoConfig, InternVLProcessor, InternVLVideoProcessor, LlamaTokenizer
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_sentencepiece_available

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]

# The end of a turn ends an answer; SentencePiece's own </s> never appears in a conversation and serves as padding.
# <video> is in no published vocabulary: the processor replaces it by frames before the tokenizer sees the text.
TOKENS = {
    "bos_token": "<s>",
    "eos_token": "<|im_end|>",
    "pad_token": "</s>",
    "unk_token": "<unk>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
TOKENIZER_OPTIONS: dict[str, Any] = {"legacy": False, "add_prefix_space": False, "add_bos_token": True}

SYSTEM_MESSAGE = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "  # noqa: RUF001 (its own commas)
    "是一个有用无害的人工智能助手。"
)

# ChatML without line breaks between turns. A conversation without a system message, or with an empty one, gets the
# model's own. An image comes with a line break after it, as `chat` puts it before a question.
CHAT_TEMPLATE = (
    "{% macro text(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% elif part['type'] == 'video' %}<video>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
    "{% if not messages or messages[0]['role'] != 'system' or not messages[0]['content'] %}"
    "<|im_start|>system\n" + SYSTEM_MESSAGE + "<|im_end|>{% endif %}"
    "{% for message in messages %}{% if message['role'] != 'system' or message['content'] %}"
    "<|im_start|>{{ message['role'] }}\n{{ text(message['content']) }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_NOT_OURS = ("_from_auto", "backend", "trust_remote_code", "use_fast")


class InternVL2ImageProcessor(GotOcr2ImageProcessorPil):
    """Tiles of 448x448 pixels, at most 12, and a thumbnail if there is more than one.

    Exactly the original's pixels. It keeps its own name because GotOcr2ImageProcessorPil is saved without the `Pil`,
    and would come back as the torchvision version, whose pixels differ.
    """

    size = {"height": 448, "width": 448}  # noqa: RUF012 (overrides an attribute that is just so)
    image_mean = IMAGENET_MEAN
    image_std = IMAGENET_STD
    crop_to_patches = True
    min_patches = 1
    max_patches = 12


class InternVL2Processor(InternVLProcessor):
    """InternVLProcessor that can be loaded from the Hub's repository, which has no processor."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load what `save_pretrained` wrote, or put a processor together from the Hub's files.

        Options of the image processor (`max_patches`), of the processor (`chat_template`, `image_seq_length`) and of
        the tokenizer can be given by name.

        Raises:
            OSError: there is neither.
            ImportError: sentencepiece is not installed.
            ValueError: the Hub's config asks for another prompt or tiling than InternVL2's.
        """
        where = {name: kwargs[name] for name in _WHERE if kwargs.get(name) is not None}
        if _optional_file(pretrained_model_name_or_path, "processor_config.json", where) is not None:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in (*_WHERE, *_NOT_OURS)}
        config = AutoConfig.from_pretrained(pretrained_model_name_or_path, **where)
        own = {name: kwargs.pop(name) for name in ("chat_template", "image_seq_length") if name in kwargs}
        image_names = InternVL2ImageProcessor.valid_kwargs.__annotations__
        image_options = {name: kwargs.pop(name) for name in list(kwargs) if name in image_names}
        image_processor = InternVL2ImageProcessor(**{**_image_options(config), **image_options})
        video_options: dict[str, Any] = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
        return cls(
            image_processor,
            load_tokenizer(pretrained_model_name_or_path, **{**kwargs, **where}),
            InternVLVideoProcessor(size=dict(image_processor.size), **video_options),
            **{"image_seq_length": config.image_seq_length, "chat_template": CHAT_TEMPLATE, **own},
        )


def load_tokenizer(name: Any, **options: Any) -> LlamaTokenizer:
    """The tokenizer of the Hub's repository `name` (an id or a folder), from its `tokenizer.model`.

    Raises:
        OSError: there is no such repository, or it holds no tokenizer.
        ImportError: sentencepiece is not installed.
    """
    where = {key: options[key] for key in _WHERE if options.get(key) is not None}
    published = _published_tokens(name, where)
    if _optional_file(name, "tokenizer.json", where) is None and not is_sentencepiece_available():
        raise ImportError(f"The tokenizer of {name} is a SentencePiece model: pip install sentencepiece protobuf")
    tokenizer = LlamaTokenizer.from_pretrained(name, **{**TOKENIZER_OPTIONS, **TOKENS, **options})
    if any(tokenizer.convert_tokens_to_ids(token) != index for index, token in published.items()):
        tokenizer = _with_published_tokens(tokenizer, published)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _published_tokens(name: Any, where: Mapping[str, Any]) -> dict[int, str]:
    """Ids of the tokens that the Hub's tokenizer_config.json adds to the SentencePiece model; empty without one."""
    path = _optional_file(name, "tokenizer_config.json", where)
    if path is None:
        return {}
    with open(path, encoding="utf-8") as file:
        added = json.load(file).get("added_tokens_decoder", {})
    return {int(index): token["content"] for index, token in sorted(added.items(), key=lambda item: int(item[0]))}


def _with_published_tokens(tokenizer: LlamaTokenizer, published: Mapping[int, str]) -> LlamaTokenizer:
    """The tokenizer with each published token at its id.

    A SentencePiece model may hold placeholders ([UNUSED_TOKEN_145]) where <|im_end|> and the others belong.
    LlamaTokenizer leaves them there and counts the real ones on from the vocabulary's end, where no weights are.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    by_id = {index: piece for piece, index in model["vocab"].items()}
    by_id.update({index: token for index, token in published.items() if index in by_id})
    vocab = {piece: index for index, piece in by_id.items()}
    merges = [tuple(pair) for pair in model["merges"] if "".join(pair) in vocab]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return LlamaTokenizer(
        vocab=vocab,
        merges=merges,
        **TOKENIZER_OPTIONS,
        **special,
        added_tokens_decoder={
            index: AddedToken(token, special=True, normalized=False) for index, token in published.items()
        },
        extra_special_tokens=[token for token in published.values() if token not in special.values()],
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
    )


def _image_options(config: Any) -> dict[str, Any]:
    """Tiling as the Hub's config.json asks for it.

    Raises:
        ValueError: it asks for another prompt or tiling than InternVL2's.
    """
    side = config.vision_config.image_size[0]
    hub = getattr(config, "hub_config", None) or {}
    for name, known in (("template", "internlm2-chat"), ("use_thumbnail", True), ("pad2square", False)):
        if (value := hub.get(name, known)) != known:
            raise ValueError(f"config.json: {name} is {value}; only {known} is supported here.")
    return {
        "size": {"height": side, "width": side},
        "crop_to_patches": hub.get("dynamic_image_size", True),
        "min_patches": hub.get("min_dynamic_patch", 1),
        "max_patches": hub.get("max_dynamic_patch", 12),
    }


def _optional_file(name: Any, file: str, where: Mapping[str, Any]) -> str | None:
    found = cached_file(name, file, **where, _raise_exceptions_for_missing_entries=False)
    return None if found is None else str(found)


def plain_processor(processor: InternVLProcessor) -> InternVLProcessor:
    """The same processor in classes of transformers, to be read without this module."""
    options = processor.image_processor.to_dict()
    options.pop("image_processor_type", None)
    return InternVLProcessor(
        GotOcr2ImageProcessorPil(**options),
        processor.tokenizer,
        processor.video_processor,
        image_seq_length=processor.image_seq_length,
        chat_template=processor.chat_template,
    )
