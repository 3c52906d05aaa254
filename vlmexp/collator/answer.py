"""How an answer follows its prompt: in the tokens that the model has learned to read there.

A chat template may put a space between prompt and answer ("Assistant: red"), and a tokenizer may read a word otherwise
at the beginning of a text than behind another. So an answer is tokenized behind the end of a prompt.

A template of a model that thinks may end its prompt in "<think>", and write "<think></think>" before the answer of a
finished turn. There an answer is trained, and asked for, behind what a finished turn has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmexp.collator.control import TEMPLATE_ERRORS

FINISHED_TURN, GENERATION_PROMPT = "finished_turn", "generation_prompt"  # what an answer follows
_FIELD, _ANSWER = "\ue002", "\ue003"  # private-use characters: no tokenizer's or template's own
_TAG = re.compile(r"[<\[◁](/?)\w+[>\]▷]")


@dataclass(frozen=True)
class AnswerForm:
    """What surrounds an answer.

    Attributes:
        anchor: the end of every prompt, from its last special token on, or else from the question's end.
        glue: white space between prompt and answer.
        end: the special token that ends the turn; None where the template writes none.
        asked, finished: how the template's prompt ends and what a finished turn has instead of it, where the two differ
            in more than white space; else empty.
    """

    anchor: str = ""
    glue: str = ""
    end: str | None = None
    asked: str = ""
    finished: str = ""

    def end_length(self, behind: str) -> int:
        """How many characters of the text behind an answer belong to its end: white space and the token."""
        found = re.match(rf"\s*{re.escape(self.end)}", behind) if self.end else None
        return found.end() if found else 0

    def token_ids(self, tokenizer: Any, text: str) -> list[int]:
        """The answer's tokens behind the prompt's; its tokens alone where the two would melt into one."""
        return self.all_token_ids(tokenizer, [text])[0]

    def all_token_ids(self, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
        """The same of each of some answers, at less cost."""
        before = tokenizer(self.anchor, add_special_tokens=False)["input_ids"] if self.anchor else []
        found = tokenizer([self.anchor + self.glue + text for text in texts], add_special_tokens=False)["input_ids"]
        return [
            list(together[len(before) :])
            if together[: len(before)] == before
            else list(tokenizer(text, add_special_tokens=False)["input_ids"])
            for text, together in zip(texts, found, strict=True)
        ]


def answer_form(
    processor: Any,
    special: re.Pattern[str] | None,
    options: Mapping[str, Any] | None = None,
    follows: str = FINISHED_TURN,
) -> AnswerForm:
    """Read the form off the processor's chat template.

    Args:
        special: matches any special token.
        options: variables of the template.
        follows: what an answer follows, see `opened`.
    """
    question = {"role": "user", "content": [{"type": "text", "text": _FIELD}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}
    render, options = processor.apply_chat_template, options or {}
    try:
        prompt = render([question], add_generation_prompt=True, tokenize=False, **options)
        whole = render([question, answer], add_generation_prompt=False, tokenize=False, **options)
    except TEMPLATE_ERRORS:  # a template that takes no plain text such as this
        return AnswerForm()
    before, found, after = whole.partition(_ANSWER)
    before = before if found else prompt
    begun = opened(prompt, before, follows)
    glue = before.removeprefix(begun) if before.startswith(begun) else ""
    end = special.match(after.lstrip()) if special else None
    starts = [match.start() for match in special.finditer(begun)] if special else []
    anchor = begun[max([begun.find(_FIELD) + 1, *starts]) :]
    same = _common_length(prompt, before)
    differ = prompt[same:].strip() or before[same:].strip()
    header = max([0, *(match.end() for match in special.finditer(prompt[:same]))]) if special else 0
    ends = (prompt[header:], before[header:]) if differ else ("", "")
    return AnswerForm(anchor, glue if glue.isspace() else "", end[0] if end else None, *ends)


def opened(prompt: str, finished: str, follows: str = FINISHED_TURN) -> str:
    """The text behind which an answer begins, without spaces at its end that a tokenizer puts to the answer.

    Args:
        prompt: of the template, up to where the model is to speak.
        finished: the same turn once it is finished, up to its answer. It counts where it goes on beyond the prompt, or
            where the prompt has opened a tag that it lacks.
        follows: `finished_turn` does so; `generation_prompt` takes the prompt as it is.
    """
    same = _common_length(prompt, finished)
    asked, more = prompt[same:], finished[same:]
    tags = _TAG.findall(asked)
    is_longer = bool(more.strip()) and not asked.strip()
    is_open = bool(tags) and not tags[-1]
    return finished.rstrip(" ") if follows == FINISHED_TURN and (is_longer or is_open) else prompt


def _common_length(one: str, other: str) -> int:
    """Characters that both texts begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
