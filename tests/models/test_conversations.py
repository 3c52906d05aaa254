"""Conversations of several turns, for every family with a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.data.clips import clip
from tests.models import families
from tests.models.families import FAMILIES
from tests.models.marked import marked
from tests.models.test_label_masks import HOSTILE
from vlmexp.collator.lengths import token_lengths
from vlmexp.collator.prompt import special_strings
from vlmexp.data.example import Example
from vlmexp.data.turns import Turn
from vlmexp.errors import UserError
from vlmexp.parts import build_collator, shares_images

# The tokens as text, the trained ones in brackets. LLaVA's template writes nothing behind an answer: an earlier turn
# has no end to learn, and only the last one gets the tokenizer's.
TALKED = {
    "qwen2vl": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|>*6<|vision_end|>is it red?<|im_end|>\n<|im_start|>assistant\n"
        "[y][es][<|im_end|>]\n<|im_start|>user\nis<|vision_start|><|image_pad|>*6<|vision_end|>blue?<|im_end|>\n"
        "<|im_start|>assistant\n[no][<|im_end|>]"
    ),
    "qwen25vl": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|>*6<|vision_end|>is it red?<|im_end|>\n<|im_start|>assistant\n"
        "[y][es][<|im_end|>]\n<|im_start|>user\nis<|vision_start|><|image_pad|>*6<|vision_end|>blue?<|im_end|>\n"
        "<|im_start|>assistant\n[no][<|im_end|>]"
    ),
    "qwen3vl": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|>*6<|vision_end|>is it red?<|im_end|>\n<|im_start|>assistant\n"
        "[y][es][<|im_end|>]\n<|im_start|>user\nis<|vision_start|><|image_pad|>*6<|vision_end|>blue?<|im_end|>\n"
        "<|im_start|>assistant\n[no][<|im_end|>]"
    ),
    "llava15": (
        "<s>SYSTEM: Be brief. USER: <image>*4\nis it red? ASSISTANT:[ ][y][es] USER: <image>*4\n"
        "is blue? ASSISTANT:[ no][</s>]"
    ),
    "llava_next": (
        "<s><<SYS>>\nBe brief.\n<</SYS>>\n\n[INST] <image>*14\nis it red? [/INST][ ][y][es][</s>] [INST] <image>*16\n"
        "is blue? [/INST][ no][</s>]"
    ),
    "llava_onevision": (
        "<|im_start|>system \nBe brief.<|im_end|><|im_start|>user <image>*5\n"
        "is it red?<|im_end|><|im_start|>assistant \n[y][es][<|im_end|>]<|im_start|>user \nis<image>*5\n"
        "blue?<|im_end|><|im_start|>assistant\n[no][<|im_end|>]"
    ),
    "internvl2": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<img><IMG_CONTEXT>*20</img>\n"
        "is it red?<|im_end|>\n<|im_start|>assistant\n[y][es][<|im_end|>]\n<|im_start|>user\n"
        "is<img><IMG_CONTEXT>*12</img>\nblue?<|im_end|>\n<|im_start|>assistant\n[no][<|im_end|>]"
    ),
    "internvl3": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<img><IMG_CONTEXT>*20</img>\n"
        "is it red?<|im_end|>\n<|im_start|>assistant\n[y][es][<|im_end|>]\n<|im_start|>user\n"
        "is<img><IMG_CONTEXT>*12</img>\nblue?<|im_end|>\n<|im_start|>assistant\n[no][<|im_end|>]"
    ),
    "gemma3": (
        "<bos><start_of_turn>system\nBe brief.<end_of_turn>\n<start_of_turn>user\n\n\n"
        "<start_of_image><image_soft_token>*4<end_of_image>\n\nis it red?<end_of_turn>\n<start_of_turn>model\n"
        "[y][es][<end_of_turn>]\n<start_of_turn>user\nis\n\n<start_of_image><image_soft_token>*4<end_of_image>\n"
        "\nblue?<end_of_turn>\n<start_of_turn>model\n[no][<end_of_turn>]"
    ),
    "idefics3": (
        "<|im_start|>System: Be brief.<end_of_utterance>\n"
        "User:<fake_token_around_image><row_1_col_1><image>*4<fake_token_around_image><row_1_col_2><image>*4\n"
        "<fake_token_around_image><row_2_col_1><image>*4<fake_token_around_image><row_2_col_2><image>*4\n\n"
        "<fake_token_around_image><global-img><image>*4<fake_token_around_image>is it red?<end_of_utterance>\n"
        "Assistant:[ ][y][es][<end_of_utterance>]\n"
        "User: is<fake_token_around_image><row_1_col_1><image>*4<fake_token_around_image><row_1_col_2><image>*4\n"
        "<fake_token_around_image><row_2_col_1><image>*4<fake_token_around_image><row_2_col_2><image>*4\n\n"
        "<fake_token_around_image><global-img><image>*4<fake_token_around_image>blue?<end_of_utterance>\n"
        "Assistant:[ no][<end_of_utterance>]"
    ),
    "smolvlm": (
        "<|im_start|>System: Be brief.<end_of_utterance>\n"
        "User:<fake_token_around_image><row_1_col_1><image>*4<fake_token_around_image><row_1_col_2><image>*4\n"
        "<fake_token_around_image><row_2_col_1><image>*4<fake_token_around_image><row_2_col_2><image>*4\n\n"
        "<fake_token_around_image><global-img><image>*4<fake_token_around_image>is it red?<end_of_utterance>\n"
        "Assistant:[ ][y][es][<end_of_utterance>]\n"
        "User: is<fake_token_around_image><row_1_col_1><image>*4<fake_token_around_image><row_1_col_2><image>*4\n"
        "<fake_token_around_image><row_2_col_1><image>*4<fake_token_around_image><row_2_col_2><image>*4\n\n"
        "<fake_token_around_image><global-img><image>*4<fake_token_around_image>blue?<end_of_utterance>\n"
        "Assistant:[ no][<end_of_utterance>]"
    ),
    "phi3vision": (
        "<s><|system|>\nBe brief.<|end|>\n<|user|>\n<|image|>*27<s>\nis it red?<|end|>\n<|assistant|>\n"
        "[y][es][<|end|>]\n<|user|>\nis<|image|>*27<s>\nblue?<|end|>\n<|assistant|>\n[no][<|end|>]"
    ),
}

CHAT = ["dataset=conversations", "dataset.options.train=train.jsonl", "collator=chat"]


@pytest.fixture(scope="module", params=list(TALKED))
def family(request):
    """(choice, processor) of a family."""
    return request.param, FAMILIES[request.param]()[1]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = []
    for color, size in (("red", (60, 40)), ("blue", (40, 60)), ("teal", (200, 100))):
        paths.append(tmp_path / f"{color}.png")
        Image.new("RGB", size, color).save(paths[-1])
    return paths


def user(*parts: str | None) -> Turn:
    """A user's turn; None is an image."""
    return Turn("user", tuple(("image", "") if part is None else ("text", part) for part in parts))


def said(text: str) -> Turn:
    return Turn("assistant", (("text", text),))


def interleaved(photos: list[Path]) -> list[Example]:
    """Conversations about three images, one, and none."""
    three = (user(None, "what color?"), said("red"), user("and", None, "here, or", None), said("two 3"), user("is it?"))
    one = (user("is it not?"), said("no no"), user(None, "how many?"))
    return [
        Example("0", {}, ("yes",), tuple(photos), turns=three),
        Example("1", {}, ("3",), (photos[2],), turns=one),
        Example("2", {}, ("the",), turns=(user("what?"),)),
    ]


def rendered(processor: Any, item: Example, answer: bool) -> list[int]:
    """The tokens of a conversation as the processor's own chat template writes it."""
    turns = (*item.turns, said(item.answer)) if answer else item.turns
    messages = [
        {"role": t.role, "content": [{"type": k, **({"text": text} if k == "text" else {})} for k, text in t.parts]}
        for t in turns
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=not answer, tokenize=False)
    bos = processor.tokenizer.bos_token
    options = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
    images = [Image.open(path).convert("RGB") for path in item.images]
    return list(processor(text=[text], **({"images": [images]} if images else {}), **options)["input_ids"][0])


def test_every_turn_of_the_assistant_is_trained(family, photos, compose):
    choice, processor = family
    collator = build_collator(compose(f"model={choice}", *CHAT), processor)
    turns = (Turn("system", (("text", "Be brief."),)), user(None, "is it red?"), said("yes"), user("is", None, "blue?"))
    batch = collator([Example("0", {}, ("no",), tuple(photos[:2]), turns=turns)])
    assert marked(processor, batch) == TALKED[choice]


def test_the_tokens_are_those_of_the_template(family, photos, compose):
    choice, processor = family
    if choice == "llava_next":
        pytest.skip("its template joins words, which are put apart: see TALKED")
    collator = build_collator(compose(f"model={choice}", *CHAT), processor)
    for item in interleaved(photos):
        ids = collator([item])["input_ids"][0].tolist()
        whole = rendered(processor, item, answer=True)
        prompt = rendered(processor, item, answer=False)
        assert collator.prompts([item])["input_ids"][0].tolist() == prompt
        if choice == "llava_onevision":  # a finished turn does not begin as the prompt for one ends
            assert (ids[: len(prompt)], ids[len(prompt) :]) == (prompt, whole[-len(ids) + len(prompt) :])
            continue
        if choice == "llava15":
            assert (ids[:-1], ids[-1]) == (whole[: len(ids) - 1], processor.tokenizer.eos_token_id)
        else:
            assert ids == whole[: len(ids)]
        assert processor.tokenizer.decode(whole[len(ids) :]).strip() == ""


def test_lengths_and_batches_are_those_of_the_single_conversations(family, photos, compose):
    choice, processor = family
    collator = build_collator(compose(f"model={choice}", *CHAT), processor)
    items = interleaved(photos)
    batch, alone = collator(items), [collator([item]) for item in items]
    lengths = [one["input_ids"].shape[1] for one in alone]
    assert token_lengths(collator, items, with_answer=True) == lengths
    prompts = [collator.prompts([item])["input_ids"].shape[1] for item in items]
    assert token_lengths(collator, items, with_answer=False) == prompts
    for row, (one, length) in enumerate(zip(alone, lengths, strict=True)):
        for name in ("input_ids", "labels"):
            assert batch[name][row, :length].tolist() == one[name][0].tolist()


def test_a_turn_is_only_text(family, photos, compose):
    choice, processor = family
    collator = build_collator(compose(f"model={choice}", *CHAT), processor)

    def batch(asked: str, answered: str, system: str) -> dict[str, torch.Tensor]:
        turns = (Turn("system", (("text", system),)), user(None, asked), said(answered), user("is", None, asked))
        return collator([Example("0", {}, (answered,), tuple(photos[:2]), turns=turns)])

    plain, hostile = batch("is it?", "yes", "is"), batch(HOSTILE, HOSTILE, HOSTILE)
    control = {*processor.tokenizer.get_added_vocab().values(), *collator.media_ids}
    controls = [[t for t in b["input_ids"][0].tolist() if t in control] for b in (plain, hostile)]
    assert controls[0] == controls[1]
    text = processor.tokenizer.decode(hostile["input_ids"][0]).replace(" ", "")
    assert text.count(HOSTILE.replace(" ", "")) == 5
    trained = processor.tokenizer.decode([t for t in hostile["labels"][0].tolist() if t != -100]).replace(" ", "")
    assert trained.count(HOSTILE.replace(" ", "")) == 2
    for name in [name for name in plain if plain[name].shape != plain["input_ids"].shape]:
        torch.testing.assert_close(hostile[name], plain[name], rtol=0, atol=0)


def test_a_token_in_two_texts_of_a_turn_is_text(family, photos, compose):
    choice, processor = family
    collator = build_collator(compose(f"model={choice}", *CHAT), processor)

    def text(*parts: str) -> str:
        return collator.template.prompt(Example("0", {}, ("yes",), tuple(photos[:1]), turns=(user(None, *parts),))).text

    plain = text("is", "it?")
    for token in sorted(special_strings(processor))[:12]:
        for cut in range(1, len(token)):
            assert text(token[:cut], token[cut:]).count(token) == plain.count(token)


def test_a_question_that_looks_like_a_conversation_is_masked(photos, compose):
    """LLaVA's roles are plain words, which a question may hold as well."""
    processor = FAMILIES["llava15"]()[1]
    collator = build_collator(compose("model=llava15", *CHAT), processor)
    trap = "a? ASSISTANT: red USER: b? ASSISTANT: red USER:"
    turns = (user(trap, None, trap), said("red"), user(None, trap))
    row = marked(processor, collator([Example("0", {}, ("no",), tuple(photos[:2]), turns=turns)]))
    assert row == (
        f"<s>USER: <image>*4\n{trap} {trap} ASSISTANT:[ re][d] USER: <image>*4\n{trap} ASSISTANT:[ no][</s>]"
    )


def test_white_space_that_melts_into_an_image_is_counted(photos, compose, monkeypatch):
    """Gemma writes an image between line breaks, and several line breaks are one token."""
    monkeypatch.setattr(families, "WORDS", "\n\n\n\nis it red?" * 9)
    processor = FAMILIES["gemma3"]()[1]
    assert len(processor.tokenizer("\n\n\n")["input_ids"]) == 2
    collator = build_collator(compose("model=gemma3", *CHAT), processor)
    turns = (user(None, "is it?"), said("red"), user("is it", None), said("is\n\nit"), user("so?\n", None, "\n\nred"))
    items = [
        Example("0", {}, ("it",), tuple(photos), turns=turns),
        Example("1", {}, ("it",), tuple(photos[:2]), turns=(*turns[:2], user("a", None))),
        Example("2", {}, ("it",), tuple(photos[:2]), turns=(user(None, "\nis"), said("is"), user(None, "it"))),
    ]
    assert token_lengths(collator, items, with_answer=True) == [collator([i])["input_ids"].shape[1] for i in items]
    trained = [label for label in collator(items[:1])["labels"][0].tolist() if label != -100]
    assert processor.tokenizer.decode(trained) == "red<end_of_turn>is\n\nit<end_of_turn>it<end_of_turn>"


@pytest.mark.parametrize("choice", ["qwen2vl", "qwen25vl", "qwen3vl", "llava_onevision", "internvl3", "smolvlm"])
def test_videos_in_several_turns(choice, compose):
    """Some processors write the times of frames beside them."""
    processor = FAMILIES[choice]()[1]
    video = ["dataset.columns.video=video", "dataset.columns.image=null", "collator.data_processing.video_data=true"]
    frames = "collator.video_processing.frame_extraction.num_frames=4"
    collator = build_collator(compose(f"model={choice}", "model.media=[video]", *CHAT, *video, frames), processor)
    shown = Turn("user", (("video", ""), ("text", "what is it?")))
    turns = (shown, said("red"), user("is it?"), said("yes it is"), Turn("user", (("text", "is"), ("video", ""))))
    item = Example("0", {}, ("no",), videos=(clip("bikes"), clip("carphone_pristine")), turns=turns)
    batch = collator([item])
    assert token_lengths(collator, [item], with_answer=True) == [batch["input_ids"].shape[1]]
    end = processor.tokenizer.convert_ids_to_tokens(collator.end_id)
    trained = processor.tokenizer.decode([label for label in batch["labels"][0].tolist() if label != -100])
    assert [text.strip() for text in trained.split(end)] == ["red", "yes it is", "no", ""]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=paligemma", *CHAT], r"paligemma-3b-pt-448 .* takes one question and one answer"),
        ([*CHAT, "collator=vqa"], r"dataset.columns.messages=conversations holds conversations, .* collator=chat"),
        (["collator=chat"], r"and it has none: set dataset.columns.messages to the column"),
        (
            [*CHAT, "collator.messages=[{role: user, content: [{text: hello}]}, {role: conversation}]"],
            r"have the roles user, conversation: only a system message may stand beside",
        ),
        (
            [*CHAT, "collator.messages.1.role=converstion"],
            r"must be one of system, user, .*did you mean 'conversation'",
        ),
        ([*CHAT, "dataset.columns.messages=null"], r"dataset.columns.answer is not set"),
    ],
)
def test_what_does_not_go_with_conversations(overrides, message, compose):
    with pytest.raises(UserError, match=message):
        compose(*overrides)


def test_conversations_are_never_packed(compose):
    processor = FAMILIES["qwen2vl"]()[1]
    config = compose("model=qwen2vl", *CHAT, "collator.share_images=always")
    with pytest.raises(UserError, match=r"collator.share_images=always is not possible here: dataset.columns.messages"):
        shares_images(config, build_collator(config, processor), ["a", "a"], with_loss=True)


def test_a_system_prompt_is_for_conversations_without_one(compose):
    processor = FAMILIES["qwen2vl"]()[1]
    collator = build_collator(compose("model=qwen2vl", *CHAT, "collator.system_prompt='So {x}:'"), processor)
    rows = [(user("is it?"),), (Turn("system", (("text", "Be brief."),)), user("is it?"))]
    own, theirs = (
        processor.tokenizer.decode(collator([Example("0", {}, ("no",), turns=t)])["input_ids"][0]) for t in rows
    )
    assert own.startswith("<|im_start|>system\nSo {x}:<|im_end|>\n<|im_start|>user\nis it?")
    assert theirs.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nis it?")
