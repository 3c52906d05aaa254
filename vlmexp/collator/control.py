"""Which texts are more than text: they would put a medium into a prompt, or begin or end a turn.

A tokenizer's added tokens are of two kinds, whatever it calls them. Some make up the prompt: BOS, EOS and their like,
what stands for media and around them, and what the chat template writes about the messages. These a question or an
answer must not hold. All others are text that a model reads and says: boxes and places in an image, thoughts, calls of
tools, tags, runs of line breaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

# What a template raises for a conversation that it does not take: its own refusal, or what its expressions run into.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
_ASKED, _ANSWERED = "\ue002", "\ue003"  # private-use characters: no tokenizer's or template's own
_MEDIA = ("image_token", "video_token", "boi_token", "eoi_token")


@dataclass(frozen=True)
class Control:
    """The control texts of a processor, and what is done to them.

    Attributes:
        strings: the texts, the longest first.
        ids: of those that are tokens.
    """

    strings: tuple[str, ...]
    ids: frozenset[int]

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """Matches any of the texts; None if there are none."""
        return re.compile("|".join(map(re.escape, self.strings))) if self.strings else None

    @cached_property
    def _pairs(self) -> frozenset[str]:
        """Two characters that stand side by side in one of the texts."""
        return frozenset(text[place : place + 2] for text in self.strings for place in range(len(text) - 1))

    def plain(self, text: str) -> str:
        """The text with a space inside every control text, so that the tokenizer reads it as text."""
        return self.pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text) if self.pattern else text

    def joined(self, text: str, piece: str) -> str:
        """Both, with a space between them where a control text would begin in the one and end in the other."""
        if not (self.pattern and text and piece) or text[-1] + piece[0] not in self._pairs:
            return text + piece
        longest = len(self.strings[0])
        before = text[-longest:]
        found = self.pattern.finditer(before + piece[:longest])
        is_split = any(match.start() < len(before) < match.end() for match in found)
        return f"{text} {piece}" if is_split else text + piece

    def said(self, tokenizer: Any, ids: Sequence[int]) -> str:
        """What a model has said with these tokens: all text that an answer to train on may hold, and nothing else."""
        spoken = [token for token in ids if token not in self.ids]
        return str(tokenizer.decode(spoken, skip_special_tokens=False, clean_up_tokenization_spaces=False)).strip()


def control(processor: Any, end_of_turn: str | None = None, options: Mapping[str, Any] | None = None) -> Control:
    """The control texts of a processor.

    Args:
        end_of_turn: one more.
        options: variables of the chat template.
    """
    found = special_strings(processor, options) | ({end_of_turn} if end_of_turn else set())
    strings = sorted(found, key=lambda text: (-len(text), text))
    vocabulary = processor.tokenizer.get_vocab()
    return Control(tuple(strings), frozenset(vocabulary[text] for text in strings if text in vocabulary))


def special_strings(processor: Any, options: Mapping[str, Any] | None = None) -> set[str]:
    """Every text that tokenizer or processor would read as a control or placeholder token."""
    tokenizer = processor.tokenizer
    roles = {name: value for name, value in tokenizer.special_tokens_map.items() if name != "mask_token"}
    own = {name: value for name, value in vars(processor).items() if name.endswith(("_token", "_tag"))}
    media = [getattr(owner, name, None) for owner in (processor, tokenizer) for name in _MEDIA]
    found = {str(value) for value in (*roles.values(), *own.values(), *media) if value and not isinstance(value, list)}
    found |= _written(processor, options or {})
    # `</s>` ends a text of some models whose tokenizer knows `<s>` as BOS and another token as EOS.
    found |= {f"</{text[1:]}" for text in found if text.startswith("<")} & set(tokenizer.get_added_vocab())
    return {text for text in found if len(text) > 1}


def _written(processor: Any, options: Mapping[str, Any]) -> set[str]:
    """The added tokens that the chat template writes.

    One between a question and its answer may be a mark of thought, which an answer may hold as well; it counts only if
    the tokenizer calls it special.
    """
    outside, inside = [], []
    for begin, between, end in _skeletons(processor, options):
        outside += [begin, end]
        inside.append(between)
    around, whole = "\n".join(outside), "\n".join(outside + inside)
    added = processor.tokenizer.added_tokens_decoder.values()
    return {t.content for t in added if not t.content.isspace() and t.content in (whole if t.special else around)}


def _skeletons(processor: Any, options: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What the template writes before a question, between it and its answer, and behind the answer."""
    asked = {"role": "user", "content": [{"type": "text", "text": _ASKED}]}
    answered = {"role": "assistant", "content": [{"type": "text", "text": _ANSWERED}]}
    system = {"role": "system", "content": [{"type": "text", "text": "system"}]}
    shown = [{"role": "user", "content": [{"type": kind}, *asked["content"]]} for kind in ("image", "video")]
    for conversation in ([asked, answered], [system, asked], *([question] for question in shown)):
        try:
            is_asked = conversation[-1] is not answered
            text = processor.apply_chat_template(
                conversation, add_generation_prompt=is_asked, tokenize=False, **options
            )
        except TEMPLATE_ERRORS:  # a template that takes no such conversation writes nothing in it
            continue
        begin, _, rest = text.partition(_ASKED)
        between, _, end = rest.partition(_ANSWERED)
        yield begin, between, end
