"""Every YAML of every group composes and passes the schema."""

from __future__ import annotations

import pytest

from vlmexp.config import PeftExtras, library_options
from vlmexp.errors import UserError
from vlmexp.main import CONFIG_DIR, STAGES, find_stage

CHOICES = sorted(
    f"{path.parent.relative_to(CONFIG_DIR)}={path.stem}"
    for path in CONFIG_DIR.glob("*/*.yaml")
    if path.parent.name != "recipe"
)
NEEDS = {
    "dataset=files": ["dataset.options.train=train.jsonl"],
    "dataset=conversations": ["dataset.options.train=train.jsonl", "collator=chat"],
    "collator=chat": ["dataset=conversations", "dataset.options.train=train.jsonl"],
    "dataset=msrvtt_qa": ["dataset.options.root=msrvtt", "collator=video"],
    "dataset=videomme": ["dataset.options.root=videomme", "collator=video", "stage=eval_base"],
    "dataset=flickr8k": ["collator=caption"],
}


def test_the_tree_has_all_its_groups():
    groups = {choice.partition("=")[0] for choice in CHOICES}
    assert groups >= {"collator", "dataset", "evaluation", "experiment", "model", "peft", "tracking", "train"}


@pytest.mark.parametrize("choice", CHOICES)
def test_choice_composes(choice, compose):
    compose(choice, *NEEDS.get(choice, []))


@pytest.mark.parametrize(
    "recipe", sorted(CONFIG_DIR.glob("recipe/*/*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_a_recipe_is_of_use(recipe, compose):
    """It is named after a model and a choice, or a YAML asks for it."""
    if "-" in recipe.stem:
        if recipe.parent.name == "run":
            model, dataset, train = recipe.stem.split("-")
            compose(f"model={model}", f"dataset={dataset}", f"train={train}")
        else:
            model, choice = recipe.stem.split("-")
            compose(f"model={model}", f"{recipe.parent.name}={choice}")
    else:
        wanted = f"- /recipe/{recipe.parent.name}@_global_.{recipe.parent.name}: {recipe.stem}\n"
        assert any(wanted in path.read_text() for path in CONFIG_DIR.glob("*/*.yaml"))


@pytest.mark.parametrize("peft", sorted(path.stem for path in CONFIG_DIR.glob("peft/*.yaml")))
def test_every_adapter_but_none_has_a_class(peft, compose):
    config = compose(f"peft={peft}")
    assert (config.peft["config_class"] is None) == (peft == "none")


def test_a_recipe_applies_to_its_own_choices_only(compose):
    assert compose().train["per_device_train_batch_size"] == 128
    assert compose("train=smoke").train["per_device_train_batch_size"] == 8
    assert compose("dataset=files", "dataset.options.train=train.jsonl").train["per_device_train_batch_size"] == 8
    assert compose("model=qwen2vl").train["learning_rate"] == 1e-5
    assert compose("model=qwen2vl").peft["r"] == 64
    assert compose("peft=dora").peft["r"] == 64


def test_defaults_are_those_of_the_mission(compose):
    """The values that the pipeline before this one had."""
    config = compose("model=qwen2vl")
    expected = {
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "gradient_accumulation_steps": 2,
        "learning_rate": 1e-5, "num_train_epochs": 1, "logging_steps": 0.1, "eval_steps": 0.1, "save_steps": 0.1,
        "save_total_limit": 2, "gradient_checkpointing": True, "bf16": True, "fp16": False,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    assert {name: config.train[name] for name in expected} == expected
    assert config.peft["config_class"] == "LoraConfig"
    assert library_options(config.peft, PeftExtras) == {
        "task_type": "CAUSAL_LM", "r": 64, "target_modules": "all-linear",
        "lora_alpha": 16, "lora_dropout": 0.05, "bias": "none", "use_rslora": False, "use_dora": False,
    }  # fmt: skip
    assert config.model.id == "Qwen/Qwen2-VL-2B-Instruct"
    assert not config.model.trust_remote_code
    assert config.collator.system_prompt == "Answer briefly."
    assert config.collator.max_length == 2048
    assert config.collator.label_masking.ignore_index == -100


def test_any_field_of_the_third_party_classes_is_taken(compose):
    config = compose("train.max_steps=3", "train.label_smoothing_factor=0.1", "peft.init_lora_weights=gaussian")
    assert config.train["max_steps"] == 3
    assert config.peft["init_lora_weights"] == "gaussian"


def test_every_stage_of_the_table_exists():
    for name in STAGES:
        assert callable(find_stage(name))


def test_a_missing_value_is_an_error(compose):
    with pytest.raises(UserError, match=r"options\.train"):
        compose("dataset=files")
