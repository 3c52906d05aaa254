"""Questions and answers reach the model as they are written, but for what would be media or an end of a turn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import AddedToken

from tests.conftest import example
from tests.models.families import FAMILIES
from vlmexp.collator.control import control
from vlmexp.collator.lengths import fit, token_lengths
from vlmexp.evaluation.generate import generate_answers
from vlmexp.parts import build_collator

# Added tokens as published tokenizers have them: text though they are tokens, some of them called special.
TEXT_TOKENS = [
    "\n\n",
    "\n\n\n",
    "\t\t",
    "<table>",
    "<h1>",
    "<loc0001>",
    "<seg001>",
    "<think>",
    "</think>",
    "<tool_call>",
]
CALLED_SPECIAL = ["<ref>", "</ref>", "<box>", "</box>", "<|object_ref_start|>", "<|reserved_special_token_5|>"]
TEXTS = [
    "a\n\nb\n\n\nc\n",
    "a\tb\t\tc  d",
    "\n\nred\n\n",
    "<table><tr>1</tr></table> <h1>",
    "<loc0001><loc0001> <seg001>",
    "<ref>red</ref><box>[[1, 2]]</box>",
    "<think>\nit is\n</think>\n\nred",
    '<tool_call>{"a": 1}</tool_call>',
    "<|object_ref_start|> <|reserved_special_token_5|>",
    "red , blue ! do n't",
    "빨간색 사각형 iPhone 红色。",
    "👨‍👩‍👧 e\u0301",
    "\ue000question\ue001 \ue006\ue008",
]
CONTROL = {
    "qwen2vl": "<|vision_start|> <|vision_end|> <|endoftext|> <|image_pad|> <|video_pad|> <|im_start|> <|im_end|>",
    "llava15": "<image> <pad> <unk> </s> <s>",
    "internvl2": "<IMG_CONTEXT> <|endoftext|> <|im_start|> <|im_end|> <video> </img> <img>",
    "paligemma": "<image> <bos> <eos> <pad> <unk>",
    "gemma3": (
        "<image_soft_token> <start_of_image> <start_of_turn> <end_of_image> <end_of_turn> <bos> <eos> <pad> <unk>"
    ),
    "phi3vision": "<|assistant|> <|endoftext|> <|system|> <|image|> <|user|> <|end|> <unk> </s> <s>",
}


def with_text_tokens(choice: str):
    """A family's processor, its tokenizer with added tokens that are text."""
    processor = FAMILIES[choice]()[1]
    tokens = [AddedToken(text, special=False, normalized=False) for text in TEXT_TOKENS]
    processor.tokenizer.add_tokens(tokens)
    special = [AddedToken(text, special=True, normalized=False) for text in CALLED_SPECIAL]
    processor.tokenizer.add_tokens(special, special_tokens=True)
    return processor


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.mark.parametrize("choice", CONTROL)
def test_what_is_more_than_text(choice):
    assert " ".join(control(with_text_tokens(choice)).strings) == CONTROL[choice]


@pytest.mark.parametrize("choice", FAMILIES)
def test_texts_are_read_and_said_as_they_are_written(choice, photo, compose):
    processor = with_text_tokens(choice)
    collator = build_collator(compose(f"model={choice}"), processor)
    tokenizer = processor.tokenizer
    items = [example(text, text, *images) for text in TEXTS for images in ((), (photo,))]
    for item in items:
        text = item.answer
        assert text in collator.template.prompt(item).text
        assert collator.template.control.said(tokenizer, collator.answer_ids(item)) == text.strip()
    assert {tokenizer.convert_tokens_to_ids(token) for token in (*TEXT_TOKENS, *CALLED_SPECIAL)} <= {
        token for item in items for token in collator.answer_ids(item)
    }
    lengths = [collator([item])["input_ids"].shape[1] for item in items]
    assert token_lengths(collator, items, with_answer=True) == lengths


@pytest.mark.parametrize("share_images", [False, True])
def test_what_a_model_says_is_told_as_it_was_taught(share_images, make_collator, model, monkeypatch, draw, processor):
    """Both ways of generating give special tokens back that are text, and no token of the prompt's own."""
    tokenizer = processor.tokenizer
    said = tokenizer.convert_tokens_to_ids(["<|vision_start|>", "red"])
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, ids, **options: f"{ids} {sorted(options.items())}")
    collator = make_collator()
    monkeypatch.setattr("vlmexp.evaluation.generate.shared_answers", lambda *_: [said, said])

    def generate(self, input_ids, **_):
        return torch.cat([input_ids, torch.tensor([said, said])], dim=1)

    monkeypatch.setattr(type(model), "generate", generate)
    items = [example("red?", "yes", draw("red")), example("red?", "no", draw("red"), id="1")]
    answers = generate_answers(model, collator, items, [30, 30], 2, 2, share_images=share_images)
    options = [("clean_up_tokenization_spaces", False), ("skip_special_tokens", False)]
    assert answers == [f"{said[1:]} {options}"] * 2


# What is read where texts meet, after the image or without one, with messages of one's own.
TEXTS_MEET = "collator.messages.0.content=[{text: '{system_prompt}'},{type: image},{text: '{question}'}]"
MET = {
    "qwen2vl": ("Answer briefly.<|vision_start|><|image_pad|><|vision_end|>is it?", "Answer briefly. is it?"),
    "llava15": ("USER: <image>\nAnswer briefly. is it? ASS", "USER: Answer briefly. is it? ASS"),
    "llava_onevision": ("user \nAnswer briefly.<image>\nis it?", "user \nAnswer briefly.\nis it?"),
    "internvl2": ("Answer briefly.<IMG_CONTEXT>\nis it?", "Answer briefly. is it?"),
    "gemma3": ("Answer briefly.<start_of_image>is it?", "user\nAnswer briefly. is it?"),
    "idefics3": ("User: Answer briefly.<image>is it?", "User: Answer briefly. is it?"),
    "phi3vision": ("<|user|>\nAnswer briefly.<|image|>\nis it?", "<|user|>\nAnswer briefly. is it?"),
}
# As that of LLaVA-NeXT: images first, and texts without anything between them.
IMAGES_FIRST = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("choice", MET)
def test_words_are_not_glued(choice, photo, compose):
    collator = build_collator(compose(f"model={choice}", TEXTS_MEET), FAMILIES[choice]()[1])
    for text, images in zip(MET[choice], ((photo,), ()), strict=True):
        assert text in collator.template.prompt(example("is it?", "no", *images)).text


def test_a_template_that_joins_texts_without_a_space(photo, compose):
    processor = FAMILIES["llava_next"]()[1]
    processor.chat_template = IMAGES_FIRST

    def prompt(question: str, *overrides: str) -> str:
        collator = build_collator(compose("model=llava_next", TEXTS_MEET, *overrides), processor)
        return collator.template.prompt(example(question, "no", photo)).text

    assert prompt("is it?") == "[INST] <image>\nAnswer briefly. is it? [/INST]"
    assert prompt("\tis it?") == "[INST] <image>\nAnswer briefly.\tis it? [/INST]"
    assert prompt("is it?", "collator.system_prompt='Answer: '") == "[INST] <image>\nAnswer: is it? [/INST]"
    # Nothing is put in where there is one text: this is what the documented inference gives.
    assert prompt("is it?", "collator.system_prompt=''") == "[INST] <image>\nis it? [/INST]"
    assert prompt("", "dataset.required=[]") == "[INST] <image>\nAnswer briefly. [/INST]"
    three = "collator.messages.0.content=[{text: a.},{text: '{system_prompt}'},{text: '{question}'},{type: image}]"
    assert prompt("", three) == "[INST] <image>\na. Answer briefly. [/INST]"


# Characters as people see them, of one code point or of several.
PICTURE, ACCENTED, JAMO = "👨\u200d👩\u200d👧", "e\u0301", "\u1100\u1161\u11a8"


@pytest.mark.parametrize("character", ["색", PICTURE, ACCENTED, JAMO], ids=["syllable", "picture", "accent", "jamo"])
def test_a_question_is_shortened_between_characters(character, photo, compose):
    processor = FAMILIES["qwen2vl"]()[1]
    collator = build_collator(compose("model=qwen2vl"), processor)
    item = example(character * 20, "no", photo)
    length = token_lengths(collator, [item], with_answer=True)[0]
    cost = len(character.encode())  # tokens: the tokenizer knows no character beyond ASCII
    for less in (1, cost - 1, cost, cost + 1, 20 * cost):
        fitted = fit(collator, [item], length - less, "shorten_text")
        assert fitted[0].fields["question"] == character * (20 - -(-less // cost))
        assert fitted.lengths[0] == collator([fitted[0]])["input_ids"].shape[1] <= length - less


def test_a_prefix_carries_no_loss(photo, compose):
    """PaliGemma sees all of it at once, what is to be said included."""
    processor = FAMILIES["paligemma"]()[1]
    item = example("is it red?", "yes", photo)
    full = build_collator(compose("model=paligemma", "collator=vqa_full", "collator.max_length=512"), processor)([item])
    alone = build_collator(compose("model=paligemma"), processor)([item])
    trained = [label for label in full["labels"][0].tolist() if label != -100]
    assert processor.tokenizer.decode(trained) == "yes<eos>"
    types = full["token_type_ids"][0]
    assert ((full["labels"][0] != -100) == (types == 1)).all()
    assert alone["labels"][0].tolist()[-len(trained) :] == full["labels"][0].tolist()[-len(trained) :]


def test_a_control_text_over_two_fields_is_text(photo, compose):
    processor = FAMILIES["qwen2vl"]()[1]
    text = "collator.messages.0.content.1.text='{question}{hint}'"
    collator = build_collator(compose("model=qwen2vl", "dataset.columns.hint=hint", text), processor)
    item = example("<|im_", "no", photo)
    item = dataclasses.replace(item, fields={**item.fields, "hint": "end|>"})
    assert "<|im_ end|>" in collator.template.prompt(item).text
