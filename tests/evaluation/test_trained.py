"""Whether what is evaluated is new to the model: a training run is asked for its data."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from PIL import Image

from vlmexp.data.stage import download, prepared_data
from vlmexp.errors import UserError
from vlmexp.evaluation.stage import eval_finetuned
from vlmexp.evaluation.trained import as_trained, check_data, config_of
from vlmexp.files import read_json, write_text
from vlmexp.runs import Run


@pytest.fixture
def rows(tmp_path):
    """Write a file of numbered rows, each with its own image inside."""

    def row(number: int) -> dict[str, str]:
        buffer = io.BytesIO()
        Image.new("RGB", (8 + number, 8)).save(buffer, "BMP")
        image = "data:image/bmp;base64," + base64.b64encode(buffer.getvalue()).decode()
        return {"image": image, "question": f"{number}?", "answer": "yes"}

    def write(name: str, numbers: range) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row(number)) + "\n" for number in numbers))

    return write


@pytest.fixture
def evaluate(compose, rows, tmp_path):
    """Look at the data of an evaluation of a run that was trained on the first 20 rows; what it notes."""
    rows("train.jsonl", range(20))
    data = ["dataset=files", f"dataset.options.train={tmp_path}/train.jsonl", "dataset.test_fraction=0.2"]
    trained = compose(*data)
    with Run.open(tmp_path / "trained", trained, []) as run:
        download(trained, run)

    def check(*overrides: str) -> list[str]:
        config = compose(*data, *overrides)
        with Run.open(tmp_path / "evaluated", config, []) as run:
            check_data(config, run, prepared_data(config, run), tmp_path / "trained")
        return read_json(tmp_path / "evaluated" / "run.json")["fallbacks"]

    return check


def test_the_data_of_the_training_are_no_news(evaluate):
    assert evaluate("evaluation.max_examples=2") == []


def test_a_test_split_that_holds_trained_images_is_refused(evaluate):
    with pytest.raises(
        UserError,
        match=r"trained was trained on the images, videos or texts of 4 of the 4 test examples: this split is 0.2 of "
        r"the images of 'train', chosen by their hash with seed 5, and dataset.split_seed is 0 there and 5 here\.",
    ):
        evaluate("dataset.split_seed=5")


def test_an_evaluation_is_refused_before_it_loads_a_model(evaluate, compose, tmp_path):
    (tmp_path / "trained" / "model").mkdir()
    files = f"dataset.options.train={tmp_path}/train.jsonl"
    config = compose("dataset=files", files, "dataset.split_seed=5", f"run={tmp_path}/trained")
    refused = pytest.raises(UserError, match="was trained on the images, videos or texts of 2 of the 2 test examples")
    with refused, Run.open(tmp_path / "evaluated", config, []) as run:
        eval_finetuned(config, run)


def test_a_source_that_has_changed_is_noticed(evaluate, rows):
    rows("train.jsonl", range(5, 20))
    with pytest.raises(UserError, match=r"of 1 of the 3 test examples: .* with seed 0, and the source has changed\."):
        evaluate()


def test_trained_images_can_be_asked_for(evaluate):
    (note,) = evaluate("dataset.split_seed=5", "evaluation.split=train")
    assert re.search(r"on the images, videos or texts of 11 of the 15 train examples\.$", note)


def test_a_test_split_of_its_own_is_evaluated_with_one_note(evaluate, rows, tmp_path):
    rows("test.jsonl", range(25, 30))
    (note,) = evaluate(f"dataset.options.test={tmp_path}/test.jsonl")
    assert re.search(
        r"was trained on other data \(fingerprint \w{12}\) than these \(\w{12}\): .* of 0 of the 5 test", note
    )


def test_trained_pictures_under_other_names_are_known(compose, evaluate, rows, tmp_path):
    """The file's rows hold BMP images; these are the same pictures in PNG files of their own."""
    lines = []
    for number in (3, 7, 30):
        Image.new("RGB", (8 + number, 8)).save(tmp_path / f"photo-{number}.png")
        lines.append(json.dumps({"image": f"photo-{number}.png", "question": "another?", "answer": "yes"}) + "\n")
    (tmp_path / "test.jsonl").write_text("".join(lines))
    data = ["dataset=files", "dataset.options.train=null", f"dataset.options.test={tmp_path}/test.jsonl"]
    config = compose(*data, "stage=eval_finetuned", f"run={tmp_path}/trained", "dataset.validation_fraction=0")
    trained = ids_of_the_training(tmp_path)
    with Run.open(tmp_path / "alone", config, []) as run:
        known = check_data(config, run, prepared_data(config, run), tmp_path / "trained")
    expected = [f"test-{place}" for place, number in enumerate((3, 7)) if f"train-{number}" in trained]
    assert expected
    assert known == expected
    (note,) = read_json(tmp_path / "alone" / "run.json")["fallbacks"]
    assert note.endswith(f"on the images, videos or texts of {len(expected)} of the 3 test examples.")


def ids_of_the_training(folder) -> set[str]:
    table = pa.ipc.open_stream(Path(read_json(folder / "trained" / "run.json")["data"]["folder"]) / "train.arrow")
    return set(table.read_all()["id"].to_pylist())


def test_data_that_are_gone_cannot_be_compared(evaluate, tmp_path):
    shutil.rmtree(read_json(tmp_path / "trained" / "run.json")["data"]["folder"])
    (note,) = evaluate("dataset.split_seed=5")
    assert note.endswith("it may have been trained on some of these.")


def test_examples_without_images_are_told_by_their_text(evaluate):
    """The same rows, without the column of images."""
    (note,) = evaluate("dataset.columns.image=null", "evaluation.split=train")
    assert "texts of 0 of the 15 train examples" in note


@pytest.fixture
def stored(compose, tmp_path):
    """The configuration that a run directory says its training had."""
    values = dataclasses.asdict(compose())

    def write(**model) -> None:
        content = values | {"model": values["model"] | model}
        write_text(tmp_path / "trained" / "config.resolved.yaml", yaml.safe_dump(content))

    return write


def test_what_can_run_code_is_taken_of_a_training_on_the_users_word(stored, compose, tmp_path):
    """Of one that is named, and of the newest that fits."""
    named, newest = compose(f"run={tmp_path / 'trained'}"), compose()
    traps = {
        "trust_remote_code": True, "import_path": "evil", "export_writer": "evil.go", "model_class": "evil.Model",
        "model_kwargs": {"weights_only": False}, "attn_implementation": "evil/kernel",
        "processor_kwargs": {"tokenizer_file": "/evil"},
    }  # fmt: skip
    for name, value in traps.items():
        stored(**{name: value})
        for config in (named, newest):
            with pytest.raises(UserError, match=rf"trained asks for what can run code .*model\.{name}"):
                as_trained(config, tmp_path / "trained", [])
            trusting = dataclasses.replace(config, trust_run=True)
            assert getattr(as_trained(trusting, tmp_path / "trained", []).model, name) == value


def test_what_is_data_and_what_the_command_line_has_too_is_taken(stored, compose, tmp_path):
    stored(revision="abc", processor_kwargs={"max_pixels": 1000}, model_kwargs={"weights_only": False})
    taken = as_trained(compose("model.model_kwargs.weights_only=false"), tmp_path / "trained", [])
    assert (taken.model.revision, taken.model.processor_kwargs) == ("abc", {"max_pixels": 1000})


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "a ${oc.env:HOME} b", "\\${x}", "\\\\${x}", "$x", "\\d{2}", "{a}"])
def test_nothing_in_a_stored_configuration_is_resolved(text, stored, tmp_path):
    stored(id=text)
    assert config_of(tmp_path / "trained").model.id == text


@pytest.mark.parametrize(
    "text", ["seed: !!python/object/apply:os.system ['touch ran']\n", "model: {id: '${'}", "3", "["]
)
def test_a_stored_configuration_of_another_shape_is_a_sentence(text, tmp_path):
    write_text(tmp_path / "config.resolved.yaml", text)
    with pytest.raises(UserError, match=r"config\.resolved\.yaml is damaged"):
        config_of(tmp_path)
