"""The benchmarks at tiny counts: what they run still runs, and what they print is what was measured."""

from __future__ import annotations

import importlib
import json
import shutil
from collections import Counter

import pytest
import torch

from tests.benchmarks import checkpoints, head, page, peers
from tests.benchmarks.__main__ import PARTS
from tests.benchmarks.processes import Spent, Unavailable, in_turns, spent, spread, table
from tests.benchmarks.shapes import LONG, SMALL, VARIED, VQA_V2, write_splits
from tests.benchmarks.trainings import Task, Training, command_line
from vlmexp.files import read_json, read_jsonl, write_json


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A small model and 8 questions in a folder."""
    folder = tmp_path_factory.mktemp("benchmark")
    checkpoints.write("small", folder / "model", 1024)
    return Task(folder / "model", write_splits(SMALL, 8, folder / "rows"), 8, micro=2, step=4, epochs=1)


def test_rows_have_the_shape_that_is_asked_for(tmp_path):
    rows = list(read_jsonl(write_splits(VQA_V2, 64, tmp_path / "shared")))
    counts = list(Counter(row["image"] for row in rows).values())
    assert len(rows) == 64
    assert set(counts[:-1]) <= {5, 6}
    varied = list(read_jsonl(write_splits(VARIED, 200, tmp_path / "varied")))
    longer = sum(len(row["question"].split()) >= 4 * LONG for row in varied)
    assert 30 < longer < 70
    assert len({row["image"] for row in varied}) == 200
    assert not {row["image"] for row in varied} & {row["image"] for row in read_jsonl(tmp_path / "varied/test.jsonl")}


def test_every_epoch_of_the_peers_sees_every_row(task):
    twice = Task(task.model, task.data, 8, epochs=2).shuffled(3)
    assert sorted(twice[:8]) == sorted(twice[8:]) == list(range(8))
    assert twice[:8] != twice[8:]


@pytest.mark.parametrize(("name", "parameters"), [("qwen2vl_2b", 2_208_985_600), ("llava15_7b", 7_063_427_072)])
def test_models_for_a_gpu_have_the_published_sizes(name, parameters):
    make, vocabulary, model_class = checkpoints.MODELS[name]
    with torch.device("meta"):
        model = model_class._from_config(make(vocabulary)[0])
    assert sum(weight.numel() for weight in model.parameters()) == parameters


def test_the_command_line_of_the_training_is_one_that_is_understood(task, compose):
    config = compose(*command_line(task))
    assert config.train["per_device_train_batch_size"] * config.train["gradient_accumulation_steps"] == 4
    assert config.peft["r"] == 16


def test_peers_see_the_same_rows_and_come_to_the_same_losses(task, tmp_path):
    """Two micro batches a step, two steps: the Trainer's mean over the tokens of a step is that of the bare loop."""
    found = {}
    for way in ("bare", "trainer"):
        asked = {
            "way": way, "model": str(task.model), "data": str(task.data), "order": [7, 2, 3, 4, 0, 1, 6, 5],
            "micro": 2, "step": 4, "rank": 4, "learning_rate": 1e-2, "device": "cpu", "checkpointing": 0, "workers": 0,
            "threads": 1, "folder": str(tmp_path), "output": str(tmp_path / f"{way}-result.json"),
        }  # fmt: skip
        write_json(tmp_path / "task.json", asked)
        peers.main(tmp_path / "task.json")
        found[way] = Training(**read_json(tmp_path / f"{way}-result.json"))
    assert len(found["bare"].losses) == 2
    assert found["trainer"].losses == pytest.approx(found["bare"].losses, abs=1e-5)
    assert found["trainer"].grad_norms == pytest.approx(found["bare"].grad_norms, rel=1e-4)
    assert found["bare"].steps_s[1] > 0


def test_the_smallest_part_runs_to_its_table(tmp_path, monkeypatch):
    """In this process, which has imported torch."""

    def run(command, folder):
        way, *numbers = command[3:]
        return Spent(0.0, 0.0, 0.0, f"a line before\n{json.dumps(head.loss_of(way, *map(int, numbers)))}\n")

    monkeypatch.setattr(head, "spent", run)
    lines = head.measure(tmp_path, 1, tokens=64, labelled=4, vocabulary=2000).splitlines()
    losses = [float(line.split("|")[-2]) for line in lines[-2:]]
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)


@pytest.mark.parametrize("name", [*PARTS, "gpu"])
def test_every_part_has_its_place_on_the_page(name, tmp_path):
    copy = tmp_path / "README.md"
    shutil.copy(page.PAGE, copy)
    page.put(name, "A title", "what was found", "on a day", copy)
    once = copy.read_text()
    page.put(name, "A title", "what was found", "on a day", copy)
    assert copy.read_text() == once
    assert once.count("what was found") == 1
    if name != "gpu":
        part = importlib.import_module(f"tests.benchmarks.{name}")
        assert f"| `{name}` | {part.MINUTES} |" in once


def test_a_page_without_a_place_is_said(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text("nothing")
    with pytest.raises(ValueError, match="needs one"):
        page.put("head", "A title", "a table", "on a day", copy)


def test_ways_take_turns_and_one_that_cannot_be_gone_is_named(tmp_path):
    turns = []

    def way(name):
        def go(number):
            turns.append((number, name))
            if name == "b":
                raise Unavailable("it is not there")
            return number

        return go

    assert in_turns({name: way(name) for name in "abc"}, 2) == {"a": [0, 1], "b": "it is not there", "c": [0, 1]}
    assert turns == [(0, "a"), (0, "b"), (0, "c"), (1, "a"), (1, "c")]


def test_a_process_is_measured(tmp_path):
    code = (
        "import time, pathlib; pathlib.Path('there').write_text('x'); time.sleep(0.5); a = bytearray(2**26); print(1)"
    )
    used = spent(["python3", "-c", code], tmp_path, watched=tmp_path / "there")
    assert used.output == "1\n"
    assert used.seen_s + 0.4 < used.wall_s
    assert used.peak_mib > 64
    with pytest.raises(RuntimeError, match="no such thing"):
        spent(["python3", "-c", "raise SystemExit('no such thing')"], tmp_path)


def test_numbers_and_tables_are_written_as_markdown():
    assert spread([3.0, 1.0, 2.0]) == "2.0 (1.0 to 3.0)"
    assert spread([1234.5], 0) == "1,234"
    assert table(["", "a"], [["x", "1"]]) == "|  | a |\n| --- | ---: |\n| x | 1 |\n"
