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
from vlmexp.collator.said import placeholders
from vlmexp.data.example import MEDIA_ROLES, Example
from vlmexp.data.turns import Turn
from vlmexp.errors import UserError, closest

_FIELD = re.compile(r"\{(\w+)\}")
# Private-use characters: no tokenizer's or template's own. A field, and what the assistant has said before.
_MARK, _END, _SAID, _SAID_END = "\ue000", "\ue001", "\ue004", "\ue005"
_MARKED = re.compile(f"{_MARK}(\\w+){_END}|{_SAID}|{_SAID_END}")
_OURS = str.maketrans(dict.fromkeys((_MARK, _END, _SAID, _SAID_END)))


@dataclass(frozen=True)
class MessagePart:
    """Text with `{field}` places, or all of an example's images or videos."""

    type: str
    text: str = ""


@dataclass(frozen=True)
class ChatMessage:
    """What a role says; the role `conversation` stands for all turns of an example's own conversation."""

    role: str
    parts: tuple[MessagePart, ...]


@dataclass(frozen=True)
class Prompt:
    """The text up to where the answer begins.

    `said` holds the first character, and the one behind the last, of what the assistant has said before: each turn with
    the white space that an answer has before it and the token that ends it.
    """

    text: str
    said: tuple[tuple[int, int], ...] = ()


class PromptTemplate:
    """Renders an example's fields to the text of a prompt, up to where the answer begins.

    There are two styles. `chat` is the processor's own chat template. `prefix` is PaliGemma's format
    (https://github.com/google-research/big_vision/blob/main/big_vision/configs/proj/paligemma/README.md): media, BOS,
    the texts of the messages, a line break, and then the answer, which alone is read from left to right.

    Args:
        processor: its chat template is used, and its special tokens are kept out of the fields.
        style: chat or prefix.
        messages: the conversation; the last message is the assistant's and holds the answer, or it is the place of the
            example's own conversation.
        system_prompt: the value of `{system_prompt}`.
        roles: names of the fields that an example has.

    Raises:
        UserError: a message names a field that there is not, media are shown twice, or the processor has no chat
            template.
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
        _check_media(messages, placeholders(processor))
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
        self.has_conversation = messages[-1].role == "conversation"
        turns = sum(message.role == "assistant" for message in messages)
        if self.is_prefix and (turns > 1 or self.has_conversation):
            raise UserError("collator.messages: model.prompt_style=prefix has room for one answer, which comes last.")
        if not self.is_prefix and getattr(processor, "chat_template", None) is None:
            raise UserError(
                f"The {type(processor).__name__} of this checkpoint has no chat template. Base models have none: "
                "take an instruction-tuned checkpoint, or model.prompt_style=prefix if it is one of PaliGemma's kind."
            )
        special = sorted(special_strings(processor), key=len, reverse=True)
        self._longest = len(special[0]) if special else 0
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self._rendered: dict[tuple[Any, ...], str] = {}
        self.answer_form = AnswerForm() if self.is_prefix else answer_form(processor, self._special)

    def render(self, fields: Mapping[str, str], images: int, videos: int = 0, turns: Sequence[Turn] = ()) -> str:
        """The prompt's text of an example with so many images and videos, or with these turns."""
        return self._prompt(fields, images, videos, turns).text

    def prompt(self, example: Example) -> Prompt:
        """An example's prompt, and where in it the assistant has spoken."""
        return self._prompt(example.fields, len(example.images), len(example.videos), example.turns)

    def _prompt(self, fields: Mapping[str, str], images: int, videos: int, turns: Sequence[Turn]) -> Prompt:
        rendered = self._template(images, videos, turns)
        spoken = {name: text for i, turn in enumerate(turns) for name, text in _texts(turn, i).items()}
        values = {**fields, "system_prompt": self.system_prompt, **spoken}
        text, said, end, begin = "", list[tuple[int, int]](), 0, 0
        for match in _MARKED.finditer(rendered):
            text = self._joined(text, rendered[end : match.start()])
            end = match.end()
            if match[1]:
                text = self._joined(text, self.plain(values[match[1]]))
            elif match[0] == _SAID:
                begin = len(text) - len(self.answer_form.glue) * text.endswith(self.answer_form.glue)
            else:
                said.append((begin, len(text) + self.answer_form.end_length(rendered[end:])))
        return Prompt(self._joined(text, rendered[end:]), tuple(said))

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
        if self.has_conversation:
            return self.plain(answer)
        values = {**fields, "system_prompt": self.system_prompt, "answer": answer}
        text = ""
        for part in self.messages[-1].parts:
            pieces = _FIELD.split(part.text)  # the text before a field, its name, the text behind it, ...
            for index, piece in enumerate(pieces):
                text = self._joined(text, self.plain(values[_role(piece)]) if index % 2 else piece)
        return text

    @property
    def has_earlier_answers(self) -> bool:
        """Whether a prompt may hold turns of the assistant, which carry a loss like the answer."""
        return self.has_conversation or any(message.role == "assistant" for message in self.messages[:-1])

    @property
    def media_first(self) -> bool:
        """Whether nothing that differs between questions on the same media stands before them."""
        if self.has_conversation:
            return False
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
        text = text.translate(_OURS)
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text) if self._special else text

    def _joined(self, text: str, piece: str) -> str:
        """Both, with a space between them where a special token would begin in the one and end in the other."""
        if not (self._special and text and piece):
            return text + piece
        before = text[-self._longest :]
        found = self._special.finditer(before + piece[: self._longest])
        is_split = any(match.start() < len(before) < match.end() for match in found)
        return f"{text} {piece}" if is_split else text + piece

    def _template(self, images: int, videos: int, turns: Sequence[Turn]) -> str:
        marked = tuple(_marked_turn(turn, number) for number, turn in enumerate(turns))
        key = (images, videos, marked)
        if key not in self._rendered:
            self._rendered[key] = self._prefix(images) if self.is_prefix else self._chat(images, videos, marked)
        return self._rendered[key]

    def _prefix(self, images: int) -> str:
        texts = [self._marked(part.text) for message in self.messages[:-1] for part in message.parts]
        media = self.processor.image_token * images
        return media + self.processor.tokenizer.bos_token + " ".join(filter(None, texts)) + "\n"

    def _chat(self, images: int, videos: int, turns: Sequence[Turn]) -> str:
        count = {"image": images, "video": videos}
        own_system = any(turn.role == "system" for turn in turns)
        conversation: list[dict[str, Any]] = []
        for message in self.messages[:-1]:
            content: list[dict[str, str]] = []
            for part in message.parts:
                if part.type in count:
                    content += [{"type": part.type}] * count[part.type]
                elif marked := self._marked(part.text):
                    content.append({"type": "text", "text": marked})
            if message.role != "system" or (content and not own_system):
                conversation.append({"role": message.role, "content": content})
        for turn in turns:
            content = [{"type": kind, "text": text} if kind == "text" else {"type": kind} for kind, text in turn.parts]
            conversation.append({"role": turn.role, "content": content})
        for said in conversation:
            if said["role"] == "assistant":
                _mark_said(said["content"])
        rendered = self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        assert isinstance(rendered, str)
        return rendered

    def _marked(self, text: str) -> str:
        return _FIELD.sub(lambda match: self._place(_role(match[1])), text)

    def _place(self, role: str) -> str:
        # An empty system prompt leaves no empty part behind.
        return "" if role == "system_prompt" and not self.system_prompt else f"{_MARK}{role}{_END}"


def _check_media(messages: Sequence[ChatMessage], marks: re.Pattern[str]) -> None:
    """Raise a UserError if an example's media would stand in a prompt more than once."""
    parts = [part for message in messages for part in message.parts]
    for medium in MEDIA_ROLES:
        if sum(part.type == medium for part in parts) > 1:
            raise UserError(
                f"collator.messages have {{type: {medium}}} twice: one part shows all {medium}s of an example."
            )
    for part in parts:
        if (match := marks.search(part.text)) and match[0]:
            raise UserError(
                f"collator.messages: {part.text[:60]!r} holds {match[0]}, which this model's processor takes for an "
                "image or a video: write a part {type: image} or {type: video} instead."
            )


def _marked_turn(turn: Turn, number: int) -> Turn:
    """The turn with markers in place of its texts; white space around a text stays for the template to see."""
    names = iter(_texts(turn, number))
    parts = []
    for kind, text in turn.parts:
        before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :] if text.strip() else ""
        parts.append((kind, f"{before}{_MARK}{next(names)}{_END}{after}" if kind == "text" else ""))
    return Turn(turn.role, tuple(parts))


def _texts(turn: Turn, number: int) -> dict[str, str]:
    """Marker -> text of each text of the turn with this number, without white space around it."""
    return {f"turn_{number}_{k}": text.strip() for k, (kind, text) in enumerate(turn.parts) if kind == "text"}


def _mark_said(content: list[dict[str, str]]) -> None:
    """Put marks around the texts of the assistant's message, in place."""
    texts = [part for part in content if part["type"] == "text"]
    if texts:
        texts[0]["text"] = _SAID + texts[0]["text"]
        texts[-1]["text"] += _SAID_END


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
