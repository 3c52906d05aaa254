"""Messages to prompt text.

The chat template is rendered once for each shape of a conversation, with markers in place of the fields; an example's
text then replaces its markers. So a brace, a template expression or a special token inside a question is only text.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import ProcessorMixin

from vlmexp.collator.answer import FINISHED_TURN, AnswerForm, answer_form, opened
from vlmexp.collator.chat import check_options, keeps_order, render_chat, render_finished
from vlmexp.collator.control import control, special_strings
from vlmexp.collator.messages import FIELD, ChatMessage, MessagePart, check_fields, check_media, field_names, role
from vlmexp.collator.said import placeholders
from vlmexp.data.example import MEDIA_ROLES, Example
from vlmexp.data.marks import Parts, in_front, numbers_of, split_at_marks
from vlmexp.data.turns import Turn
from vlmexp.errors import UserError

__all__ = ["ChatMessage", "MessagePart", "Prompt", "PromptTemplate", "special_strings"]

# Private-use characters: no tokenizer's or template's own. A field, what the assistant has said before, a text of a
# message, an answer, and the places of an image and of a video within a text.
_MARK, _END, _SAID, _SAID_END, _TEXT, _TEXT_END = "\ue000", "\ue001", "\ue004", "\ue005", "\ue006", "\ue007"
_ANSWER = "\ue003"
_PLACES = {"image": "\ue008", "video": "\ue009"}
_PLACE = re.compile(f"([{''.join(_PLACES.values())}])")
_MARKED = re.compile(f"{_MARK}(\\w+){_END}|[{_SAID}{_SAID_END}{_TEXT}{_TEXT_END}]")
_NEAR = 80  # characters before a text in which a placeholder is looked for


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
        options: variables of the chat template.
        answer_follows: finished_turn or generation_prompt, see vlmexp.collator.answer.opened.
        end_of_turn: a text that ends an answer, beside those that the processor knows.
        open_instruction: the value of `{system_prompt}` for examples without choices; None: `system_prompt`.

    Attributes:
        control: the texts that no field may hold.
        shown_fields: names of the fields that messages show.
        answer_form: how an answer follows the prompt.
        places_marks: whether marks in a question (`<image>`) can be places anywhere in it.

    Raises:
        UserError: a message names a field that there is not, media are shown twice, or the processor has no chat
            template or one that does not take such messages.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        messages: Sequence[ChatMessage],
        system_prompt: str,
        roles: Sequence[str],
        style: str = "chat",
        options: Mapping[str, Any] | None = None,
        answer_follows: str = FINISHED_TURN,
        end_of_turn: str | None = None,
        open_instruction: str | None = None,
    ) -> None:
        self.processor: Any = processor
        self.is_prefix = style == "prefix"
        self.messages = messages
        self.system_prompt, self.open_instruction = system_prompt, open_instruction
        self.options, self.answer_follows = dict(options or {}), answer_follows
        check_media(messages, [system_prompt, open_instruction or ""], placeholders(processor))
        check_fields(messages, roles)
        self.has_conversation = messages[-1].role == "conversation"
        turns = sum(message.role == "assistant" for message in messages)
        if self.is_prefix and (turns > 1 or self.has_conversation):
            raise UserError("collator.messages: model.prompt_style=prefix has room for one answer, which comes last.")
        if not self.is_prefix and getattr(processor, "chat_template", None) is None:
            raise UserError(
                f"The {type(processor).__name__} of this checkpoint has no chat template. Base models have none: "
                "take an instruction-tuned checkpoint, or model.prompt_style=prefix if it is one of PaliGemma's kind."
            )
        if not self.is_prefix and "suffix" in inspect.signature(type(processor).__call__).parameters:
            raise UserError(
                f"{type(processor).__name__} is that of a model which reads all text before its answer in both "
                "directions, and the answer too unless it is told apart: set model.prompt_style=prefix."
            )
        check_options(processor, self.options)
        self.control = control(processor, end_of_turn, self.options)
        named = [(message.role, name) for message in messages for p in message.parts for name in field_names(p.text)]
        self.shown_fields = tuple(dict.fromkeys(name for _, name in named))
        self.places_marks = not self.is_prefix and ("user", "question") in named
        optional = [name for m in messages for p in m.parts for piece in p.pieces for name in field_names(piece)]
        self._optional = frozenset(optional)
        self._answer_pieces = [FIELD.split(part.text) for part in messages[-1].parts]
        self._behind_medium = re.compile(f"(?:{placeholders(processor).pattern or '(?!)'})(\\s+)$")
        self._rendered: dict[tuple[Any, ...], str] = {}
        self._keeps_order, self.answer_form = True, AnswerForm()
        if not self.is_prefix:
            self._keeps_order = keeps_order(processor, self.options)
            self.answer_form = answer_form(processor, self.control.pattern, self.options, answer_follows)
            self._try()

    def render(self, fields: Mapping[str, str], images: int, videos: int = 0, turns: Sequence[Turn] = ()) -> str:
        """The prompt's text of an example with so many images and videos, or with these turns."""
        return self._prompt(fields, images, videos, turns).text

    def prompt(self, example: Example) -> Prompt:
        """An example's prompt, and where in it the assistant has spoken."""
        return self._prompt(example.fields, len(example.images), len(example.videos), example.turns)

    def head(self, text: str) -> str:
        """The beginning of a prompt's text, its last medium included; empty without media."""
        ends = [match.end() for match in placeholders(self.processor).finditer(text) if match[0]]
        return text[: max(ends, default=0)]

    def question(self, fields: Mapping[str, str], images: int, videos: int) -> Parts:
        """The question and the media that stand in it, as it is shown.

        A prefix, and a template that writes all media before all texts, move media that stand before all words to the
        prompt's beginning, without the white space about them. Within the words a template of that kind gets them as
        placeholders in the text; a prefix, which shows them in their own order, has no such places.
        """
        text = fields.get("question", "")
        parts = split_at_marks(text, {"image": images, "video": videos})
        front = in_front(parts)
        if self.is_prefix:
            is_in_order = all(found == sorted(found) for kind in MEDIA_ROLES if (found := numbers_of(parts, kind)))
            return front if front and is_in_order else (("text", text),)
        if not self.places_marks:
            return (("text", text),)
        return (parts if self._keeps_order else front or parts) or (("text", text),)

    def _prompt(self, fields: Mapping[str, str], images: int, videos: int, turns: Sequence[Turn]) -> Prompt:
        parts = () if turns else self.question(fields, images, videos)
        said_here = self._values(fields)
        absent = frozenset(name for name in self._optional if not said_here.get(name, "").strip())
        rendered = self._template(images, videos, tuple(kind for kind, _ in parts), turns, absent)
        spoken = {name: text for i, turn in enumerate(turns) for name, text in _texts(turn, i).items()}
        asked = {f"question_{number}": text for number, (kind, text) in enumerate(parts) if kind == "text"}
        values = {**said_here, **spoken, **asked}
        join = self.control.joined
        text, said, end, begin = "", list[tuple[int, int]](), 0, 0
        start, seam, is_glued = 0, -1, False  # of a message's text, and whether it follows another one immediately
        for place, behind, mark, name in _marks(rendered):
            text = join(text, rendered[end:place])
            end = behind
            if name:
                text = join(text, self._value(values[name], text if name in asked else ""))
            elif mark == _SAID:
                begin = len(text) - len(self.answer_form.glue) * text.endswith(self.answer_form.glue)
            elif mark == _SAID_END:
                said.append((begin, len(text) + self.answer_form.end_length(rendered[end:])))
            elif mark == _TEXT:
                start, is_glued = len(text), place == seam
            elif len(text) > start:
                text, seam = _spaced(text, start) if is_glued else text, end
            elif is_glued:
                seam = end
        return Prompt(join(text, rendered[end:]), tuple(said))

    def _value(self, text: str, before: str) -> str:
        """A field's text, without white space at its beginning that the template has written behind a medium."""
        written = self._behind_medium.search(before[-_NEAR:])
        return self.plain(text.removeprefix(written[1]) if written else text)

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
        values = {**self._values(fields), "answer": answer}
        text = ""
        for pieces in self._answer_pieces:  # the text before a field, its name, the text behind it, ...
            for index, piece in enumerate(pieces):
                text = self.control.joined(text, self.plain(values[role(piece)]) if index % 2 else piece)
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
                elif seen and any(role(name) != "system_prompt" for name in FIELD.findall(part.text)):
                    return False
        return seen

    def plain(self, text: str) -> str:
        """The text with a space inside every control text, so that the tokenizer reads it as text."""
        return self.control.plain(text)

    def _try(self) -> None:
        """Render once: what the template does not take shows before there are data."""
        kinds = {part.type for m in self.messages[:-1] if not any(p.text for p in m.parts) for part in m.parts}
        turns = (Turn("user", (("text", "?"),)),) if self.has_conversation else ()
        self._template(int("image" in kinds), int("video" in kinds - {"image"}), ("text",), turns, frozenset())

    def _values(self, fields: Mapping[str, str]) -> dict[str, str]:
        """Name -> text of what messages may show of an example."""
        is_open = self.open_instruction is not None and not fields.get("choices")
        return {**fields, "system_prompt": str(self.open_instruction) if is_open else self.system_prompt}

    def _template(
        self, images: int, videos: int, layout: Sequence[str], turns: Sequence[Turn], absent: frozenset[str]
    ) -> str:
        marked = tuple(_marked_turn(turn, number) for number, turn in enumerate(turns))
        key = (images, videos, tuple(layout), marked, absent)
        if key not in self._rendered:
            self._rendered[key] = (
                self._prefix(images, layout, absent)
                if self.is_prefix
                else self._chat(images, videos, layout, marked, absent)
            )
        return self._rendered[key]

    def _prefix(self, images: int, layout: Sequence[str], absent: frozenset[str]) -> str:
        question = "".join(_field(f"question_{number}") for number, kind in enumerate(layout) if kind == "text")
        parts = [part for message in self.messages[:-1] for part in message.parts]
        texts = [self._marked(part.shown(absent)).replace(_field("question"), question) for part in parts]
        media = self.processor.image_token * images
        return media + self.processor.tokenizer.bos_token + " ".join(filter(None, texts)) + "\n"

    def _chat(
        self, images: int, videos: int, layout: Sequence[str], turns: Sequence[Turn], absent: frozenset[str]
    ) -> str:
        unplaced = {"image": images - layout.count("image"), "video": videos - layout.count("video")}
        question = "".join(_PLACES.get(kind) or _field(f"question_{number}") for number, kind in enumerate(layout))
        own_system = any(turn.role == "system" for turn in turns)
        conversation: list[dict[str, Any]] = []
        for message in self.messages[:-1]:
            content: list[dict[str, str]] = []
            for part in message.parts:
                if part.type in unplaced:
                    content += [{"type": part.type}] * unplaced[part.type]
                    continue
                marked = self._marked(part.shown(absent))
                if message.role == "user" and _field("question") in marked:  # its media are shown once
                    marked, question = marked.replace(_field("question"), question, 1), _field("question")
                content += self._parts(marked)
            if message.role != "system" or (content and not own_system):
                conversation.append({"role": message.role, "content": content})
        conversation += [{"role": turn.role, "content": self._turn_parts(turn)} for turn in turns]
        texts = [(m["role"], part["text"].strip()) for m in conversation for part in m["content"] if "text" in part]
        for said in conversation:
            if said["role"] == "assistant":
                _mark_said(said["content"])
        rendered = render_chat(self.processor, conversation, self.options, texts)
        if self.answer_form.asked or self.answer_form.finished:
            finished = render_finished(self.processor, conversation, self.options, _ANSWER)
            rendered = opened(rendered, finished.partition(_ANSWER)[0], self.answer_follows)
        for kind, place in _PLACES.items():
            rendered = rendered.replace(place, str(getattr(self.processor, f"{kind}_token", "")))
        return rendered

    def _parts(self, text: str) -> list[dict[str, str]]:
        """A message's text as parts of its content, divided at its places.

        Where the template writes all media first, a text with places behind words stays one: they become placeholders.
        """
        pieces = _PLACE.split(text)
        if not self._keeps_order and any(piece.strip() for piece in pieces[:-1] if piece not in _PLACES.values()):
            pieces = [text]
        kinds = {place: kind for kind, place in _PLACES.items()}
        return [{"type": kinds[p]} if p in kinds else {"type": "text", "text": _bounded(p)} for p in pieces if p]

    def _turn_parts(self, turn: Turn) -> list[dict[str, str]]:
        """The parts of a marked turn. Where its media have numbers, their places are told by marks in its text."""
        parts = turn.parts
        if any(kind != "text" and text for kind, text in parts):
            return self._parts("".join(text if kind == "text" else _PLACES[kind] for kind, text in parts))
        return [{"type": kind, "text": _bounded(text)} if kind == "text" else {"type": kind} for kind, text in parts]

    def _marked(self, text: str) -> str:
        return FIELD.sub(lambda match: self._place(role(match[1])), text)

    def _place(self, name: str) -> str:
        # An empty system prompt leaves no empty part behind.
        return "" if name == "system_prompt" and not self.system_prompt else _field(name)


def _marked_turn(turn: Turn, number: int) -> Turn:
    """The turn with markers in place of its texts; white space around a text stays for the template to see."""
    names = iter(_texts(turn, number))
    parts = []
    for kind, text in turn.parts:
        before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :] if text.strip() else ""
        parts.append((kind, f"{before}{_field(next(names))}{after}" if kind == "text" else text))
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


def _bounded(text: str) -> str:
    """A text of a message with marks where it begins and ends; white space around it stays for the template to see."""
    core = text.strip()
    begin, _, end = text.partition(core) if core else (text, "", "")
    return f"{begin}{_TEXT}{core}{_TEXT_END}{end}" if core else text


def _spaced(text: str, start: int) -> str:
    """The text with a space before `start`, where two texts meet, unless there is white space."""
    return text if text[start - 1].isspace() or text[start].isspace() else f"{text[:start]} {text[start:]}"


@functools.lru_cache(64)
def _marks(rendered: str) -> tuple[tuple[int, int, str, str | None], ...]:
    """Beginning, end, text and field of each marker in a rendered template, which most examples have in common."""
    return tuple((match.start(), match.end(), match[0], match[1]) for match in _MARKED.finditer(rendered))


def _field(name: str) -> str:
    return f"{_MARK}{name}{_END}"
