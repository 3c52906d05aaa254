"""Texts and their images to a padded batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

IMAGE_TOKEN = "<|image|>"
IMAGE_TAG = re.compile(r"<\|image_(\d+)\|>")
# The checkpoint's own template takes text only. This one gives the same text, and an image its token and a line.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image|>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ '<|assistant|>\n' }}{% endif %}"
)


class Phi3VProcessor(ProcessorMixin):
    """Image processor and tokenizer as one.

    Where a text has images, each is marked by one `<|image|>`, or by the original's tags `<|image_1|>`, `<|image_2|>`,
    ... which number the text's images. A mark becomes as many `<|image|>` as the image has tokens, and a `<s>` after
    them: the original tokenizes the text behind every image as a text of its own. In a text with `<|image|>` or without
    images, `<|image_1|>` is only text.

    Raises:
        ValueError: the tokenizer has no `<|image|>`.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        if tokenizer is None or IMAGE_TOKEN not in tokenizer.get_vocab():
            raise ValueError(f"a Phi-3-Vision processor needs a tokenizer with the token {IMAGE_TOKEN}")
        # The checkpoint's tokenizer lets this token swallow the white space behind it, which the original keeps.
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
        self.image_token = IMAGE_TOKEN
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        """A batch for the model.

        Args:
            images: a list of images for each text; or one flat list (or one image), dealt out in the order of marks.
            text: one text or several.
            kwargs: options of the tokenizer (`padding`, `padding_side`, `add_special_tokens`, ...), `num_crops`, and
                `return_tensors`.

        Returns:
            input_ids, attention_mask  [texts, tokens]
            pixel_values, image_sizes  those of all images in the order of their tokens; only if there are images

        Raises:
            ValueError: images and marks do not fit each other, or truncation cut image tokens.
        """
        options = self._merge_kwargs(
            ProcessingKwargs,  # type: ignore[arg-type]
            tokenizer_init_kwargs=self.tokenizer.init_kwargs,
            **kwargs,
        )
        tensor_type = options["text_kwargs"].pop("return_tensors", None)
        image_options = {name: value for name, value in options["images_kwargs"].items() if name != "return_tensors"}
        if text is None:
            return self.image_processor(images, return_tensors=tensor_type, **image_options)
        texts = [text] if isinstance(text, str) else list(text)
        marked = [
            self._marked(one, its_images)
            for one, its_images in zip(texts, self._images_of_texts(images, texts), strict=True)
        ]
        ordered = [image for _, its_images in marked for image in its_images]
        media: dict[str, Any] = {}
        counts: list[int] = []
        if ordered:
            media = dict(self.image_processor(ordered, **image_options))
            counts = [int(count) for count in media.pop("num_img_tokens")]
        rest = iter(counts)
        expanded = [self._expanded(one, [next(rest) for _ in its_images]) for one, its_images in marked]
        encoded = self.tokenizer(expanded, **options["text_kwargs"])
        found = sum(list(row).count(self.image_token_id) for row in encoded["input_ids"])
        if found != sum(counts):
            raise ValueError(f"the images need {sum(counts)} tokens, but truncation left {found}")
        return BatchFeature({**encoded, **media}, tensor_type=tensor_type)

    def _images_of_texts(self, images: Any, texts: list[str]) -> list[list[Any]]:
        """The images of each text."""
        if images is None:
            return [[] for _ in texts]
        if isinstance(images, list | tuple) and (not images or any(isinstance(row, list | tuple) for row in images)):
            rows = [list(row) if isinstance(row, list | tuple) else [row] for row in images] or [[] for _ in texts]
            if len(rows) != len(texts):
                raise ValueError(f"images for {len(rows)} texts, but there are {len(texts)} texts")
            return rows
        flat: Any = make_flat_list_of_images(self.image_processor.fetch_images(images))
        needed = [text.count(IMAGE_TOKEN) or len(set(IMAGE_TAG.findall(text))) for text in texts]
        if sum(needed) != len(flat):
            raise ValueError(f"{len(flat)} images, but the texts have marks for {sum(needed)}")
        rest = iter(flat)
        return [[next(rest) for _ in range(count)] for count in needed]

    def _marked(self, text: str, images: list[Any]) -> tuple[str, list[Any]]:
        """The text with one image token at each place of an image, and the images in the order of these places."""
        tokens = text.count(IMAGE_TOKEN)
        if tokens or not images:
            if tokens != len(images):
                raise ValueError(f"{len(images)} images, but {tokens} times {IMAGE_TOKEN} in the text {text[:80]!r}")
            return text, images
        numbers = [int(number) for number in IMAGE_TAG.findall(text)]
        if set(numbers) != set(range(1, len(images) + 1)):
            raise ValueError(
                f"{len(images)} images need the tags <|image_1|> to <|image_{len(images)}|>, but the text has "
                f"{sorted(set(numbers)) or 'none'}: {text[:80]!r}"
            )
        return IMAGE_TAG.sub(IMAGE_TOKEN, text), [images[number - 1] for number in numbers]

    def _expanded(self, text: str, counts: list[int]) -> str:
        """The text with each image token repeated, and a `<s>` behind."""
        first, *others = text.split(IMAGE_TOKEN) if counts else [text]
        separator = self.tokenizer.bos_token or ""
        pairs = zip(counts, others, strict=True)
        return first + "".join(IMAGE_TOKEN * count + separator + other for count, other in pairs)
