"""How an answer follows its prompt: in the tokens that the model has learned to read there.

A chat template may put a space between prompt and answer ("Assistant: red"), and a tokenizer may read a word otherwise
at the beginning of a text than behind another. So an answer is tokenized behind the end of a prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

_FIELD, _ANSWER = "\ue002", "\ue003"  # private-use characters: no tokenizer's or template's own


@dataclass(frozen=True)
class AnswerForm:
    """What surrounds an answer.

    Attributes:
        anchor: the end of every prompt, from its last special token on, or else from the question's end.
        glue: white space between prompt and answer.
        end: the special token that ends the turn; None where the template writes none.
    """

    anchor: str = ""
    glue: str = ""
    end: str | None = None

    def end_length(self, behind: str) -> int:
        """How many characters of the text behind an answer belong to its end: white space and the token."""
        found = re.match(rf"\s*{re.escape(self.end)}", behind) if self.end else None
        return found.end() if found else 0

    def token_ids(self, tokenizer: Any, text: str) -> list[int]:
        """The answer's tokens behind the prompt's; its tokens alone where the two would melt into one."""
        before = tokenizer(self.anchor, add_special_tokens=False)["input_ids"] if self.anchor else []
        together = tokenizer(self.anchor + self.glue + text, add_special_tokens=False)["input_ids"]
        if together[: len(before)] == before:
            return list(together[len(before) :])
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_form(processor: Any, special: re.Pattern[str] | None) -> AnswerForm:
    """Read the form off the processor's chat template.

    Args:
        special: matches any special token.
    """
    question = {"role": "user", "content": [{"type": "text", "text": _FIELD}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}
    try:
        prompt = processor.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
        whole = processor.apply_chat_template([question, answer], add_generation_prompt=False, tokenize=False)
    except TemplateError:  # a template that takes no plain text such as this
        return AnswerForm()
    before, _, after = whole.partition(_ANSWER)
    glue = before.removeprefix(prompt) if before.startswith(prompt) else ""
    end = special.match(after.lstrip()) if special else None
    starts = [match.start() for match in special.finditer(prompt)] if special else []
    anchor = prompt[max([prompt.find(_FIELD) + 1, *starts]) :]
    return AnswerForm(anchor, glue if glue.isspace() else "", end[0] if end else None)
