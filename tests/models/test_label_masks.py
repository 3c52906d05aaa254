"""What every family sees of a question about an image, and which tokens are trained, literally."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import example
from tests.models.families import FAMILIES
from tests.models.marked import marked
from vlmexp.parts import build_collator

# The tokens as text, the trained ones in brackets.
ANSWERED = {
    "qwen2vl": (
        "<|im_start|>user\n<|vision_start|><|image_pad|>*6<|vision_end|>is it red?\nAnswer briefly.<|im_end|>\n"
        "<|im_start|>assistant\n[y][es][<|im_end|>]"
    ),
    "qwen25vl": (
        "<|im_start|>user\n<|vision_start|><|image_pad|>*6<|vision_end|>is it red?\nAnswer briefly.<|im_end|>\n"
        "<|im_start|>assistant\n[y][es][<|im_end|>]"
    ),
    "qwen3vl": (
        "<|im_start|>user\n<|vision_start|><|image_pad|>*6<|vision_end|>is it red?\nAnswer briefly.<|im_end|>\n"
        "<|im_start|>assistant\n[y][es][<|im_end|>]"
    ),
    "llava15": ("<s>USER: <image>*4\nis it red?\nAnswer briefly. ASSISTANT:[ ][y][es][</s>]"),
    "llava_next": "<s>[INST] <image>*14\nis it red?\nAnswer briefly. [/INST][ ][y][es][</s>]",
    "llava_onevision": (
        "<|im_start|>user <image>*14\nis it red?\nAnswer briefly.<|im_end|><|im_start|>assistant\n[y][es][<|im_end|>]"
    ),
    "internvl2": (
        "<|im_start|>user\n<img><IMG_CONTEXT>*20</img>\nis it red?\nAnswer briefly.<|im_end|>\n"
        "<|im_start|>assistant\n[y][es][<|im_end|>]"
    ),
    "internvl3": (
        "<|im_start|>user\n<img><IMG_CONTEXT>*20</img>\nis it red?\nAnswer briefly.<|im_end|>\n"
        "<|im_start|>assistant\n[y][es][<|im_end|>]"
    ),
    "paligemma": ("<image>*4<bos>answer en is it red?\n[y][es][<eos>]"),
    "paligemma2": ("<image>*4<bos>answer en is it red?\n[y][es][<eos>]"),
    "gemma3": (
        "<bos><start_of_turn>user\n\n\n<start_of_image><image_soft_token>*4<end_of_image>\n\n"
        "is it red?\nAnswer briefly.<end_of_turn>\n<start_of_turn>model\n[y][es][<end_of_turn>]"
    ),
    "idefics3": (
        "<|im_start|>User:<fake_token_around_image><row_1_col_1><image>*4"
        "<fake_token_around_image><row_1_col_2><image>*4\n"
        "<fake_token_around_image><row_2_col_1><image>*4<fake_token_around_image><row_2_col_2><image>*4\n\n"
        "<fake_token_around_image><global-img><image>*4<fake_token_around_image>is it red?\n"
        "Answer briefly.<end_of_utterance>\nAssistant:[ ][y][es][<end_of_utterance>]"
    ),
    "smolvlm": (
        "<|im_start|>User:<fake_token_around_image><row_1_col_1><image>*4"
        "<fake_token_around_image><row_1_col_2><image>*4\n"
        "<fake_token_around_image><row_2_col_1><image>*4<fake_token_around_image><row_2_col_2><image>*4\n\n"
        "<fake_token_around_image><global-img><image>*4<fake_token_around_image>is it red?\n"
        "Answer briefly.<end_of_utterance>\nAssistant:[ ][y][es][<end_of_utterance>]"
    ),
    "phi3vision": ("<s><|user|>\n<|image|>*27<s>\nis it red?\nAnswer briefly.<|end|>\n<|assistant|>\n[y][es][<|end|>]"),
}

HOSTILE = (
    "{ } {question} {{ x }} <image> <image> <|image_pad|> <|im_end|> <image_soft_token> <IMG_CONTEXT> <|image_1|>"
    " <|image|> </s> <start_of_image> <eos> <|end|> <end_of_utterance>\n?"
)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    """(choice, processor) of a family."""
    return request.param, FAMILIES[request.param]()[1]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_the_answer_and_its_end_are_trained(family, photo, compose):
    choice, processor = family
    collator = build_collator(compose(f"model={choice}"), processor)
    assert marked(processor, collator([example("is it red?", "yes", photo)])) == ANSWERED[choice]


FULL = (
    "[<|im_start|>][u][s][er][\n][<|vision_start|>]<|image_pad|>*6"
    "[<|vision_end|>][i][s][ i][t][ re][d][?][\n][A][n][s][w][er][ b][ri][ef][l][y][.]"
    "[<|im_end|>][\n][<|im_start|>][a][s][s][ist][an][t][\n][y][es][<|im_end|>]"
)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["mask_input_tokens=false"], FULL),
        (["mask_input_tokens=false", "mask_image_token=false"], FULL.replace("<|image_pad|>*6", "[<|image_pad|>]*6")),
        (["mask_pad_token=false"], ANSWERED["qwen2vl"] + "[<|endoftext|>]*5"),
        (["mask_pad_token=true"], ANSWERED["qwen2vl"] + "<|endoftext|>*5"),
    ],
)
def test_what_else_can_be_trained(overrides, expected, photo, compose):
    processor = FAMILIES["qwen2vl"]()[1]
    options = [f"collator.label_masking.{override}" for override in overrides]
    collator = build_collator(compose("model=qwen2vl", *options), processor)
    rows = [example("is it red?", "yes", photo)]
    if "pad" in overrides[0]:
        rows.append(example("is it red? is it red?", "no", photo))
    assert marked(processor, collator(rows)) == expected


@pytest.mark.parametrize("place", ["question", "answer"])
def test_a_text_changes_nothing_but_itself(family, photo, compose, place):
    choice, processor = family
    collator = build_collator(compose(f"model={choice}"), processor)
    plain = collator([example("is it red?", "yes", photo)])
    hostile = collator(
        [example(HOSTILE, "yes", photo) if place == "question" else example("is it red?", HOSTILE, photo)]
    )
    control = {*processor.tokenizer.get_added_vocab().values(), *collator.media_ids}

    def controls(batch):
        return [token for token in batch["input_ids"][0].tolist() if token in control]

    assert controls(hostile) == controls(plain)
    text = processor.tokenizer.decode(hostile["input_ids"][0]).replace(" ", "")
    assert HOSTILE.replace(" ", "") in text
    media = [name for name in plain if plain[name].shape != plain["input_ids"].shape]
    assert media
    for name in media:
        torch.testing.assert_close(hostile[name], plain[name], rtol=0, atol=0)
