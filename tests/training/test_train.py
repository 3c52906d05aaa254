"""Training in this process: what a stage writes, and that a resumed run is the undisturbed run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from vlmexp.errors import UserError
from vlmexp.evaluation.stage import eval_finetuned
from vlmexp.evaluation.trained import find_training_run
from vlmexp.files import read_json, read_jsonl, write_json
from vlmexp.runs import Run
from vlmexp.training.checkpoints import newest_complete
from vlmexp.training.stage import train


def run_training(config, directory: Path) -> dict:
    with Run.open(directory, config, []) as run:
        train(config, run)
    return read_json(directory / "run.json")


def losses(directory: Path) -> list[tuple]:
    rows = read_jsonl(directory / "metrics.jsonl")
    return [(row["step"], row.get("loss"), row.get("grad_norm"), row.get("eval_loss")) for row in rows]


def weights(directory: Path) -> bytes:
    (path,) = (directory / "model").glob("*.safetensors")
    return path.read_bytes()


@pytest.mark.parametrize("sharing", ["auto", "never"])
@pytest.mark.parametrize(("accumulation", "adapter_class"), [(1, "LoraConfig"), (2, "LoraConfig"), (1, None)])
def test_a_resumed_run_is_the_undisturbed_run(small, tmp_path, cut_after, sharing, accumulation, adapter_class):
    config = small(
        f"collator.share_images={sharing}",
        f"train.gradient_accumulation_steps={accumulation}",
        "train.save_total_limit=20",
    )
    if adapter_class is None:
        config.peft = {"config_class": None}
    record = run_training(config, tmp_path / "whole")
    steps = record["stages"]["train"]["steps"]
    assert record["data"]["share_images"] == (sharing == "auto")
    whole = losses(tmp_path / "whole")
    assert [row[0] for row in whole if row[1] is not None] == list(range(1, steps + 1))

    cut = cut_after(tmp_path / "whole", 3)
    record = run_training(config, cut)
    assert record["stages"]["train"]["resumed_from"] == "checkpoint-3"
    assert losses(cut) == whole
    assert weights(cut) == weights(tmp_path / "whole")


def test_what_training_leaves_behind(small, tmp_path):
    directory = tmp_path / "run"
    record = run_training(small("train.max_steps=4", "train.load_best_model_at_end=true"), directory)
    assert record["status"] == "done"
    assert record["model"]["class"] == "Qwen2VLForConditionalGeneration"
    assert 0 < record["model"]["trainable_parameters"] < record["model"]["parameters"]
    about = record["data"]["splits"]["train"]
    assert about["examples"] > 0
    assert about["dropped"] == about["shortened"] == 0
    stage = record["stages"]["train"]
    assert (stage["steps"], stage["resumed_from"]) == (4, None)
    assert stage["best_checkpoint"].startswith("checkpoint-")
    assert (directory / "model" / "chat_template.jinja").exists()
    assert (directory / "deployment_model" / "model.safetensors").exists()
    assert len(list((directory / "checkpoints").iterdir())) <= 3
    line = read_jsonl(directory / "metrics.jsonl")[0]
    assert line.keys() >= {"step", "epoch", "loss", "learning_rate", "grad_norm", "samples_per_s", "memory_gib"}
    assert line["tokens_per_s"] > line["samples_per_s"] > 0
    assert 0 < line["data_wait"] < 1


def test_gradient_checkpointing_with_lora_really_trains(small, tmp_path):
    plain, checkpointed = (
        small(
            "peft.lora_dropout=0",
            "train.max_steps=3",
            f"train.gradient_checkpointing={on}",
            "train.gradient_checkpointing_kwargs={use_reentrant: false}",
        )
        for on in (False, True)
    )
    run_training(plain, tmp_path / "plain")
    run_training(checkpointed, tmp_path / "checkpointed")
    first, second = losses(tmp_path / "plain"), losses(tmp_path / "checkpointed")
    assert [row[0] for row in first] == [row[0] for row in second]
    for a, b in zip(first, second, strict=True):
        assert [x for x in a if x] == pytest.approx([x for x in b if x], rel=1e-4)
    assert min(row[2] for row in second if row[2] is not None) > 0


def test_training_lowers_the_loss(small, tmp_path):
    run_training(
        small("train.num_train_epochs=12", "train.learning_rate=5e-3", "train.eval_strategy=no"), tmp_path / "run"
    )
    values = [row[1] for row in losses(tmp_path / "run")]
    assert sum(values[-5:]) < 0.6 * sum(values[:5])


def test_all_weights_can_be_trained(small, tmp_path):
    config = small()
    config.peft = {"config_class": None}
    config.train["max_steps"] = 2
    directory = tmp_path / "run"
    record = run_training(config, directory)
    assert record["model"]["trainable_parameters"] == record["model"]["parameters"]
    assert (directory / "model" / "model.safetensors").exists()
    with Run.open(tmp_path / "eval", config, []) as run:
        config.run = str(directory)
        assert "metric" in eval_finetuned(config, run)


@pytest.mark.parametrize("peft", ["dora", "rslora"])
def test_other_adapters(small, tmp_path, peft):
    config = small(f"peft={peft}", "train.max_steps=2", f"paths.outputs={tmp_path}")
    run_training(config, tmp_path / "run")
    saved = read_json(tmp_path / "run" / "model" / "adapter_config.json")
    assert (saved["use_dora"], saved["use_rslora"], saved["r"]) == (peft == "dora", peft == "rslora", 4)
    with Run.open(tmp_path / "evaluation", config, []) as run:
        assert "metric" in eval_finetuned(config, run)


def test_what_this_machine_cannot_do_is_noted(small, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    record = run_training(small("train.max_steps=1", "train.bf16=true"), tmp_path / "run")
    assert record["fallbacks"] == ["train.bf16: this machine has no GPU that computes in bf16; training in float32."]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("collator.max_length=20", "collator.max_length=20"),
        ("peft.target_modules=[nothing_here]", "match no module"),
    ],
)
def test_what_cannot_be_trained(small, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        run_training(small(override), tmp_path / "run")
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed"


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model.shared_image_prefix=false", "model.shared_image_prefix is false"),
        ("collator.messages.0.content=[{text: '{question}'}, {type: image}]", "before the image"),
    ],
)
def test_sharing_that_is_asked_for_but_cannot_be(small, tmp_path, override, reason):
    with pytest.raises(UserError, match=reason):
        run_training(small("collator.share_images=always", override), tmp_path / "run")
    record = run_training(small("train.max_steps=1", override), tmp_path / "other")
    assert record["data"]["share_images"] is False


def test_the_newest_fitting_run_is_evaluated(small, tmp_path):
    config = small("train.max_steps=1", f"paths.outputs={tmp_path / 'outputs'}")
    with pytest.raises(UserError, match="no finished training run of vlmexp:tiny on files"):
        find_training_run(config)
    for name in ("one", "two"):
        run_training(config, tmp_path / "outputs" / name)
    assert find_training_run(config) == (tmp_path / "outputs" / "two").resolve()
    other = small(f"paths.outputs={tmp_path / 'outputs'}", "dataset.name=other")
    with pytest.raises(UserError, match=r"There are: .*two \(vlmexp:tiny on files\)"):
        find_training_run(other)
    with Run.open(tmp_path / "evaluation", config, []) as run:
        result = eval_finetuned(config, run)
    written = read_json(tmp_path / "evaluation" / "evaluation" / "finetuned_vlm_model_evaluation.json")
    assert written["n"] == 16
    assert result["metric"] == written["metrics"]["vqa_accuracy"]
    rows = read_jsonl(tmp_path / "evaluation" / "evaluation" / "finetuned_vlm_model_predictions.jsonl")
    assert len(rows) == 16
    assert rows[0].keys() >= {"id", "question", "answers", "prediction", "scores"}


def test_unfinished_checkpoints_are_not_taken(tmp_path):
    for step, state in ((2, '{"global_step": 2}'), (4, '{"global_step": 4}'), (6, '{"global_st'), (8, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert newest_complete(tmp_path / "nothing") is None


def test_a_resume_without_the_optimizers_state_is_recorded(small, tmp_path):
    """save_only_model leaves optimizer, schedule and random numbers out."""
    config = small("train.save_only_model=true", "train.max_steps=4", "train.save_steps=2", "export.parity_examples=0")
    record = run_training(config, tmp_path / "run")
    assert not [text for text in record["fallbacks"] if "begins anew" in text]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-4")
    for name in ("train", "export"):
        del record["stages"][name]
    write_json(tmp_path / "run" / "run.json", record)
    record = run_training(config, tmp_path / "run")
    assert record["stages"]["train"]["resumed_from"] == "checkpoint-2"
    assert [text for text in record["fallbacks"] if "begins anew" in text] == [
        "checkpoint-2 holds no state of the optimizer, the learning rate schedule, the random numbers: that begins "
        "anew, and the result is not that of an undisturbed training."
    ]
