"""How a data set's question is put: pieces, instructions, and the user's own words before them."""

from __future__ import annotations

import dataclasses

import pytest

from tests.conftest import example
from vlmexp.data.example import Example
from vlmexp.errors import UserError

FILES = ["dataset=files", "dataset.options.train=a.jsonl", "dataset.columns.image=null"]
HINTED = [
    *FILES,
    "dataset.columns={question: q, answer: a, hint: h, choices: c}",
    'dataset.prompt=["Context: {hint}\n", "{question}", "\n{choices}", "\n{system_prompt}"]',
    "dataset.instruction=Letter.",
    "dataset.open_instruction=One word.",
]


def asked(hint: str = "", choices: tuple[str, ...] = ()) -> Example:
    lettered = {"choices": "A. red\nB. blue"} if choices else {"choices": ""}
    return dataclasses.replace(
        example("is it?", "A"), fields={"question": "is it?", "hint": hint, **lettered}, choices=choices
    )


def user_text(collator, item: Example) -> str:
    return collator.template.prompt(item).text.partition("user\n")[2].partition("<|im_end|>")[0]


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (asked("It is hot.", ("red", "blue")), "Context: It is hot.\nis it?\nA. red\nB. blue\nLetter."),
        (asked(choices=("red", "blue")), "is it?\nA. red\nB. blue\nLetter."),
        (asked("It is hot."), "Context: It is hot.\nis it?\nOne word."),
        (asked(), "is it?\nOne word."),
    ],
)
def test_a_piece_without_its_text_is_left_out(make_collator, item, text):
    assert user_text(make_collator(*HINTED), item) == text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "is it?\nAnswer briefly."),
        (["dataset.instruction=Say."], "is it?\nSay."),
        (["dataset.instruction=Say.", "collator.system_prompt=Mine."], "is it?\nMine."),
        (["dataset.instruction=Say.", "collator.system_prompt=''"], "is it?"),
        (["dataset.open_instruction=Say.", "collator.system_prompt=Mine."], "is it?\nMine."),
        (["dataset.prompt=['Q: {question}']"], "Q: is it?"),
        (["collator.messages.0.content=[{text: 'Q: {question}'}]", "dataset.prompt=['{question}!']"], "Q: is it?"),
        (["collator.messages.0.content=[{text: 'Well, {prompt} Now.'}]"], "Well, is it?\nAnswer briefly. Now."),
    ],
)  # fmt: skip
def test_ones_own_words_go_before_the_data_set_s(make_collator, options, text):
    assert user_text(make_collator(*FILES, *options), example("is it?", "no")) == text


def test_a_question_without_words_leaves_no_empty_line(make_collator):
    item = dataclasses.replace(example("", "a dog"), fields={"question": ""})
    assert user_text(make_collator(*FILES), item) == "Answer briefly."


@pytest.mark.parametrize("text", ["{question", "question}", "What is {question ?"])
def test_a_field_without_one_of_its_braces(make_collator, text):
    with pytest.raises(UserError, match=r"dataset.prompt: \{?question\}? has one brace: write \{question\}\."):
        make_collator(*FILES, f"dataset.prompt=['{text}']")


def test_a_prompt_that_names_no_field(make_collator):
    with pytest.raises(UserError, match=r"dataset.prompt: \{hint\} is no field of this data set"):
        make_collator(*FILES, "dataset.prompt=['{hint}']")
