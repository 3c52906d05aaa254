"""The heaviest batch before the training: it changes nothing, and says what fits."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import SequentialSampler
from transformers import TrainerControl, TrainerState, TrainingArguments

from tests.conftest import cli_environment, example, only_run
from tests.training.test_train import losses, run_training, weights
from vlmexp.collator.lengths import fit
from vlmexp.errors import UserError
from vlmexp.files import read_json
from vlmexp.training.heaviest import TokenCounts
from vlmexp.training.preflight import TRAIN_TOKENS, Load, MemoryPreflight, advice, undisturbed
from vlmexp.training.sampling import EpochSampler
from vlmexp.training.trainer import VlmTrainer


@pytest.mark.parametrize("sharing", ["auto", "never"])
@pytest.mark.parametrize(("accumulation", "has_adapter"), [(1, True), (2, True), (2, False)])
def test_a_training_is_the_same_with_and_without_it(small, tmp_path, sharing, accumulation, has_adapter):
    for on in (True, False):
        config = small(
            f"collator.share_images={sharing}",
            f"train.gradient_accumulation_steps={accumulation}",
            "train.per_device_eval_batch_size=8",
            "train.max_steps=5",
            "train.gradient_checkpointing=true",
            "train.fit=none",
        )
        config.train["memory_preflight"] = on
        if not has_adapter:
            config.peft = {"config_class": None}
        record = run_training(config, tmp_path / str(on))
        assert ("memory_preflight" in record) == on
    assert losses(tmp_path / "True") == losses(tmp_path / "False")
    assert weights(tmp_path / "True") == weights(tmp_path / "False")


def test_what_is_recorded(small, tmp_path, vqa_files):
    Image.new("RGB", (192, 128), "red").save(vqa_files / "train-5.png")  # 24 x 16 patches, 96 tokens
    config = small("train.max_steps=13", "collator.share_images=never", "dataset.validation_fraction=0")
    found = run_training(config, tmp_path / "run")["memory_preflight"]
    assert found["device"] == "cpu"
    assert found["peak_gib"] > 0.1
    trainable = read_json(tmp_path / "run" / "run.json")["model"]["trainable_parameters"]
    assert found["optimizer_state_gib"] == pytest.approx(8 * trainable / 2**30, abs=5e-4)
    (batch,) = found["batches"]
    assert (batch["examples"], batch["set_by"]) == (4, "train.per_device_train_batch_size")
    assert batch["longest"]["images"] == [[192, 128]]
    rows, tokens = batch["inputs"]["input_ids"]
    assert (rows, tokens) == (4, batch["longest"]["tokens"])
    assert batch["inputs"]["pixel_values"][0] >= 24 * 16 + 3 * 64


def test_an_evaluation_with_larger_batches_is_tried_too(small, tmp_path):
    record = run_training(small("train.max_steps=1", "train.per_device_eval_batch_size=8"), tmp_path / "run")
    sizes = {batch["set_by"]: batch["inputs"]["input_ids"][0] for batch in record["memory_preflight"]["batches"]}
    assert sizes.keys() == {"train.per_device_train_batch_size", "train.per_device_eval_batch_size"}


@pytest.fixture
def trainer(model, make_collator, draw, tmp_path):
    """A trainer of eight examples in batches of eight; the last one is the longest."""
    collator = make_collator()
    examples = [example("what color is it?", "red", draw("red"), id=str(number)) for number in range(7)]
    examples.append(example("what color is it? " * 4, "red", draw("red", (256, 256)), id="large"))
    fitted = fit(collator, examples, 2048, "error")
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, max_steps=1, report_to=[], remove_unused_columns=False,
        save_strategy="no", gradient_accumulation_steps=3,
    )  # fmt: skip
    return VlmTrainer(
        model, arguments, data_collator=collator, train_dataset=fitted, train_sampler=SequentialSampler(fitted)
    )


def preflight(trainer, **options) -> dict:
    record: dict = {}
    fitted = trainer.train_dataset
    trainer.add_callback(
        MemoryPreflight(
            trainer,
            EpochSampler(lambda rng: np.arange(len(fitted)), len(fitted), 0, batch_size=8),
            (fitted, None),
            None,
            lambda **values: record.update(values),
            **options,
        )
    )
    return record


def test_what_would_not_fit_is_not_run_on_a_cpu(trainer):
    ran = []
    rehearse = trainer.rehearse

    def noted(batch):
        ran.append(len(batch["input_ids"]))
        rehearse(batch)

    trainer.rehearse = noted
    record = preflight(trainer, available=lambda: 0)
    with pytest.raises(UserError) as caught:
        trainer.train()
    assert ran == [1]
    assert record == {}
    text = str(caught.value)
    assert text.startswith("train.per_device_train_batch_size=8 does not fit into memory: its heaviest batch has ")
    assert "the longest example, large, has " in text
    assert "with images of 256x256 pixels." in text
    assert "train.per_device_train_batch_size=1 fits, and with train.gradient_accumulation_steps=24 keeps" in text
    assert "train.gradient_checkpointing=true" in text
    assert "peft.r" not in text  # there is no adapter


def test_with_much_memory_the_whole_batch_runs(trainer):
    record = preflight(trainer, available=lambda: 2**50)
    trainer.train()
    (batch,) = record["memory_preflight"]["batches"]
    assert batch["longest"]["id"] == "large"
    assert batch["inputs"]["input_ids"][0] == 8
    assert trainer.state.global_step == 1


def test_a_training_that_goes_on_is_not_tried_again(trainer):
    record = preflight(trainer)
    (callback,) = (item for item in trainer.callback_handler.callbacks if isinstance(item, MemoryPreflight))
    callback.on_train_begin(trainer.args, TrainerState(global_step=3, max_steps=9), TrainerControl())
    assert record == {}


def test_other_errors_are_not_hidden(trainer):
    preflight(trainer)
    trainer.train_dataset[7].images[0].unlink()
    with pytest.raises(UserError, match=r"red-256x256.png does not exist"):
        trainer.train()


def test_random_states_and_buffers_are_put_back():
    model = torch.nn.BatchNorm1d(3)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)

    def drawn() -> tuple:
        return random.random(), np.random.rand(), float(torch.rand(1))

    with undisturbed(model):
        inside = drawn()
        model(torch.randn(5, 3))
    assert drawn() == inside
    assert model.running_mean.tolist() == [0, 0, 0]
    assert int(model.num_batches_tracked) == 0


LIMITED = """
import resource, sys
import vlmexp.training.stage
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv.pop(1)) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from vlmexp.main import main
main()
"""


@pytest.mark.slow
def test_a_batch_that_the_system_refuses(tmp_path, vqa_files, data_dir):
    """A real allocation fails; what the message advises then trains (with some room: no two processes are the same)."""
    for path in vqa_files.glob("*.png"):
        Image.new("RGB", (256, 256), "red").save(path)  # 256 tokens

    def run(mebibytes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        files = [f"dataset.options.{split}={vqa_files / split}.jsonl" for split in ("train", "test")]
        command = [
            sys.executable, "-c", LIMITED, str(mebibytes), "stage=train", "dataset=files", *files, "threads=1",
            "dataset.columns={image: picture, question: query, answer: response}", "dataset.splits.validation=null",
            "collator.share_images=never", "train.max_steps=2", *arguments,
        ]  # fmt: skip
        # What is freed goes back to the system, and threads reserve no addresses, which the limit counts, for later.
        environment = cli_environment(data_dir) | {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_ARENA_MAX": "1"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    done = run(700, "train.per_device_train_batch_size=16", "train.fit=none")
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()[-1]
    assert "vlmexp: train.per_device_train_batch_size=16 does not fit into memory" in said
    advised = re.search(r"train.per_device_train_batch_size=(\d+) fits, and with (train\S+=(\d+)) keeps", said)
    assert advised is not None, said
    assert 1 <= int(advised[1]) < 16
    assert int(advised[1]) * int(advised[3]) == 16
    record = read_json(only_run(tmp_path / "outputs") / "run.json")
    assert record["status"] == "failed"
    done = run(
        900,
        "train.fit=none",
        f"train.per_device_train_batch_size={advised[1]}",
        advised[2],
        f"hydra.run.dir={tmp_path / 'advised'}",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "advised" / "run.json").read_text())["stages"]["train"]["steps"] == 2
    done = run(900, "train.per_device_train_batch_size=32", f"hydra.run.dir={tmp_path / 'fitted'}")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "fitted" / "run.json").read_text())
    assert record["stages"]["train"]["steps"] == 2
    assert record["fit"]["batch_size"] < 32 or record["fit"]["gradient_checkpointing"]


def test_what_is_advised_for_a_token_budget(trainer):
    fitted = trainer.train_dataset
    counts = TokenCounts(fitted.lengths, fitted.media_lengths)
    load = Load(TRAIN_TOKENS, 4000, 2, 0, counts.longest_first(range(8)), fitted, counts, trainer.rehearse)
    assert load.sizes == [8, 4, 2, 1]
    assert load.others(4) == 1
    text = advice(load, 2, trainer.args, has_adapter=False)
    longest = int(fitted.lengths.max())
    assert text.startswith("train.tokens_per_batch=4000 does not fit into memory: its heaviest batch has ")
    steps = -(-8000 // (2 * longest))
    assert (
        f"tokens_per_batch={2 * longest} fits, and with train.gradient_accumulation_steps={steps} keeps about" in text
    )
