"""Which checkpoint is taken after a power loss: files cut, emptied, zeroed or gone."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlmexp.files import read_json, read_jsonl
from vlmexp.runs import Run
from vlmexp.training.callbacks import restore_metrics
from vlmexp.training.checkpoints import LIST, begin, finish, newest_complete, rotate
from vlmexp.training.stage import train_model


def write(folder: Path, step: int, ranks: int = 2, best: str | None = None, listed: bool = True) -> Path:
    """A checkpoint with the files that the Trainer writes."""
    path = folder / f"checkpoint-{step}"
    begin(path)
    save_file({"a": torch.arange(64.0), "b": torch.ones(8)}, path / "adapter_model.safetensors")
    for name in ("adapter_config.json", "tokenizer.json"):
        (path / name).write_text(json.dumps({"r": 4, "step": step}))
    for name in (
        "optimizer.pt",
        "scheduler.pt",
        "training_args.bin",
        *(f"rng_state_{rank}.pth" for rank in range(ranks)),
    ):
        torch.save({"state": torch.arange(100)}, path / name)
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step, "best_model_checkpoint": best}))
    if listed:
        finish(path)
    else:
        (path / LIST).unlink()
    return path


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def shorter(path: Path, size: int) -> None:
    os.truncate(path, size)


DAMAGE = {
    "gone": Path.unlink,
    "zeros": zeroed,
    "empty": lambda path: shorter(path, 0),
    "one byte": lambda path: shorter(path, 1),
    "half": lambda path: shorter(path, path.stat().st_size // 2),
    "most": lambda path: shorter(path, path.stat().st_size * 9 // 10),
    "all but a byte": lambda path: shorter(path, path.stat().st_size - 1),
}


def test_a_checkpoint_is_taken_only_if_every_file_of_it_is_what_was_written(tmp_path):
    write(tmp_path / "whole", 4)
    write(tmp_path / "whole", 8)
    files = sorted(path.name for path in (tmp_path / "whole" / "checkpoint-8").iterdir())
    assert len(files) == 11
    for name in files:
        for kind, damage in DAMAGE.items():
            folder = tmp_path / "cut"
            shutil.copytree(tmp_path / "whole", folder)
            damage(folder / "checkpoint-8" / name)
            said: list[str] = []
            assert newest_complete(folder, said.append) == folder / "checkpoint-4", (name, kind)
            (text,) = said
            assert text.startswith(f"{folder / 'checkpoint-8'} is not taken, as {name} "), (kind, text)
            assert text.endswith("it is kept as skipped-checkpoint-8. checkpoint-4 is taken.")
            assert (folder / "skipped-checkpoint-8").is_dir()
            shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("adapter_model.safetensors", "half", r"adapter_model.safetensors has \d+ bytes and should have \d+"),
        ("adapter_model.safetensors", "zeros", "adapter_model.safetensors is no safetensors file"),
        ("adapter_model.safetensors", "gone", "its weights are missing"),
        ("adapter_config.json", "gone", "adapter_config.json is missing"),
        ("tokenizer.json", "half", "tokenizer.json is no JSON"),
        ("optimizer.pt", "all but a byte", "optimizer.pt is only a part of what it was"),
        ("optimizer.pt", "empty", "optimizer.pt is empty"),
        ("optimizer.pt", "gone", "it does not hold the optimizer"),
        ("scheduler.pt", "zeros", "scheduler.pt is only a part of what it was"),
        ("rng_state_0.pth", "gone", "the random numbers of a process are missing"),
        ("rng_state_1.pth", "gone", "the random numbers of a process are missing"),
        ("rng_state_1.pth", "most", "rng_state_1.pth is only a part"),
        ("trainer_state.json", "half", "it was not written to its end: it is removed"),
        ("trainer_state.json", "gone", "it was not written to its end: it is removed"),
    ],
)
def test_of_earlier_versions_the_files_themselves_are_looked_at(tmp_path, name, kind, said):
    older, newer = (write(tmp_path, step, listed=False) for step in (4, 10))
    assert newest_complete(tmp_path, pytest.fail) == newer
    DAMAGE[kind](newer / name)
    texts: list[str] = []
    assert newest_complete(tmp_path, texts.append) == older
    (text,) = texts
    assert text.startswith(f"{newer} is not taken, as ")
    assert re.search(said, text)


def test_one_that_was_never_finished_is_removed_and_none_at_all_is_said(tmp_path):
    begin(write(tmp_path, 3))
    had = (write(tmp_path, 2) / "optimizer.pt").stat().st_size
    os.truncate(tmp_path / "checkpoint-2" / "optimizer.pt", 5)
    said: list[str] = []
    assert newest_complete(tmp_path, said.append) is None
    assert said == [
        f"{tmp_path / 'checkpoint-3'} is not taken, as it was not written to its end: it is removed.",
        f"{tmp_path / 'checkpoint-2'} is not taken, as optimizer.pt has 5 bytes and had {had:,} when it was written: "
        "it is kept as skipped-checkpoint-2.",
        f"No checkpoint in {tmp_path} is whole: the training starts anew, at step 0.",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["skipped-checkpoint-2"]
    assert newest_complete(tmp_path, pytest.fail) is None


def test_the_best_checkpoint_has_to_be_whole_if_the_training_ends_with_it(tmp_path):
    first, best = write(tmp_path, 2), write(tmp_path, 4)
    newest = write(tmp_path, 6, best=f"/elsewhere/{best.name}")
    os.truncate(best / "adapter_model.safetensors", 100)
    assert newest_complete(tmp_path, pytest.fail) == newest
    said: list[str] = []
    assert newest_complete(tmp_path, said.append, needs_best=True) == first
    assert "adapter_model.safetensors has 100 bytes and had" in said[0]
    assert "of the best one so far, checkpoint-4" in said[0]


def test_the_oldest_go_by_their_step_and_never_the_newest_or_the_best(tmp_path):
    for step in (2, 4, 6, 8, 10):
        os.utime(write(tmp_path, step), (10**9 - step, 10**9 - step))  # as a clock that was set back leaves them
    (tmp_path / "skipped-checkpoint-1").mkdir()

    def left() -> list[int]:
        return sorted(int(path.name.rpartition("-")[2]) for path in tmp_path.glob("checkpoint-*"))

    rotate(tmp_path, None, None)
    rotate(tmp_path, 4, str(tmp_path / "checkpoint-2"))
    assert left() == [2, 6, 8, 10]
    rotate(tmp_path, 1, str(tmp_path / "checkpoint-6"))
    assert left() == [6, 10]
    rotate(tmp_path, 1, None)
    assert left() == [10]
    write(tmp_path, 12, best="/elsewhere/checkpoint-10")
    write(tmp_path, 14, best="/elsewhere/checkpoint-14")
    rotate(tmp_path, 2, "/elsewhere/checkpoint-14", needs_best=True)
    assert left() == [10, 12, 14]  # with 14 damaged, 12 and its best one are all that there is
    rotate(tmp_path, 1, "/elsewhere/checkpoint-14", needs_best=True)
    assert left() == [14]
    assert (tmp_path / "skipped-checkpoint-1").is_dir()


def test_a_training_after_a_power_loss_is_the_undisturbed_one(small, tmp_path, cut_after):
    config = small("train.max_steps=4", "train.save_steps=2", "train.eval_strategy=no", "export.parity_examples=0")

    def finish_training(directory: Path) -> dict:
        with Run.open(directory, config, []) as run:
            train_model(config, run)
        (directory / "deployment_model").mkdir(exist_ok=True)
        return read_json(directory / "run.json")

    whole = tmp_path / "whole"
    assert finish_training(whole)["fallbacks"] == []
    both = ["checkpoint-4", "checkpoint-2"]
    for lost, resumed_from in ((both[:1], "checkpoint-2"), (both, None)):
        cut = cut_after(whole, 4)
        for name in lost:
            zeroed(cut / "checkpoints" / name / "adapter_model.safetensors")
        record = finish_training(cut)
        assert record["stages"]["train"]["resumed_from"] == resumed_from
        for name, text in zip(lost, record["fallbacks"], strict=False):
            assert text.startswith(
                f"{cut / 'checkpoints' / name} is not taken, as adapter_model.safetensors holds other "
            )
        assert len(record["fallbacks"]) == len(lost) + (resumed_from is None)
        assert (cut / "checkpoints" / "skipped-checkpoint-4").is_dir()
        name = "model/adapter_model.safetensors"
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
        lines = [[(r["step"], r["loss"]) for r in read_jsonl(run / "metrics.jsonl")] for run in (whole, cut)]
        assert lines[0] == lines[1]
        shutil.rmtree(cut)


def test_lines_of_metrics_that_a_power_loss_took_are_written_anew(small, tmp_path):
    config = small("train.max_steps=3", "train.save_steps=3", "train.eval_steps=3", "export.parity_examples=0")

    def lines(*left_out: str) -> list[dict]:
        return [{k: v for k, v in row.items() if k not in left_out} for row in read_jsonl(tmp_path / "metrics.jsonl")]

    with Run.open(tmp_path, config, []) as run:
        train_model(config, run)
        timed = ("samples_per_s", "tokens_per_s", "mfu", "data_wait", "memory_gib")
        written, untimed = lines(), lines(*timed)
        assert [(row["step"], "eval_loss" in row) for row in written] == [(1, False), (2, False), (3, False), (3, True)]
        whole = (tmp_path / "metrics.jsonl").read_bytes()
        first = whole.index(b"\n") + 1
        for damage in (b"", whole[: first - 9], whole[:first] + bytes(50) + b"\n" + bytes(300), whole[:-1]):
            (tmp_path / "metrics.jsonl").write_bytes(damage)
            run.forget_metrics_after(3)
            restore_metrics(run, tmp_path / "checkpoints" / "checkpoint-3")
            assert lines(*timed) == untimed
        assert lines()[:3] == written[:3]
        assert run.record["fallbacks"][-3:] == [
            f"{tmp_path / 'metrics.jsonl'}: {text}"
            for text in (
                "lines that are damaged and left out: 1.",
                "lines that were lost and are written anew from checkpoint-3, without speed and memory: 3.",
                "lines that were lost and are written anew from checkpoint-3, without speed and memory: 1.",
            )
        ]
