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

from vlmexp.errors import UserError, closest

_FIELD = re.compile(r"\{(\w+)\}")
_MARK, _END = "\ue000", "\ue001"  # private-use characters: no tokenizer's or template's own


@dataclass(frozen=True)
class MessagePart:
    """Text with `{field}` places, or an image."""

    type: str
    text: str = ""


@dataclass(frozen=True)
class ChatMessage:
    """What a role says."""

    role: str
    parts: tuple[MessagePart, ...]


class PromptTemplate:
    """Renders an example's fields to the text that the processor takes, up to where the answer begins.

    Args:
        processor: its chat template is used, and its special tokens are kept out of the fields.
        messages: the conversation; the last message is the assistant's and holds the answer.
        system_prompt: the value of `{system_prompt}`.
        roles: names of the fields that an example has.

    Raises:
        UserError: a message names a field that there is not, or the processor has no chat template.
    """

    def __init__(
        self, processor: ProcessorMixin, messages: Sequence[ChatMessage], system_prompt: str, roles: Sequence[str]
    ) -> None:
        self.processor = processor
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
        if getattr(processor, "chat_template", None) is None:
            raise UserError(f"The {type(processor).__name__} of this checkpoint has no chat template.")
        special = sorted(special_strings(processor), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self._rendered: dict[int, str] = {}

    def render(self, fields: Mapping[str, str], images: int) -> str:
        """The prompt of an example with so many images."""
        text = self._template(images)
        values = {**fields, "system_prompt": self.system_prompt}
        return re.sub(f"{_MARK}(\\w+){_END}", lambda match: self.plain(values[match[1]]), text)

    def answer(self, fields: Mapping[str, str], answer: str) -> str:
        """The text that the model should say."""
        values = {**fields, "system_prompt": self.system_prompt, "answer": answer}
        return "".join(
            _FIELD.sub(lambda match: self.plain(values[_role(match[1])]), part.text) for part in self.messages[-1].parts
        )

    @property
    def media_first(self) -> bool:
        """Whether nothing that differs between questions on one image stands before the image."""
        seen = False
        for message in reversed(self.messages[:-1]):
            for part in reversed(message.parts):
                if part.type == "image":
                    seen = True
                elif seen and any(_role(name) != "system_prompt" for name in _FIELD.findall(part.text)):
                    return False
        return seen

    def plain(self, text: str) -> str:
        """The text with a space inside every special token, so that the tokenizer reads it as text."""
        text = text.replace(_MARK, "").replace(_END, "")
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text) if self._special else text

    def _template(self, images: int) -> str:
        if images not in self._rendered:
            conversation: list[dict[str, Any]] = []
            for message in self.messages[:-1]:
                content: list[dict[str, str]] = []
                for part in message.parts:
                    if part.type == "image":
                        content += [{"type": "image"}] * images
                    elif marked := _FIELD.sub(lambda match: self._place(_role(match[1])), part.text):
                        content.append({"type": "text", "text": marked})
                conversation.append({"role": message.role, "content": content})
            self._rendered[images] = self.processor.apply_chat_template(
                conversation, add_generation_prompt=True, tokenize=False
            )
        return self._rendered[images]

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
