"""Messages to prompt text.

The chat template is rendered once for each shape of a conversation, with markers in place of the fields; an example's
text then replaces its markers. So a brace, a template expression or a special token inside a question is only text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import ProcessorMixin

from vlmexp.collator.answer import AnswerForm, answer_form
from vlmexp.data.example import MEDIA_ROLES
from vlmexp.errors import UserError, closest

_FIELD = re.compile(r"\{(\w+)\}")
_MARK, _END = "\ue000", "\ue001"  # private-use characters: no tokenizer's or template's own


@dataclass(frozen=True)
class MessagePart:
    """Text with `{field}` places, or all of an example's images or videos."""

    type: str
    text: str = ""


@dataclass(frozen=True)
class ChatMessage:
    """What a role says."""

    role: str
    parts: tuple[MessagePart, ...]


class PromptTemplate:
    """Renders an example's fields to the text of a prompt, up to where the answer begins.

    There are two styles. `chat` is the processor's own chat template. `prefix` is PaliGemma's format
    (https://github.com/google-research/big_vision/blob/main/big_vision/configs/proj/paligemma/README.md): media, BOS,
    the texts of the messages, a line break, and then the answer, which alone is read from left to right.

    Args:
        processor: its chat template is used, and its special tokens are kept out of the fields.
        style: chat or prefix.
        messages: the conversation; the last message is the assistant's and holds the answer.
        system_prompt: the value of `{system_prompt}`.
        roles: names of the fields that an example has.

    Raises:
        UserError: a message names a field that there is not, or the processor has no chat template.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        messages: Sequence[ChatMessage],
        system_prompt: str,
        roles: Sequence[str],
        style: str = "chat",
    ) -> None:
        self.processor: Any = processor
        self.is_prefix = style == "prefix"
        self.messages = messages
        self.system_prompt = system_prompt
        for message in messages:
            # The prompt must not hold what it asks for.
            known = [*roles, "system_prompt", *(["answer"] if message is messages[-1] else [])]
            for part in message.parts:
                for name in map(_role, _FIELD.findall(part.text)):
                    if name not in known:
                        raise UserError(
                            f"collator.messages: {{{name}}} is no field of this data set{closest(name, known) or '.'} "
                            f"The fields are: {', '.join(sorted(known))}."
                        )
        if self.is_prefix and any(message.role == "assistant" for message in messages[:-1]):
            raise UserError("collator.messages: model.prompt_style=prefix has room for one answer, which comes last.")
        if not self.is_prefix and getattr(processor, "chat_template", None) is None:
            raise UserError(
                f"The {type(processor).__name__} of this checkpoint has no chat template. Base models have none: "
                "take an instruction-tuned checkpoint, or model.prompt_style=prefix if it is one of PaliGemma's kind."
            )
        special = sorted(special_strings(processor), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self._rendered: dict[tuple[int, int], str] = {}
        self.answer_form = AnswerForm() if self.is_prefix else answer_form(processor, self._special)

    def render(self, fields: Mapping[str, str], images: int, videos: int = 0) -> str:
        """The prompt of an example with so many images and videos."""
        text = self._template(images, videos)
        values = {**fields, "system_prompt": self.system_prompt}
        return re.sub(f"{_MARK}(\\w+){_END}", lambda match: self.plain(values[match[1]]), text)

    def processor_text(self, prompt: str) -> str:
        """A rendered prompt as the processor wants it: PaliGemma's adds BOS and the line break itself."""
        if not self.is_prefix:
            return prompt
        return prompt.replace(self.processor.tokenizer.bos_token, "", 1).removesuffix("\n")

    @property
    def answer_token_type(self) -> int:
        """The token type of an answer, where a model takes types: in a prefix prompt it is read left to right."""
        return 1 if self.is_prefix else 0

    def answer(self, fields: Mapping[str, str], answer: str) -> str:
        """The text that the model should say."""
        values = {**fields, "system_prompt": self.system_prompt, "answer": answer}
        return "".join(
            _FIELD.sub(lambda match: self.plain(values[_role(match[1])]), part.text) for part in self.messages[-1].parts
        )

    @property
    def media_first(self) -> bool:
        """Whether nothing that differs between questions on the same media stands before them."""
        seen = False
        for message in reversed(self.messages[:-1]):
            for part in reversed(message.parts):
                if part.type in MEDIA_ROLES:
                    seen = True
                elif seen and any(_role(name) != "system_prompt" for name in _FIELD.findall(part.text)):
                    return False
        return seen

    def plain(self, text: str) -> str:
        """The text with a space inside every special token, so that the tokenizer reads it as text."""
        text = text.replace(_MARK, "").replace(_END, "")
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text) if self._special else text

    def _template(self, images: int, videos: int) -> str:
        if (images, videos) not in self._rendered:
            rendered = self._prefix(images) if self.is_prefix else self._chat(images, videos)
            self._rendered[images, videos] = rendered
        return self._rendered[images, videos]

    def _prefix(self, images: int) -> str:
        texts = [self._marked(part.text) for message in self.messages[:-1] for part in message.parts]
        media = self.processor.image_token * images
        return media + self.processor.tokenizer.bos_token + " ".join(filter(None, texts)) + "\n"

    def _chat(self, images: int, videos: int) -> str:
        count = {"image": images, "video": videos}
        conversation: list[dict[str, Any]] = []
        for message in self.messages[:-1]:
            content: list[dict[str, str]] = []
            for part in message.parts:
                if part.type in count:
                    content += [{"type": part.type}] * count[part.type]
                elif marked := self._marked(part.text):
                    content.append({"type": "text", "text": marked})
            conversation.append({"role": message.role, "content": content})
        rendered = self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        assert isinstance(rendered, str)
        return rendered

    def _marked(self, text: str) -> str:
        return _FIELD.sub(lambda match: self._place(_role(match[1])), text)

    def _place(self, role: str) -> str:
        # An empty system prompt leaves no empty part behind.
        return "" if role == "system_prompt" and not self.system_prompt else f"{_MARK}{role}{_END}"


def _role(name: str) -> str:
    """`{question}` and `{question_column}` are the same field."""
    return name.removesuffix("_column")


def special_strings(processor: ProcessorMixin) -> set[str]:
    """Every text that tokenizer or processor would read as a control or placeholder token."""
    tokenizer = processor.tokenizer
    found = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    for name in ("image_token", "video_token", "boi_token", "eoi_token"):
        for owner in (processor, tokenizer):
            if isinstance(value := getattr(owner, name, None), str):
                found.add(value)
    return {token for token in found if len(token) > 1}
