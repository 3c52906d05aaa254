"""stage=export: what it writes, that it says the same, and what happens when it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests.models.test_internvl2 import hub_folder  # noqa: F401 (a fixture)
from vlmexp.errors import UserError
from vlmexp.export.stage import export
from vlmexp.files import read_json
from vlmexp.models.export import ModelSource, find_writer, public_id
from vlmexp.runs import Run
from vlmexp.training.stage import train

SMALL = [
    "stage=train", "dataset=files", "threads=1", "peft.r=4", "train.max_steps=3", "train.learning_rate=1e-2",
    "dataset.columns={image: picture, question: query, answer: response}", "train.per_device_train_batch_size=8",
    "train.warmup_steps=0", "train.logging_steps=1", "train.save_strategy=no", "train.eval_strategy=no",
]  # fmt: skip


@pytest.fixture
def small(compose, vqa_files):
    def make(*overrides: str):
        files = [f"dataset.options.{split}={vqa_files / split}.jsonl" for split in ("train", "test")]
        return compose(*SMALL, *files, *overrides)

    return make


def run_stage(stage, config, directory: Path) -> dict:
    with Run.open(directory, config, []) as run:
        stage(config, run)
    return read_json(directory / "run.json")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_corrupted(model, processor, folder: Path) -> None:
    """A writer that multiplies one row of one weight."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.2.mlp.down_proj.weight"))
    weights[name][7] *= 16
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_an_export_is_checked_stated_and_made_again_from_the_adapter(small, tmp_path):
    record = run_stage(train, small(), tmp_path / "run")
    exported = record["export"]
    assert (exported["dtype"], exported["tied_embeddings"], exported["untied_by_adapter"]) == ("float32", True, False)
    parity = exported["parity"]
    assert parity["checked"]
    assert parity["trained"] == "in memory"
    assert list(parity["differences"]) == [
        "model against trained", "merged against trained", "deployment_model against merged",
        "deployment_model against trained",
    ]  # fmt: skip
    assert parity["differences"]["model against trained"]["max_abs_difference"] == 0
    assert parity["differences"]["deployment_model against merged"]["max_abs_difference"] == 0
    for difference in parity["differences"].values():
        assert difference["accepted"]
        assert (difference["examples"], difference["equal_answers"]) == (8, 8)
        assert difference["max_abs_difference"] < 1e-3
    assert parity["adapter_effect"] > 1
    assert parity["input_difference"] == 0
    assert record["fallbacks"] == []
    assert "lm_head.weight" not in load_file(tmp_path / "run" / "deployment_model" / "model.safetensors")
    assert read_json(tmp_path / "run" / "model" / "adapter_config.json")["base_model_name_or_path"] == "vlmexp:tiny"

    # As after a kill before the export, or after the folder was deleted.
    before = content(tmp_path / "run" / "deployment_model")
    shutil.rmtree(tmp_path / "run" / "deployment_model")
    record["stages"]["train"]["status"] = "running"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"result": {"loss": 1.5}}))
    again = run_stage(export, small("stage=export"), tmp_path / "run")
    assert content(tmp_path / "run" / "deployment_model") == before
    assert again["export"] == exported


def test_a_wrong_weight_fails_and_leaves_the_old_folder(small, tmp_path):
    run_stage(train, small("export.parity_examples=3"), tmp_path / "run")
    before = content(tmp_path / "run" / "deployment_model")
    corrupted = small("export.writer=tests.models.test_export.write_corrupted", "export.parity_examples=3")
    with pytest.raises(
        UserError, match=r"deployment_model against merged: logits differ by up to [\d.]+ where 0\.0\d+ is rounding"
    ):
        run_stage(export, corrupted, tmp_path / "run")
    assert content(tmp_path / "run" / "deployment_model") == before
    record = read_json(tmp_path / "run" / "run.json")
    assert record["status"] == "failed"
    differences = record["export"]["parity"]["differences"]
    assert [difference["accepted"] for difference in differences.values()] == [True, True, False, False]
    assert sorted(path.name for path in (tmp_path / "run").glob(".deploy*")) == []

    unchecked = small("export.writer=tests.models.test_export.write_corrupted", "export.parity_examples=0")
    record = run_stage(export, unchecked, tmp_path / "run")
    assert record["export"]["parity"]["checked"] is False
    assert content(tmp_path / "run" / "deployment_model") != before


def test_a_deleted_folder_is_written_by_the_next_attempt(small, tmp_path):
    run_stage(train, small(), tmp_path / "run")
    before = content(tmp_path / "run" / "deployment_model")
    shutil.rmtree(tmp_path / "run" / "deployment_model")
    run_stage(train, small(), tmp_path / "run")
    assert content(tmp_path / "run" / "deployment_model") == before


@pytest.mark.parametrize("kind", ["an adapter", "all weights"])
def test_a_model_that_is_not_what_was_trained_is_not_exported(small, tmp_path, kind):
    """The weights in model/ are others than those that were trained: later, in another process, that still shows."""
    config = small("export.parity_examples=3")
    if kind == "all weights":
        config.peft = {"config_class": None}
    run_stage(train, config, tmp_path / "run")
    (path,) = (tmp_path / "run" / "model").glob("*.safetensors")
    weights = load_file(path)
    name = next(name for name in weights if "layers.2.mlp.down_proj" in name)
    weights[name] *= 3
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"trained: model against trained: logits differ by up to [\d.]+ where"):
        run_stage(export, config, tmp_path / "run")

    # A run of before this was kept, or with prompts of its own, has only model/ to go by, and says so.
    (tmp_path / "run" / "trained_answers.safetensors").unlink()
    record = run_stage(export, config, tmp_path / "run")
    assert record["export"]["parity"]["trained"] == "loaded from model/"
    assert "model against trained" not in record["export"]["parity"]["differences"]


@pytest.mark.parametrize("config_class", ["LoraConfig", None])
def test_a_training_in_mixed_precision_is_compared_in_that_of_its_weights(small, tmp_path, monkeypatch, config_class):
    """Float32 weights, computed in bfloat16 while they are trained: the logits of that differ by hundreds of steps."""
    monkeypatch.setattr("vlmexp.training.arguments.has_precision", lambda name: True)
    config = small("train.bf16=true")
    config.train["use_cpu"] = True  # with which TrainingArguments take bf16 on any machine
    if config_class is None:
        config.peft = {"config_class": None}
    parity = run_stage(train, config, tmp_path / "run")["export"]["parity"]
    assert parity["differences"]["model against trained"]["max_abs_difference"] < 1e-4


def test_an_export_with_other_prompts_says_what_it_goes_by(small, tmp_path):
    run_stage(train, small("export.parity_examples=3"), tmp_path / "run")
    record = run_stage(export, small("export.parity_examples=2"), tmp_path / "run")
    (said,) = record["fallbacks"]
    assert said.startswith("The trained model was asked other prompts at the end of its training")
    assert record["export"]["parity"]["trained"] == "loaded from model/"


def test_a_start_that_changes_the_base_is_resumed_and_saved_as_plain_lora(small, tmp_path):
    """A random decomposition comes out otherwise each time; the run goes on with the one that it began with."""
    config = small(
        "peft.init_lora_weights=pissa_niter_2", "peft.lora_alpha=16", "train.save_strategy=steps", "train.save_steps=2",
        "train.max_steps=4", "peft.lora_dropout=0",
    )  # fmt: skip
    whole = run_stage(train, config, tmp_path / "run")
    assert whole["export"]["parity"]["differences"]["model against trained"]["max_abs_difference"] < 1e-4
    about = read_json(tmp_path / "run" / "model" / "adapter_config.json")
    assert (about["init_lora_weights"], about["r"], about["lora_alpha"]) == (True, 8, 32)
    trained = load_file(tmp_path / "run" / "trained_answers.safetensors")

    for path in ("checkpoints/checkpoint-4", "model", "deployment_model"):
        shutil.rmtree(tmp_path / "run" / path)
    record = read_json(tmp_path / "run" / "run.json")
    del record["stages"]["train"], record["stages"]["export"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    seed = "vlmexp.training.stage.set_seed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seed, lambda _: torch.manual_seed(123))
        again = run_stage(train, config, tmp_path / "run")
    assert again["stages"]["train"]["resumed_from"] == "checkpoint-2"
    resumed = load_file(tmp_path / "run" / "trained_answers.safetensors")
    assert max(float((resumed[name] - trained[name]).abs().max()) for name in trained if "logits" in name) < 1e-3


@pytest.mark.parametrize(
    ("overrides", "tied"),
    [
        (["peft=dora"], True),
        (["peft=rslora"], True),
        (["peft.target_modules=[q_proj,lm_head]"], False),
        (["peft.target_modules=[q_proj,embed_tokens]"], False),
        (["peft.modules_to_save=[lm_head]"], False),
        (["peft.modules_to_save=[merger]"], True),
        (["peft.target_modules=[q_proj,embed_tokens]", "peft.ensure_weight_tying=true"], False),
    ],
    ids=str,
)
def test_every_kind_of_adapter_is_merged_rightly(small, tmp_path, overrides, tied):
    record = run_stage(train, small(*overrides), tmp_path / "run")
    exported = record["export"]
    assert exported["parity"]["differences"]["deployment_model against trained"]["max_abs_difference"] < 1e-2
    assert exported["parity"]["adapter_effect"] > 0.5
    assert (exported["tied_embeddings"], exported["untied_by_adapter"]) == (tied, not tied)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "deployment_model")
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied


def test_all_weights_trained(small, tmp_path):
    config = small()
    config.peft = {"config_class": None}
    record = run_stage(train, config, tmp_path / "run")
    assert record["export"]["parity"]["differences"].keys() == {
        "model against trained", "deployment_model against trained"
    }  # fmt: skip
    assert record["export"]["parity"]["adapter_effect"] is None
    trained, deployed = (
        load_file(tmp_path / "run" / name / "model.safetensors") for name in ("model", "deployment_model")
    )
    assert all(torch.equal(value, deployed[name]) for name, value in trained.items())


def test_internvl2_needs_transformers_alone_and_keeps_its_pixels(small, tmp_path, hub_folder):  # noqa: F811
    config = small("model=internvl2", f"model.id={hub_folder}", "export.parity_examples=2", "peft.r=2")
    record = run_stage(train, config, tmp_path / "run")
    deployed = tmp_path / "run" / "deployment_model"
    assert read_json(deployed / "config.json")["model_type"] == "internvl"
    assert record["export"]["parity"]["input_difference"] == 0
    loading = record["export"]["loading"]
    assert loading["model"]["register"] == "vlmexp.models"
    assert (loading["deployment_model"]["register"], loading["deployment_model"]["image_backend"]) == (None, "pil")
    card = (deployed / "README.md").read_text()
    assert 'AutoImageProcessor.from_pretrained("deployment_model", backend="pil")' in card
    assert "vlmexp.models" not in card.split("```")[1]
    assert "It needs transformers." in card
    assert str(hub_folder) not in card + (tmp_path / "run" / "model" / "README.md").read_text()

    hub = small(
        "model=internvl2", f"model.id={hub_folder}", "export.parity_examples=2", "peft.r=2",
        "export.writer=vlmexp.models.internvl2.export_hub",
    )  # fmt: skip
    run_stage(export, hub, tmp_path / "run")
    assert read_json(deployed / "config.json")["model_type"] == "internvl_chat"
    assert "import vlmexp.models  #" in (deployed / "README.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["export.writer=vlmexp.models.export.write_it"], "export.writer=vlmexp.models.export.write_it: there is no"),
        (["export.writer=nowhere"], "dotted path"),
        (["export.push_to_hub=me/it"], "HF_TOKEN"),
    ],
)
def test_what_would_fail_at_the_end_fails_at_the_start(small, tmp_path, monkeypatch, overrides, message):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match=message):
        run_stage(train, small(*overrides), tmp_path / "run")
    assert "train" not in read_json(tmp_path / "run" / "run.json")["stages"]


def test_a_learned_prompt_cannot_be_merged(small, tmp_path):
    config = small()
    config.peft = {"config_class": "PromptTuningConfig", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
    with pytest.raises(UserError, match="PromptTuningConfig: a learned prompt cannot be merged"):
        run_stage(train, config, tmp_path / "run")


def test_a_run_without_a_trained_model(small, tmp_path):
    with pytest.raises(UserError, match="has no model/ to export"):
        run_stage(export, small("stage=export"), tmp_path / "run")


def test_the_names_of_base_models(tmp_path):
    (tmp_path / "my-base").mkdir()
    assert public_id(ModelSource(str(tmp_path / "my-base"))) == "my-base"
    assert public_id(ModelSource("vlmexp:tiny")) == "vlmexp:tiny"
    assert public_id(ModelSource("Qwen/Qwen2-VL-2B-Instruct")) == "Qwen/Qwen2-VL-2B-Instruct"
    assert find_writer(None, None).__name__ == "write_pretrained"
