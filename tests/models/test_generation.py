"""What a checkpoint says about generating is kept as far as it is valid, and decides no answer of ours."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from transformers import GenerationConfig

from vlmexp.models.generation import complaint, own_decoding
from vlmexp.models.load import ASSETS, ModelSource, load_model

SAMPLING = "this flag is only used in sample-based generation modes"
SAMPLED = {"temperature": 0.9, "top_k": 5, "do_sample": True}  # each is valid with what comes behind it only
RETURNED = {"output_scores": True, "return_dict_in_generate": True}
# generation_config.json -> what is left of it, and which fields are named as left out
FILES = [
    (
        {"do_sample": False, "temperature": 0.9, "eos_token_id": 2}, {"do_sample": False, "eos_token_id": 2},
        ["temperature=0.9"],
    ),
    (SAMPLED, SAMPLED, []),
    ({"top_p": 0.5, "repetition_penalty": 1.05}, {"repetition_penalty": 1.05}, ["top_p=0.5"]),
    ({"early_stopping": True, "length_penalty": 2.0}, {}, ["early_stopping=True", "length_penalty=2.0"]),
    (RETURNED, RETURNED, []),
    ({"output_logits": True}, {}, ["output_logits=True"]),
    # What transformers refuses to read.
    ({"cache_implementation": "none", "min_new_tokens": 3}, {"min_new_tokens": 3}, ["cache_implementation='none'"]),
    ({"max_new_tokens": 0, "early_stopping": [1], "mine": 5}, {"mine": 5}, ["max_new_tokens=0", "early_stopping=[1]"]),
    ({"suppress_tokens": [3], "forced_eos_token_id": 3}, {"suppress_tokens": [3]}, ["forced_eos_token_id=3"]),
    ({"compile_config": {"mode": "x"}, "bos_token_id": 1}, {"bos_token_id": 1}, ["compile_config={'mode': 'x'}"]),
    ([1], {}, []),
]  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(ASSETS / "tiny", tmp_path / "checkpoint")


def published(config: GenerationConfig) -> dict:
    return {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"}


def test_what_is_not_valid_is_left_out_and_said(checkpoint, tmp_path):
    for values, left, named in FILES:
        (checkpoint / "generation_config.json").write_text(json.dumps(values))
        notes: list[str] = []
        model = load_model(ModelSource(str(checkpoint)), notes.append)
        assert published(model.generation_config) == left, values
        if isinstance(values, dict):
            assert [note.split(" of its ")[0].rpartition("checkpoint: ")[2] for note in notes] == named
        else:
            assert notes == [f"{checkpoint}: its generation_config.json is no JSON object and is left out."]
        # Changed, as an export does, it is written with strict checks.
        model.generation_config.eos_token_id = [2, 3]
        model.generation_config.save_pretrained(tmp_path / "written")
        again = GenerationConfig.from_pretrained(tmp_path / "written")
        assert published(again) == {**left, "eos_token_id": [2, 3]}


def test_a_reason_is_given(checkpoint):
    (checkpoint / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.9}))
    notes: list[str] = []
    load_model(ModelSource(str(checkpoint)), notes.append)
    assert len(notes) == 1
    assert notes[0].startswith(
        f"{checkpoint}: temperature=0.9 of its generation_config.json is not valid and is left out."
    )
    assert SAMPLING in notes[0]


def test_fields_in_config_json_are_mended_too(checkpoint, tmp_path):
    """Checkpoints of before generation_config.json keep them there."""
    values = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**values, "temperature": 0.3, "no_repeat_ngram_size": 2}))
    notes: list[str] = []
    model = load_model(ModelSource(str(checkpoint)), notes.append)
    assert model.generation_config.temperature is None
    assert model.generation_config.no_repeat_ngram_size == 2
    assert len(notes) == 1
    model.generation_config.eos_token_id = [2, 3]
    model.save_pretrained(tmp_path / "written")
    drawn = load_model(dataclasses.replace(ModelSource(str(checkpoint)), random_init=True), notes.append)
    drawn.generation_config.eos_token_id = [2, 3]
    drawn.save_pretrained(tmp_path / "written")


def test_complaints():
    assert complaint({"do_sample": True, "temperature": 0.9}) is None
    assert SAMPLING in complaint({"temperature": 0.9})
    assert complaint({"early_stopping": [1]}) == "unhashable type: 'list'"


def test_a_checkpoint_s_fields_come_back(model):
    model.generation_config.repetition_penalty = 5.0
    model.model.generation_config = GenerationConfig(min_new_tokens=7)  # a part that generates, as in some models
    with own_decoding(model):
        assert published(model.generation_config) == published(model.model.generation_config) == {}
    assert model.generation_config.repetition_penalty == 5.0
    assert model.model.generation_config.min_new_tokens == 7
