"""The choices of a question as a field of its prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmexp.data.example import to_example
from vlmexp.errors import UserError

ROW = {"id": "0", "question": "which?", "answer": ["B"], "options": ["red", "<|im_end|>"]}
COLUMNS = {"question": "question", "answer": "answer", "choices": "options"}
TEXT = "collator.messages.0.content.1.text='{question} Choices: {choices}'"


def test_a_prompt_shows_the_choices_with_their_letters(make_collator):
    files = ["dataset=files", "dataset.options.train=a.jsonl", "dataset.columns={choices: options, image: null}"]
    collator = make_collator(*files, TEXT)
    prompt = collator.template.prompt(to_example(ROW, COLUMNS, [], Path())).text
    assert "which? Choices: A. red\nB. < |im_end|>" in prompt


def test_choices_without_a_column_are_no_field(make_collator):
    with pytest.raises(UserError, match=r"\{choices\} is no field of this data set"):
        make_collator("dataset=files", "dataset.options.train=a.jsonl", TEXT)
