from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import example
from vlmexp.errors import UserError
from vlmexp.models.adapter import attach, load_adapter, merged, peft_config, trainable_parameters
from vlmexp.models.export import save_adapter, write_pretrained
from vlmexp.models.load import ASSETS, ModelSource, load_model, load_processor

TINY = ModelSource("vlmexp:tiny", model_class="Qwen2VLForConditionalGeneration", processor_class="Qwen2VLProcessor")
LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def test_the_embedded_model_is_a_real_one():
    model = load_model(TINY, pytest.fail)
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration"
    assert 1.5e6 < sum(p.numel() for p in model.parameters()) < 2.5e6
    weights = ASSETS / "tiny" / "model.safetensors"
    assert weights.stat().st_size <= 6e6
    assert model.dtype == torch.float32


def test_its_files_are_what_the_code_writes(tmp_path):
    from vlmexp.models.tiny import write

    write(tmp_path)
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "processor_config.json"):
        new, old = (folder / name for folder in (tmp_path, ASSETS / "tiny"))
        if name == "config.json":
            ignored = {"transformers_version", "dtype"}
            assert {k: v for k, v in json.loads(new.read_text()).items() if k not in ignored} == {
                k: v for k, v in json.loads(old.read_text()).items() if k not in ignored
            }
        else:
            assert new.read_text() == old.read_text(), name


def test_random_weights_come_from_the_seed():
    source = dataclasses.replace(TINY, random_init=True)
    first, second, third = (load_model(source, pytest.fail, seed) for seed in (1, 1, 2))
    weights = [model.model.language_model.embed_tokens.weight for model in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_class_of_another_transformers_falls_back_and_says_so(checkpoint):
    """It is the one that the checkpoint's own files name."""
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["Qwen9VL"]}))
    notes: list[str] = []
    model = load_model(dataclasses.replace(TINY, id=str(checkpoint), model_class="Qwen9VL"), notes.append)
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration"
    assert notes == ["model.model_class=Qwen9VL is not in transformers: using AutoModelForImageTextToText."]


def test_a_class_that_nobody_names_is_a_mistake():
    with pytest.raises(UserError, match=r"model_class=Qwen9VL is not in transformers; did you mean '.*null takes Auto"):
        load_model(dataclasses.replace(TINY, model_class="Qwen9VL"), pytest.fail)
    with pytest.raises(UserError, match=r"processor_class=Qwen2VLProcesor .*'Qwen2VLProcessor'"):
        load_processor(dataclasses.replace(TINY, processor_class="Qwen2VLProcesor"), pytest.fail)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS / "tiny", tmp_path / "checkpoint"))


def test_missing_weights_are_an_error(checkpoint):
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    gone = next(name for name in weights if name.endswith("mlp.down_proj.weight"))
    del weights[gone]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 \(1 language; for example .*down_proj.*missing.*model.model_class"):
        load_model(ModelSource(str(checkpoint)), pytest.fail)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ModelSource("nobody/nothing-at-all"), "nobody/nothing-at-all is not in the cache .*HF_HUB_OFFLINE=1"),
        (ModelSource("vlmexp:huge"), "it ships vlmexp:tiny"),
        (dataclasses.replace(TINY, device_map="cuda"), "sees no GPU"),
    ],
)
def test_what_cannot_be_loaded(source, message):
    if torch.cuda.is_available() and source.device_map == "cuda":
        source = dataclasses.replace(source, id="vlmexp:huge")
        message = "ships"
    with pytest.raises(UserError, match=message):
        load_model(source, pytest.fail)


def test_pickled_weights_are_not_read(checkpoint):
    from safetensors.torch import load_file

    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match="pickled weights only"):
        load_model(ModelSource(str(checkpoint)), pytest.fail)


def test_a_broken_checkpoint_is_one_sentence(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="is no safetensors file"):
        load_model(ModelSource(str(checkpoint)), pytest.fail)


def test_adapter_merged_and_reloaded_agree(make_collator, processor, tmp_path, draw):
    model = attach(load_model(TINY, pytest.fail), peft_config("LoraConfig", LORA))
    trainable, total = trainable_parameters(model)
    assert 0 < trainable < total / 4
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    batch = make_collator()([example("is it red?", "yes", draw("red")), example("who?", "x", draw("blue", (96, 64)))])
    batch.pop("labels")
    with torch.inference_mode():
        base = load_model(TINY, pytest.fail)(**batch).logits
        trained = model.eval()(**batch).logits
        save_adapter(model, processor, tmp_path / "model")
        reloaded = load_adapter(load_model(TINY, pytest.fail), tmp_path / "model")(**batch).logits
        merged_model = merged(model)
        write_pretrained(merged_model, processor, tmp_path / "deployment")
        whole = merged_model(**batch).logits
        deployed = load_model(ModelSource(str(tmp_path / "deployment")), pytest.fail)(**batch).logits
    assert (trained - base).abs().max() > 1e-2
    for other in (reloaded, whole, deployed):
        torch.testing.assert_close(other, trained, rtol=0, atol=1e-4)
    assert merged(model.get_base_model()) is model.get_base_model()
    assert not (tmp_path / "model" / "model.safetensors").exists()
