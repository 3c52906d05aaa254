"""The model card: its front matter, what it must not say, and that its code runs."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys

from huggingface_hub import ModelCard
from PIL import Image

from vlmexp.export.cards import write_cards
from vlmexp.files import write_json
from vlmexp.models.card import Facts, model_card
from vlmexp.pipeline import pipeline
from vlmexp.runs import Run

FACTS = Facts(
    title="it",
    adapter="LoraConfig",
    base="org/base",
    base_on_hub=True,
    revision="abc123",
    dataset="questions",
    dataset_on_hub="org/questions",
    data={"train examples": "12"},
    training={"steps": 3, "loss": None},
    options={"train": {"deepspeed": "/home/me/secret/zero.json", "learning_rate": 1e-4, "names": ["~/x/y.txt"]}},
    prompt={"text": "<s>{question}", "images": 0, "add_special_tokens": False},
    loading={
        "model_class": "AutoModelForImageTextToText", "processor_class": "AutoProcessor",
        "import_path": "transformers", "register": None, "image_backend": None,
    },
    max_new_tokens=4,
    dtype="bfloat16",
    version="1.2.3",
    scores={
        "fine-tuned": {
            "metrics": {"vqa_accuracy": 0.98765, "bleu": None}, "n": 10, "population": 20, "split": "test",
        }
    },
)  # fmt: skip


def test_the_front_matter_of_an_adapter_and_of_a_merged_model():
    adapter = ModelCard(model_card(FACTS, merged=False, where="me/it"))
    assert adapter.data.to_dict().items() >= {
        "base_model": "org/base", "base_model_relation": "adapter", "library_name": "peft",
        "pipeline_tag": "image-text-to-text", "tags": ["vlmexp", "lora"], "datasets": ["org/questions"],
    }.items()  # fmt: skip
    (result,) = adapter.data.eval_results
    assert (result.dataset_type, result.dataset_split, result.metric_type) == ("org/questions", "test", "vqa_accuracy")
    assert result.metric_value == 0.9877
    merged = ModelCard(model_card(FACTS, merged=True, where="me/it"))
    assert (merged.data.library_name, merged.data.base_model_relation) == ("transformers", "finetune")
    assert "`org/base` at revision `abc123`, fine-tuned on the data set `questions` with vlmexp 1.2.3" in merged.text
    assert "| VQA accuracy | 98.77 % |" in merged.text
    assert "10 of 20, test split" in merged.text


def test_a_model_of_this_machine_is_not_linked_to_the_hub():
    facts = dataclasses.replace(FACTS, base="my-base", base_on_hub=False, dataset_on_hub=None)
    card = ModelCard(model_card(facts, merged=False, where="model"))
    assert card.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}


def test_no_path_of_this_machine_is_on_the_card():
    card = model_card(FACTS, merged=True, where="me/it")
    assert "/home" not in card
    assert "secret" not in card
    assert "deepspeed: zero.json" in card
    assert "- y.txt" in card


def test_the_code_says_what_the_model_needs():
    loading = FACTS.loading | {"register": "vlmexp.models.phi3_vision"}
    card = model_card(dataclasses.replace(FACTS, loading=loading, trust_remote_code=True), merged=True, where="me/it")
    assert "It needs transformers, vlmexp, as transformers has no class for this model." in card
    assert "import vlmexp.models.phi3_vision  # makes" in card
    assert 'from_pretrained("me/it", dtype="auto", trust_remote_code=True)' in card
    assert "add_special_tokens=False" in card
    assert "PIL" not in card
    adapter = model_card(FACTS, merged=False, where="me/it")
    assert 'from_pretrained("org/base", revision="abc123", dtype="bfloat16")' in adapter


def test_the_code_of_both_cards_runs_and_answers_the_same(compose, vqa_files, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "answer-briefly-please")
    config = compose(
        "dataset=files", "threads=1", "train.max_steps=20", "train.per_device_train_batch_size=16", "peft.r=8",
        "dataset.columns={image: picture, question: query, answer: response}", "train.learning_rate=5e-3",
        "train.num_train_epochs=10", "train.eval_strategy=no", "train.save_strategy=no", "evaluation.blind=none",
        "collator.system_prompt=answer-briefly-please",
        *(f"dataset.options.{split}={vqa_files / split}.jsonl" for split in ("train", "test")),
    )  # fmt: skip
    directory = tmp_path / "run"
    with Run.open(directory, config, []) as run:
        pipeline(config, run)
    image = Image.new("RGB", (64, 64), "red")
    image.save(directory / "photo.jpg")
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    said = []
    for folder in ("model", "deployment_model"):
        card = (directory / folder / "README.md").read_text()
        assert str(tmp_path) not in card
        assert "answer-briefly-please" not in card, "a secret"
        assert "<MY_API_KEY>" in card
        assert re.search(r"\| fine-tuned \|\n(.*\n)*\| VQA accuracy \| [\d.]+ % \| [\d.]+ % \|", card)
        code = card.split("```python\n")[1].split("```")[0].replace("<MY_API_KEY>", "answer-briefly-please")
        path = {"PYTHONPATH": os.pathsep.join(sys.path)} if "vlmexp" in code else {}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=directory, env=environment | path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]
    assert said[0].strip()

    with Run.open(directory, config, []) as run:
        result = {"metrics": {"vqa_accuracy": 0.125}, "n": 1, "population": 1, "split": "test"}
        write_json(run.path("evaluation", "finetuned_vlm_model_evaluation.json"), result)
        write_cards(config, run)
    assert "12.50 %" in (directory / "deployment_model" / "README.md").read_text()
