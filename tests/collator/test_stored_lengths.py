"""Token counts are kept with the prepared data, and no option that changes one leaves them in use."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest

from tests.models import families
from vlmexp.collator import lengths
from vlmexp.collator.identity import collator_identity
from vlmexp.collator.lengths import token_counts, token_lengths
from vlmexp.data.examples import Examples
from vlmexp.data.prepare import prepare
from vlmexp.models.load import ModelSource, load_processor
from vlmexp.parts import build_collator

COLUMNS = {"image": "picture", "question": "query", "answer": "response"}
COLLATORS = {
    "nothing": [],
    "the system prompt": ["collator.system_prompt=Say it."],
    "the data set's prompt": ["dataset.prompt=['{question}', ' {system_prompt}']"],
    "the messages": ["collator.messages.0.content.1.text='{question}?'"],
    "the answer's text": ["collator.messages.1.content.0.text='It is {answer}'"],
    "the end of a turn": ["model.end_of_turn='<|endoftext|>'"],
    "the size of images": ["collator.image_processing.max_size=32"],
    "how images are resized": ["collator.image_processing.max_size=32", "collator.image_processing.resize_mode=crop"],
    "frames of a video": ["collator.video_processing.frame_extraction.num_frames=4"],
    "their sampling": ["collator.video_processing.frame_extraction.sampling_strategy=fps"],
    "frames a second": ["collator.video_processing.frame_extraction.fps=2"],
    "the duration": ["collator.video_processing.file_processing.max_duration=3"],
    "the style": ["model.prompt_style=prefix", "collator.messages.0.content.1.text='{prompt} '"],
}


@pytest.fixture
def prepared(vqa_files, tmp_path):
    def make(**changes):
        files = {split: str(vqa_files / f"{split}.jsonl") for split in ("train", "test")}
        splits = {"train": "train", "validation": None, "test": "test"}
        return prepare(tmp_path / "data", "squares", "1", "files", files, splits, 0.2, 0.0, 0, COLUMNS, **changes)

    return make


@pytest.fixture(autouse=True)
def store_all(monkeypatch):
    monkeypatch.setattr(lengths, "WORTH_STORING", 1)


def stored(prepared) -> list[str]:
    return sorted(path.name for path in (prepared.folder / "computed").glob("*tokens*.npy"))


def test_counts_are_made_once_and_are_the_collators(prepared, make_collator, monkeypatch):
    data, collator = prepared(), make_collator()
    examples = Examples(data, "train", COLUMNS)
    counts = token_counts(collator, examples, True)
    assert counts[0].tolist() == [collator([item])["input_ids"].shape[1] for item in examples]
    assert set(counts[1].tolist()) == {15}  # of 16, one is the placeholder that the text has already
    monkeypatch.setattr(lengths, "_counted", None)  # what would be called to count again
    again = token_counts(make_collator("collator.max_length=50"), Examples(data, "train", COLUMNS), True)
    assert again.tolist() == counts.tolist()


def test_a_collator_that_has_been_used_finds_the_same_counts(prepared, make_collator):
    collator, data = make_collator(), prepared()
    examples, before = Examples(data, "train", COLUMNS), collator_identity(collator)
    for use in (
        lambda: collator(examples[:3]),
        lambda: collator.prompts(examples[:3]),
        lambda: collator.processor.tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2),
        lambda: collator.processor.tokenizer(["a", "b c d"], padding="max_length", max_length=9, pad_to_multiple_of=8),
        lambda: token_counts(collator, examples, True),
    ):
        use()
        assert collator_identity(collator) == before


def test_a_set_has_one_identity_whatever_its_order(make_collator, monkeypatch):
    collator, one, other = make_collator(), frozenset([0, 8]), frozenset([8, 0])
    assert list(one) != list(other)  # as those of texts from process to process
    found = set()
    for value in (one, other, frozenset([0, 9])):
        monkeypatch.setattr(collator.template, "_optional", value)
        monkeypatch.setattr(collator.template, "options", {"a": [(1, set(value))]})
        monkeypatch.setattr(collator, "media_options", dataclasses.make_dataclass("M", ["ids"])(value), raising=False)
        found.add(collator_identity(collator))
    assert len(found) == 2


def test_every_choice_of_rows_has_counts_of_its_own(prepared, make_collator, vqa_files):
    data, collator = prepared(), make_collator()
    choices = [
        (Examples(data, "train", COLUMNS), True),
        (Examples(data, "train", COLUMNS), False),
        (Examples(data, "test", COLUMNS), True),
        (Examples(data, "train", {name: COLUMNS[name] for name in ("question", "answer")}), True),
        (Examples(data, "train", COLUMNS, limit=5, seed=0), True),
        (Examples(data, "train", COLUMNS, limit=5, seed=1), True),
        (Examples(data, "train", COLUMNS, answer_seed=1), True),
        (Examples(data, "train", COLUMNS, answer_seed=2), True),
    ]
    for number, (examples, with_answer) in enumerate(choices, 1):
        expected = [
            (collator([item]) if with_answer else collator.prompts([item]))["input_ids"].shape[1] for item in examples
        ]
        assert token_lengths(collator, examples, with_answer) == expected
        assert len(stored(data)) == number
    assert token_lengths(collator, Examples(data, "train", COLUMNS, ["query"]), True)
    assert len(stored(data)) == len(choices), "metadata are no part of the prompt"


def test_other_rows_and_other_images_are_counted_anew(prepared, make_collator, vqa_files, draw):
    first, collator = prepared(), make_collator()
    before = token_lengths(collator, Examples(first, "train", COLUMNS), True)
    draw("red", (128, 64)).replace(vqa_files / "train-0.png")
    changed = prepared()
    assert changed.folder == first.folder
    after = token_lengths(collator, Examples(changed, "train", COLUMNS), True)
    assert sorted(b - a for a, b in zip(before, after, strict=True)) in ([0] * (len(before) - 2) + [16] * 2, [0] * 38)
    path = vqa_files / "train.jsonl"
    rows = [json.loads(line) | {"query": "is there a red circle?"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lengths_of = token_lengths(collator, Examples(prepared(), "train", COLUMNS), True)
    assert lengths_of != after


def test_every_option_of_the_collator_that_could_change_a_length_changes_its_identity(make_collator, processor):
    def identity(overrides: list[str]) -> str:
        if "model.prompt_style=prefix" in overrides and processor.tokenizer.bos_token is None:
            processor.tokenizer.bos_token = "<|endoftext|>"
        return collator_identity(make_collator(*overrides))

    found = {name: identity(overrides) for name, overrides in COLLATORS.items()}
    assert {name for name, other in itertools.combinations(found, 2) if found[name] == found[other]} == set()


def test_options_that_change_no_length_change_nothing(make_collator):
    same = [
        [], ["collator.max_length=99"], ["collator.overlong=drop"], ["collator.label_masking.mask_input_tokens=false"],
        ["collator.share_images=never"],
    ]  # fmt: skip
    assert len({collator_identity(make_collator(*overrides)) for overrides in same}) == 1
    collator = make_collator()
    before = collator_identity(collator)
    collator.template.render({"question": "?"}, 2)
    collator.share_images = True
    assert collator_identity(collator) == before


@pytest.mark.parametrize("family", ["qwen2vl", "internvl2", "phi3vision", "gemma3", "llava_onevision"])
def test_a_processor_is_known_again_and_its_options_count(family, compose, tmp_path):
    source = str(families.write_checkpoint(family, tmp_path / family))

    def identity(prepare=lambda processor: None, **options) -> str:
        processor = load_processor(ModelSource(source, processor_kwargs=options), pytest.fail)
        prepare(processor)
        return collator_identity(build_collator(compose(f"model={family}"), processor))

    def other_template(processor) -> None:
        processor.chat_template += " "

    def one_more_word(processor) -> None:
        processor.tokenizer.add_tokens(["kaleidoscope"])

    def one_more_special_word(processor) -> None:
        processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<kaleidoscope>"]})

    def other_size(processor) -> None:
        processor.image_processor.size = {"height": 140, "width": 140}

    changed = [identity(change) for change in (other_template, one_more_word, one_more_special_word, other_size)]
    assert identity() == identity()
    assert len({identity(), *changed}) == 5


def test_options_of_a_processor_count(compose, processor):
    def identity(**options) -> str:
        changed = load_processor(ModelSource("vlmexp:tiny", processor_kwargs=options), pytest.fail)
        return collator_identity(build_collator(compose(), changed))

    assert len({identity(), identity(max_pixels=4096), identity(min_pixels=512), identity(max_pixels=8192)}) == 4


def test_code_counts(make_collator, monkeypatch):
    before = collator_identity(make_collator())
    monkeypatch.setattr("vlmexp.collator.identity._own_code", lambda: "other code")
    assert collator_identity(make_collator()) != before
