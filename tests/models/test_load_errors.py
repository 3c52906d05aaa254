"""Broken and foreign checkpoints in local folders: each is a sentence, and the cheap ones come before any weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import example
from vlmexp.errors import UserError
from vlmexp.models.adapter import load_adapter
from vlmexp.models.fit import check_forward
from vlmexp.models.load import ASSETS, ModelSource, check_model, load_model, load_processor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS / "tiny", tmp_path / "checkpoint"))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def shard(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    files = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: weights[n] for n in names if files[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


def said_by_check(folder: Path, **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        check_model(ModelSource(str(folder), **values), pytest.fail)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said_by_loading(folder: Path, **values: Any) -> str:
    source = ModelSource(str(folder), **values)
    check_model(source, pytest.fail)
    with pytest.raises(UserError) as caught:
        load_model(source, pytest.fail)
    return str(caught.value)


@pytest.mark.parametrize("id", ["/no/such/folder", "./folder", "~/no-such-folder", "a/b/c", "../folder"])
def test_what_looks_like_a_path_is_no_hub_id(id):
    with pytest.raises(UserError, match=r"there is no folder /.*A Hub id is written ORG/NAME"):
        check_model(ModelSource(id), pytest.fail)


def test_a_file_is_no_folder(folder):
    assert "is a file: give the folder that holds it" in said_by_check(folder / WEIGHTS)


def test_a_good_folder_passes(folder):
    assert check_model(ModelSource(str(folder)), pytest.fail).image_token_id == 914
    shard(folder)
    check_model(ModelSource(str(folder)), pytest.fail)
    load_model(ModelSource(str(folder)), pytest.fail)


@pytest.mark.parametrize(
    ("breaks", "message"),
    {
        "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
        "half a config": (lambda f: (f / "config.json").write_text('{"model_type":'), "config.json is no valid JSON"),
        "a list": (lambda f: (f / "config.json").write_text("[]"), "config.json is no JSON object"),
        "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no weights: there is neither model.safetensors nor"),
        "pickle": (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), "pickled weights only"),
        "cut": (lambda f: (f / WEIGHTS).open("r+b").truncate(3_000_000), "has 3,000,000 bytes and should have 3,9"),
        "cut header": (lambda f: (f / WEIGHTS).open("r+b").truncate(500), "only the beginning of one"),
        "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "only the beginning of one"),
        "lfs": (lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        "no tokenizer": (lambda f: [path.unlink() for path in f.glob("token*")], "is its tokenizer.json there"),
        "no image processor": (
            lambda f: [path.unlink() for path in f.glob("*processor*")],
            "could not be loaded by AutoProcessor",
        ),
    }.values(),
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_folder_that_is_not_whole(breaks, message, folder):
    breaks(folder)
    assert message in said_by_check(folder)


def test_a_lost_or_damaged_shard(folder):
    shard(folder)
    second = folder / "model-00002-of-00002.safetensors"
    second.open("r+b").truncate(second.stat().st_size - 1)
    assert f"{second} has" in said_by_check(folder)
    second.unlink()
    assert "names model-00002-of-00002.safetensors, which is not there" in said_by_check(folder)
    (folder / INDEX).write_text("{}")
    assert "model.safetensors.index.json is damaged" in said_by_check(folder)


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "is an adapter, not a whole model" in said_by_check(tmp_path)


def test_code_of_the_checkpoint_is_never_run_unasked(folder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    foreign = {"model_type": "my_vlm", "auto_map": {"AutoConfig": "code.MyConfig", "AutoModel": "code.MyModel"}}
    edit(folder / "config.json", lambda config: config.update(foreign))
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nfrom transformers import Qwen2VLConfig\n")
    said = said_by_check(folder)
    assert "(model_type my_vlm) runs only with Python code of its own" in said
    assert "model.trust_remote_code=true" in said
    assert "model=internvl2" in said
    assert "model=phi3vision" in said
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "entry",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "paged|evil/kernel"},
        {"text_config": {"attn_implementation": "evil/kernel"}},
        {"attn_implementation": {"vision_config": "evil/kernel@main:go"}},
    ],
    ids=str,
)
def test_kernels_of_the_hub_are_code_too(entry, folder):
    edit(folder / "config.json", lambda config: config.update(entry))
    said = said_by_check(folder)
    assert "evil/kernel" in said
    assert "model.trust_remote_code=true" in said


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (
            {"megatron_config": {"a": 1}, "megatron_core": "megatron.core"},
            r"adapter_config.json \(LoraConfig\) is of no",
        ),
        (
            {"peft_type": "XLORA", "adapters": {"0": "/evil"}, "hidden_size": 8},
            r"adapter_config.json \(XLoraConfig\) is",
        ),
        (
            {"peft_type": "PROMPT_TUNING", "tokenizer_name_or_path": "/evil", "num_virtual_tokens": 1},
            r"adapter_config.json \(PromptTuningConfig\) is of no",
        ),
        (None, "has no adapter_model.safetensors"),
    ],
)
def test_an_adapter_brings_no_code_and_no_pickle(about, message, tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"a pickle")
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM", **(about or {})})
    )
    if about is not None:
        (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(UserError, match=message):
        load_adapter(torch.nn.Linear(1, 1), tmp_path)  # type: ignore[arg-type]


def test_a_type_that_nobody_knows(folder):
    edit(folder / "config.json", lambda config: config.update(model_type="qwen9_vl"))
    assert "has no model_type 'qwen9_vl'" in said_by_check(folder)


@pytest.mark.parametrize("name", ["LlamaConfig", "CLIPVisionConfig"])
def test_no_vision_language_model(name, tmp_path):
    import transformers

    getattr(transformers, name)(architectures=[name.replace("Config", "Model")]).save_pretrained(tmp_path)
    said = said_by_check(tmp_path)
    assert f"holds a {name.replace('Config', 'Model')}" in said
    assert "no vision-language model" in said


def test_another_familys_class(folder):
    said = said_by_check(folder, model_class="LlavaForConditionalGeneration")
    assert "holds a Qwen2VLForConditionalGeneration (model_type qwen2_vl)" in said
    assert "model.model_class=LlavaForConditionalGeneration is for model_type llava" in said


def test_a_module_that_cannot_be_imported(folder):
    said = said_by_check(folder, model_class="Mine", import_path="no_such_module")
    assert "model.import_path=no_such_module cannot be imported" in said
    assert "is no class of a model" in said_by_check(folder, model_class="is_torch_available")


def test_the_processor_of_another_model(folder):
    processor = folder / "processor_config.json"
    edit(processor, lambda p: p["image_processor"].update(patch_size=14))
    assert "the image processor has patch_size=14, and the model's vision_config has patch_size=8" in said_by_check(
        folder
    )
    edit(processor, lambda p: p["image_processor"].update(patch_size=8, merge_size=1))
    assert "merge_size=1" in said_by_check(folder)
    edit(processor, lambda p: p["image_processor"].update(merge_size=2))
    edit(folder / "config.json", lambda config: config.update(image_token_id=5))
    assert "marks images with token 914, its config.json says 5" in said_by_check(folder)


def test_weights_of_another_model(folder):
    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if "layers.0." in name or "blocks.0.norm" in name]:
            weights[name.replace("0.", "zero.", 1)] = weights.pop(name)

    change_weights(folder, rename)
    said = said_by_loading(folder)
    assert "does not fit Qwen2VLForConditionalGeneration: 16 (4 vision, 12 language; for example " in said
    assert "16 (4 vision, 12 language; for example " in said.split("missing")[1]
    assert "Is model.model_class right?" in said


def test_weights_that_are_missing(folder):
    change_weights(folder, lambda weights: [weights.pop(name) for name in list(weights) if "merger" in name])
    assert "is not whole: 6 (6 projector; for example " in said_by_loading(folder)


def test_weights_of_another_shape(folder):
    edit(folder / "config.json", lambda config: config["text_config"].update(vocab_size=1000))
    said = said_by_loading(folder)
    assert "embed_tokens.weight has [1024, 128] and should have [1000, 128]" in said


def test_weights_that_are_not_used_are_noted(folder):
    change_weights(folder, lambda weights: weights.update({"extra.weight": torch.zeros(1)}))
    notes: list[str] = []
    load_model(ModelSource(str(folder)), notes.append)
    (note,) = notes
    assert note.startswith("Qwen2VLForConditionalGeneration does not use all weights of ")
    assert "1 (1 language; for example extra.weight) are left out" in note


def test_one_forward_pass_finds_what_no_file_tells(folder, make_collator, draw):
    source = ModelSource(str(folder))
    prompts = make_collator().prompts([example("red?", "yes", draw("red"))])
    processor, model = load_processor(source, pytest.fail), load_model(source, pytest.fail)
    check_forward("some/model", model, processor, prompts)

    processor.tokenizer.add_tokens([f"<new-{number}>" for number in range(200)])
    with pytest.raises(
        UserError, match=r"the tokenizer has ids up to 1115, and Qwen2VL.* has embeddings for 1024 tokens"
    ):
        check_forward("some/model", model, processor, prompts)

    change_weights(folder, lambda weights: next(iter(weights.values())).fill_(float("nan")))
    processor, model = load_processor(source, pytest.fail), load_model(source, pytest.fail)
    with pytest.raises(UserError, match="logits of Qwen2VLForConditionalGeneration in float32 are not finite"):
        check_forward("some/model", model, processor, prompts)


def test_a_placeholder_that_the_processor_replaces_needs_no_embedding(folder, make_collator, draw, monkeypatch):
    """As InternVL's `<video>`, of which only frames reach the model; one that the model looks for does reach it."""
    source, prompts = ModelSource(str(folder)), make_collator().prompts([example("red?", "yes", draw("red"))])
    processor, model = load_processor(source, pytest.fail), load_model(source, pytest.fail)
    rows = len(model.get_input_embeddings().weight)
    processor.tokenizer.add_tokens([f"<new-{number}>" for number in range(rows - len(processor.tokenizer))])
    processor.tokenizer.add_tokens(["<clip>"], special_tokens=True)
    assert processor.tokenizer.convert_tokens_to_ids("<clip>") == rows
    with pytest.raises(UserError, match=r"has ids up to 1024, and Qwen2VL.* has embeddings for 1024 tokens"):
        check_forward("some/model", model, processor, prompts)
    monkeypatch.setattr(processor, "video_token", "<clip>")
    check_forward("some/model", model, processor, prompts)
    monkeypatch.setattr(model.config, "video_token_id", rows)
    with pytest.raises(UserError, match="has ids up to 1024"):
        check_forward("some/model", model, processor, prompts)


@pytest.mark.parametrize(
    ("part", "field", "named"),
    [
        ("image_processor", "image_processor_type", "OldImageProcessor"),
        ("video_processor", "video_processor_type", "OldVideoProcessorFast"),
        (None, "processor_class", "OldProcessor"),
    ],
)
def test_a_class_of_an_older_transformers(folder, part, field, named):
    path = folder / "processor_config.json"
    edit(path, lambda content: (content[part] if part else content).update({field: named}))
    said = said_by_check(folder)
    assert f"{field} in its processor_config.json is {named}, which transformers 5." in said
    assert "give a copy of its folder without that field" in said
    edit(path, lambda content: (content[part] if part else content).pop(field))
    check_model(ModelSource(str(folder)), pytest.fail)


def test_a_class_of_the_checkpoints_own_code_is_not_taken_for_an_old_one(folder):
    auto = {"AutoImageProcessor": "code.MyImageProcessor"}
    edit(
        folder / "processor_config.json",
        lambda content: content["image_processor"].update(image_processor_type="MyImageProcessor", auto_map=auto),
    )
    (folder / "tokenizer.json").write_text("{}")
    assert "MyImageProcessor" not in said_by_check(folder)


def test_placeholders_that_do_not_match_the_vision_tower(folder, make_collator, draw, processor, model):
    batch = make_collator().prompts([example("red?", "yes", draw("red"))])
    one_less = batch["input_ids"].clone()
    one_less[0, (one_less[0] == 914).nonzero()[0]] = 5
    with pytest.raises(
        UserError, match=r"does not take what its Qwen2VLProcessor makes .*[Ii]mage features and image tokens"
    ):
        check_forward("some/model", model, processor, batch | {"input_ids": one_less})


@pytest.mark.parametrize("name", ["revision", "trust_remote_code", "dtype", "device_map", "quantization_config"])
def test_arguments_with_an_option_of_their_own(name, compose):
    with pytest.raises(UserError, match=rf"model\.model_kwargs\.{name} has an option of its own: use "):
        compose(f"model.model_kwargs.{name}=x")
