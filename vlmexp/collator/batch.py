"""The collator: examples to a batch for training or for generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import ProcessorMixin

from vlmexp.collator.boxes import Notation, UnusableBox, View, Views
from vlmexp.collator.encode import Row, append_answer, encode_prompts, sharing_key
from vlmexp.collator.features import StoredFeatures
from vlmexp.collator.media import MediaOptions, limited
from vlmexp.collator.prompt import PromptTemplate
from vlmexp.collator.sharing import BRANCHES, PADDING, pack
from vlmexp.data.example import Example
from vlmexp.errors import UserError


@dataclass(frozen=True)
class Masking:
    """Which tokens carry no loss.

    Attributes:
        pad: padding.
        media: placeholder tokens of images (they are inputs, never something to say).
        prompt: everything that the assistant does not say.
        ignore_index: the label of a token without loss; the loss functions of torch take -100.
    """

    pad: bool = True
    media: bool = True
    prompt: bool = False
    ignore_index: int = -100


@dataclass
class Collator:
    """Turns examples into the model's inputs.

    Called by a DataLoader it gives a training batch, padded on the right:

        input_ids       [batch, tokens]
        attention_mask  [batch, tokens]
        labels          [batch, tokens]  ignore_index where there is no loss
        branch_ids      [batch, tokens]  with `share_images`, see vlmexp.collator.sharing; a row is then an image
        ...             whatever else the processor gives

    Args:
        media: how images and videos are decoded.
        end_of_turn: the token that ends an answer; None: that of the chat template, or else the tokenizer's EOS.
        share_images: put all questions of a batch about the same media behind one prefix.
        boxes: how the model writes boxes.
        features: of pictures that the model need not look at again.
    """

    processor: ProcessorMixin
    template: PromptTemplate
    masking: Masking = field(default_factory=Masking)
    media: MediaOptions = field(default_factory=MediaOptions)
    share_images: bool = False
    end_of_turn: str | None = None
    boxes: Notation = field(default_factory=Notation)
    features: StoredFeatures | None = None

    def __post_init__(self) -> None:
        tokenizer = self.processor.tokenizer
        end = self.end_of_turn or self.template.answer_form.end
        self.end_id: int | None = tokenizer.get_vocab().get(end) if end else tokenizer.eos_token_id
        if self.end_id is None:
            raise UserError(f"model.end_of_turn={self.end_of_turn} is no token of this model's tokenizer.")
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id
        self.media_ids = media_token_ids(self.processor)
        self.media = dataclasses.replace(self.media, by_marks=self.template.places_marks)
        self.views = Views(self.boxes, self.processor)

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        prompts, media = self._encoded(examples, self.share_images)
        token_type = self.template.answer_token_type
        rows = [append_answer(r, self.answer_ids(e), token_type) for r, e in zip(prompts, examples, strict=True)]
        labelled = [(row, self.labels(row)) for row in rows]
        if not self.share_images:
            return self._padded([row for row, _ in labelled], [labels for _, labels in labelled], None) | media
        packed = [pack([labelled[i] for i in group], self.masking.ignore_index) for group in _about_the_same(rows)]
        return self._padded([p[0] for p in packed], [p[1] for p in packed], [p[2] for p in packed]) | media

    def prompts(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """A batch for generation, padded on the left, without answers."""
        rows, media = self._encoded(examples, once_per_media=False)
        return self._padded(rows, None, None, left=True) | media

    def packed_prompts(self, examples: Sequence[Example]) -> tuple[dict[str, torch.Tensor], list[tuple[int, int]]]:
        """A batch of prompts without answers, one row for all questions about the same media, padded on the right.

        Returns:
            the batch with `branch_ids`, and for each example its row and its branch's number, which begins at 1.
        """
        rows, media = self._encoded(examples, once_per_media=True)
        ignored = self.masking.ignore_index
        groups = _about_the_same(rows)
        packed = [pack([(rows[i], [ignored] * len(rows[i])) for i in group], ignored) for group in groups]
        places = {i: (row, place) for row, group in enumerate(groups) for place, i in enumerate(group, start=1)}
        batch = self._padded([p[0] for p in packed], None, [p[2] for p in packed])
        return batch | media, [places[i] for i in range(len(rows))]

    def sharing_key(self, example: Example) -> tuple[str, ...]:
        """Equal for examples that share a row with `share_images`; empty without media."""
        return sharing_key(self.template, example, self.template.prompt(example).text, self.media)

    def answer_ids(self, example: Example) -> list[int]:
        """The answer's tokens and the end of the turn.

        Raises:
            UnusableBox: as `answer_text`.
        """
        return self.text_ids([self.answer_text(example)])[0]

    def text_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """The tokens of each of these texts as an answer, and the end of the turn."""
        found = self.template.answer_form.all_token_ids(self.processor.tokenizer, answers)
        assert self.end_id is not None
        return [[*ids, self.end_id] for ids in found]

    def answer_text(self, example: Example) -> str:
        """What the model should say; boxes in its own notation, of the picture as it sees it.

        Raises:
            UnusableBox: a box is not in its picture, or nothing of the boxes is seen.
        """
        answer, view = example.answer, self.view(example)
        if view is not None and not (answer := view.text(example.boxes)):
            raise UnusableBox(
                f"{example.place('box')}: collator.image_processing.resize_mode={self.media.image.resize_mode} leaves "
                f"nothing of the box {example.answer}: choose keep_aspect or stretch."
            )
        return self.template.answer(example.fields, answer)

    def view(self, example: Example) -> View | None:
        """How the model sees the picture that an example's boxes are in; None without boxes.

        Raises:
            UnusableBox: a box is not in the picture.
        """
        return self.views(example, limited(self.media, example.media_limit).image) if example.boxes else None

    def labels(self, row: Row) -> list[int]:
        """The row's token ids, with `ignore_index` where there is no loss.

        A prefix, which the model reads in both directions, has none whatever the masking: each of its tokens sees what
        it would have to say.
        """
        masking = self.masking
        is_masked = masking.prompt or self.template.is_prefix
        spoken = {position for turn in row.said for position in turn}
        return [
            masking.ignore_index
            if (is_masked and position < row.prompt_length and position not in spoken)
            or (masking.media and token in self.media_ids)
            else token
            for position, token in enumerate(row.sequences["input_ids"])
        ]

    def _encoded(self, examples: Sequence[Example], once_per_media: bool) -> tuple[list[Row], dict[str, torch.Tensor]]:
        return encode_prompts(
            self.processor, self.template, examples, once_per_media, self.media, self.media_ids, self.features
        )

    def _padded(
        self, rows: list[Row], labels: list[list[int]] | None, branches: list[list[int]] | None, left: bool = False
    ) -> dict[str, torch.Tensor]:
        columns = {name: [row.sequences[name] for row in rows] for name in rows[0].sequences}
        fill = dict.fromkeys(columns, 0) | {"input_ids": self.pad_id}
        if labels is not None:
            columns["labels"] = labels
            fill["labels"] = self.masking.ignore_index if self.masking.pad else self.pad_id
        if branches is not None:
            columns[BRANCHES] = branches
            fill[BRANCHES] = PADDING
        width = max(map(len, rows))
        batch = {}
        for name, values in columns.items():
            tensor = torch.full((len(rows), width), fill[name], dtype=torch.long)
            for index, row in enumerate(values):
                start = width - len(row) if left else 0
                tensor[index, start : start + len(row)] = torch.tensor(row)
            batch[name] = tensor
        return batch


def _about_the_same(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of the rows about each set of media, in the order of first appearance; a row without media is alone."""
    groups: dict[tuple[str, ...] | int, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.media_key or index, []).append(index)
    return list(groups.values())


def media_token_ids(processor: ProcessorMixin) -> frozenset[int]:
    """Ids of the placeholder tokens that stand for media."""
    tokenizer = processor.tokenizer
    found = set()
    for owner in (processor, tokenizer):
        for name in ("image_token_id", "video_token_id"):
            if isinstance(value := getattr(owner, name, None), int):
                found.add(value)
        for name in ("image_token", "video_token"):
            if isinstance(token := getattr(owner, name, None), str) and token in tokenizer.get_vocab():
                found.add(tokenizer.convert_tokens_to_ids(token))
    return frozenset(found)
