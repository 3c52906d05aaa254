"""The tokens that the inference code documented for each family makes of a question about images.

That is the chat template of its processor for most. InternVL2 and Phi-3-Vision have code of their own on the Hub, of
which the few lines about text are written down here, on the bare tokenizers; PaliGemma has a prefix prompt.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

Images = Sequence[Image.Image]


class Reference:
    """The documented tokens of one checkpoint; `before` is what its documentation puts in front of a question.

    Args:
        options: of the processor.
    """

    before = ""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self.processor = AutoProcessor.from_pretrained(folder, **options)

    def prompt(self, question: str, images: Images) -> list[int]:
        raise NotImplementedError

    def answered(self, question: str, images: Images, answer: str) -> list[int]:
        """The prompt with an answer, its end, and whatever a template writes behind that."""
        raise NotImplementedError

    def labels(self, question: str, images: Images, answer: str, end: int) -> list[int]:
        """The tokens of an answer up to its end."""
        prompt, whole = self.prompt(question, images), self.answered(question, images, answer)
        assert whole[: len(prompt)] == prompt
        return whole[len(prompt) : whole.index(end, len(prompt)) + 1]


class ChatReference(Reference):
    """https://huggingface.co/docs/transformers/chat_templating_multimodal."""

    def prompt(self, question: str, images: Images) -> list[int]:
        return self._ids([_asked(question, images)], add_generation_prompt=True)

    def answered(self, question: str, images: Images, answer: str) -> list[int]:
        said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        return self._ids([_asked(question, images), said], add_generation_prompt=False)

    def _ids(self, conversation: list[dict[str, Any]], **options: Any) -> list[int]:
        inputs = self.processor.apply_chat_template(conversation, tokenize=True, return_dict=True, **options)
        return list(inputs["input_ids"][0])


class AppendedReference(ChatReference):
    """A chat template whose finished turn is no continuation of its prompt, or does not end: text is put behind it.

    LLaVA 1.5 (conversation.py of haotian-liu/LLaVA) has learned `ASSISTANT: answer</s>`, LLaVA-OneVision
    `assistant\nanswer<|im_end|>`.
    """

    def answered(self, question: str, images: Images, answer: str) -> list[int]:
        prompt = self.processor.apply_chat_template([_asked(question, images)], add_generation_prompt=True)
        text = f"{prompt}{answer}<|im_end|>" if prompt.endswith("\n") else f"{prompt} {answer}</s>"
        return list(self.processor(text=[text], images=[list(images)] if images else None)["input_ids"][0])


def _asked(question: str, images: Images) -> dict[str, Any]:
    shown = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*shown, {"type": "text", "text": question}]}


class PrefixReference(Reference):
    """https://huggingface.co/google/paligemma-3b-pt-448: images, a prefix, a line break; then the suffix and EOS."""

    before = "answer en "

    def prompt(self, question: str, images: Images) -> list[int]:
        inputs = self.processor(text=["<image>" * len(images) + self.before + question], images=[list(images)])
        return list(inputs["input_ids"][0])

    def answered(self, question: str, images: Images, answer: str) -> list[int]:
        prefix = "<image>" * len(images) + self.before + question
        inputs = self.processor(text=[prefix], images=[list(images)], suffix=[answer], return_tensors="pt")
        return list(inputs["input_ids"][0].tolist())


class InternVL2Reference(Reference):
    """`chat` of modeling_internvl_chat.py with the template internlm2-chat and InternLM2Tokenizer, on SentencePiece."""

    SYSTEM = (
        "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "  # noqa: RUF001
        "是一个有用无害的人工智能助手。"
    )

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
        added = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        self.added = {token["content"]: int(index) for index, token in added.items()}
        self.most_tiles = options.get("max_patches", 12)

    def prompt(self, question: str, images: Images) -> list[int]:
        question = "<image>\n" * len(images) + question
        for image in images:
            tokens = "<IMG_CONTEXT>" * 256 * tiles(image.width, image.height, self.most_tiles)
            question = question.replace("<image>", f"<img>{tokens}</img>", 1)
        text = f"<|im_start|>system\n{self.SYSTEM}<|im_end|><|im_start|>user\n{question}<|im_end|>"
        return [1, *self._ids(f"{text}<|im_start|>assistant\n")]

    def answered(self, question: str, images: Images, answer: str) -> list[int]:
        return [*self.prompt(question, images), *self._ids(f"{answer}<|im_end|>")]

    def _ids(self, text: str) -> list[int]:
        parts = re.split(f"({'|'.join(map(re.escape, self.added))})", text)
        ids = [[self.added[part]] if part in self.added else self.pieces.encode(part) for part in parts if part]
        return [token for part in ids for token in part]


def tiles(width: int, height: int, most: int) -> int:
    """`dynamic_preprocess` of the model card: how many tiles of 448 pixels, and one more for the whole if several."""
    grids = sorted({(i, j) for n in range(1, most + 1) for i in range(1, n + 1) for j in range(1, n + 1)
                    if 1 <= i * j <= most}, key=lambda grid: grid[0] * grid[1])  # fmt: skip
    best, best_difference = (1, 1), math.inf
    for grid in grids:
        difference = abs(width / height - grid[0] / grid[1])
        if difference < best_difference:
            best, best_difference = grid, difference
        elif difference == best_difference and width * height > 0.5 * 448 * 448 * grid[0] * grid[1]:
            best = grid
    number = best[0] * best[1]
    return number + (number > 1)


class Phi3VisionReference(Reference):
    """`_convert_images_texts_to_inputs` of processing_phi3_v.py, with the image's token instead of minus its number.

    The text before, between and behind images is tokenized piece by piece, each with a `<s>`.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.most_tiles = options.get("num_crops", 16)

    def prompt(self, question: str, images: Images) -> list[int]:
        tags = "".join(f"<|image_{number}|>\n" for number in range(1, len(images) + 1))
        said = [{"role": "user", "content": tags + question}]
        text = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        first, *rest = [self.tokenizer(piece)["input_ids"] for piece in re.split(r"<\|image_\d+\|>", text)]
        for image, piece in zip(images, rest, strict=True):
            first = first + [32044] * phi3_tokens(image.width, image.height, self.most_tiles) + piece
        return list(first)

    def answered(self, question: str, images: Images, answer: str) -> list[int]:
        said = self.tokenizer(answer + "<|end|>", add_special_tokens=False)["input_ids"]
        return [*self.prompt(question, images), *said]


def phi3_tokens(width: int, height: int, most: int) -> int:
    """`HD_transform` and `calc_num_image_tokens` of image_processing_phi3_v.py."""
    long, short = max(width, height), min(width, height)
    ratio, scale = long / short, 1
    while scale * math.ceil(scale / ratio) <= most:
        scale += 1
    scale -= 1
    across, down = scale, math.ceil(int(scale * 336 / ratio) / 336)
    rows = down if width >= height else across
    return (across * down + 1) * 144 + 1 + (rows + 1) * 12


REFERENCES: dict[str, type[Reference]] = {
    "internvl2": InternVL2Reference,
    "llava15": AppendedReference,
    "llava_onevision": AppendedReference,
    "paligemma": PrefixReference,
    "phi3vision": Phi3VisionReference,
}


def reference(family: str, folder: Path, options: Mapping[str, Any]) -> Reference:
    """What makes the documented tokens of a family."""
    return REFERENCES.get(family, ChatReference)(folder, options)
