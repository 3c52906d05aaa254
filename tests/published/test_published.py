"""Published checkpoints, with tiny layers, through the whole line; skipped where their files or npm are not there.

`VLMEXP_PUBLISHED=all` compares and runs every folder, which takes ten minutes of one core and 11 GB. Without it,
folders that differ from another in sizes or in little else are left out, parameters are counted where those of LoRA are
known too, and two families run the whole pipeline.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.conftest import example
from tests.published.checkpoints import (
    OUTDATED,
    built,
    family_of,
    missing,
    published_folders,
    readable,
    write_checkpoint,
)
from tests.published.checks import Published, compared, composed, image
from vlmexp.collator.lengths import token_lengths
from vlmexp.errors import UserError
from vlmexp.evaluation.generate import generate_answers
from vlmexp.models.adapter import attach, peft_config, trainable_parameters
from vlmexp.models.ends import end_ids
from vlmexp.models.fit import check_forward
from vlmexp.models.load import ModelSource, check_model, load_model
from vlmexp.pipeline import pipeline
from vlmexp.runs import Run

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")

ALL = os.environ.get("VLMEXP_PUBLISHED") == "all"
NAMES = [name for name in published_folders() if ALL or not name.endswith(("_7b", "_13b", "_B", "_feb2025"))]
PIPELINES = NAMES if ALL else [name for name in NAMES if name in ("internvl2", "phi3vision")]


@pytest.fixture(scope="session")
def folders() -> Path:
    try:
        return built()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"npm cannot fetch the tokenizers: {error.stderr.decode()[-200:]}")


@pytest.fixture(scope="module", params=NAMES)
def published(request, folders, tmp_path_factory) -> Published:
    folder = readable(folders / request.param, tmp_path_factory.mktemp("read") / request.param)
    return Published(request.param, write_checkpoint(folder, tmp_path_factory.mktemp("weights") / request.param))


def test_the_tokens_are_those_of_the_documented_inference_code(published, tmp_path):
    """Korean, two images of other shapes, and none among them."""
    result = compared(published, tmp_path)
    assert result.differences == {"prompt": [], "labels": [], "length": []}
    assert result.examples >= 4


SIZES = [
    (448, 448), (640, 480), (1024, 768), (336, 1344), (50, 2000), (2000, 50), (3000, 2000), (28, 28), (10, 10)
]  # fmt: skip
# Tokens of one image of these sizes, with the processor options of the `model` choice.
IMAGE_TOKENS = {
    **dict.fromkeys(("qwen2vl", "qwen25vl"), (256, 391, 999, 576, 142, 142, 1247, 4, 4)),
    "qwen3vl": (196, 300, 768, 420, 124, 124, 1247, 64, 64),
    "llava15": (576,) * 9,
    "llava_next": (2928, 2340, 2340, 1944, 792, 722, 2144, 1176, 1176),
    "llava_onevision": (3699, 2929, 4725, 3753, 1701, 1544, 7329, 1485, 1485),
    **dict.fromkeys(("internvl2", "internvl3"), (256, 1792, 1792, 1280, 1792, 1792, 1792, 256, 256)),
    "paligemma": (1024,) * 9,
    "gemma3": (256,) * 9,
    "phi3vision": (757, 757, 757, 781, 1405, 1321, 1045, 757, 757),
}


def test_an_image_has_as_many_tokens_as_published(published, tmp_path):
    if published.family not in IMAGE_TOKENS or published.name != published.family:
        pytest.skip("no number is published, or it is that of another folder")
    items = [example("what?", "red", image(tmp_path, *size), id=str(size)) for size in SIZES]
    config = AutoConfig.from_pretrained(published.folder)
    ids = published.collator([items[0]])["input_ids"][0].tolist()
    first = ids.count(config.image_token_id)
    lengths = token_lengths(published.collator, items, with_answer=True)
    assert tuple(first + length - lengths[0] for length in lengths) == IMAGE_TOKENS[published.family]


ENDS = {
    **dict.fromkeys(("qwen2vl", "qwen25vl", "qwen3vl"), (151643, 151645)),
    **dict.fromkeys(("llava15", "llava_next"), (2,)),
    **dict.fromkeys(("llava_onevision", "internvl3"), (151645,)),
    "internvl2": (92542, 92543),
    "paligemma": (1,),
    "gemma3": (1, 106),
    "idefics3": (128001, 128258),
    "smolvlm": (49279,),
    "phi3vision": (2, 32000, 32007),
}


def test_it_answers_and_stops_where_the_published_files_say(published, tmp_path):
    if published.name != published.family:
        pytest.skip("its vocabulary and its model are those of another folder")
    collator, model = published.collator, load_model(published.source, pytest.fail)
    assert tuple(end_ids(model, published.processor.tokenizer, collator.end_id)) == ENDS[published.family]
    item = example("무슨 색?", "", image(tmp_path, 28, 28))
    check_forward(published.source.id, model, published.processor, collator.prompts([item]))
    (answer,) = generate_answers(model, collator, [item], [1], 1, 3, ahead=0)
    if published.config.model.shared_image_prefix:
        assert generate_answers(model, collator, [item], [1], 1, 3, share_images=True, ahead=0) == [answer]


def test_a_class_that_transformers_has_no_more_is_told(folders, tmp_path):
    source = ModelSource(str(folders / OUTDATED), processor_class="Qwen2_5_VLProcessor")
    with pytest.raises(UserError) as caught:
        check_model(source, pytest.fail, weights=False)
    said = (
        "image_processor_type in its preprocessor_config.json is Qwen2_5_VLImageProcessor, which transformers "
        f"{transformers.__version__} does not have"
    )
    assert said in str(caught.value)
    copy = readable(folders / OUTDATED, tmp_path / OUTDATED)
    images = check_model(ModelSource(str(copy)), pytest.fail, weights=False).image_processor
    assert type(images).__name__ == "Qwen2VLImageProcessor"


# Of the model, and of LoRA with r=64 on all linear layers, as far as they are known.
PARAMETERS = {
    "qwen2vl": (2_208_985_600, 116_883_456),
    "qwen2vl_7b": (8_291_375_616, None),
    "qwen25vl": (3_754_622_976, None),
    "qwen3vl": (2_127_532_032, None),
    "llava15": (7_063_427_072, 189_071_360),
    "llava_next": (7_566_747_648, None),
    "llava_onevision": (893_675_552, None),
    "internvl2": (2_205_754_368, None),
    "paligemma": (2_924_351_216, None),
    "paligemma2": (3_033_127_152, None),
    "gemma3": (4_300_079_472, None),
    "idefics3": (8_462_086_384, None),
    "smolvlm": (507_482_304, None),
    "phi3vision": (4_146_621_440, 129_826_816),
}


@pytest.mark.parametrize("name", [name for name, (_, lora) in PARAMETERS.items() if name in NAMES and (ALL or lora)])
def test_the_published_sizes_have_as_many_parameters(name, folders):
    whole, adapter = PARAMETERS[name]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folders / name))
        model.tie_weights()
        assert sum(parameter.numel() for parameter in model.parameters()) == whole
        if adapter is not None:
            options = {"r": 64, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
            assert trainable_parameters(attach(model, peft_config("LoraConfig", options)))[0] == adapter


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_the_whole_pipeline(name, folders, tmp_path):
    folder = write_checkpoint(readable(folders / name, tmp_path / "read" / name), tmp_path / "weights")
    squares = [image(tmp_path, side, side) for side in (28, 30)]  # of one size there would be no other image to show
    for split, count in (("train", 4), ("validation", 2), ("test", 2)):
        rows = [
            {"image": [squares[k % 2].name], "question": ["무슨 색?", "what color?"][k % 2], "answer": "teal"}
            for k in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = composed(
        *(name, folder, "dataset=files", *(f"dataset.options.{s}={tmp_path / s}.jsonl" for s in ("train", "test"))),
        *(f"dataset.options.validation={tmp_path}/validation.jsonl", f"paths.data={tmp_path}/data", "train=smoke"),
        *("train.max_steps=2", "train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=1"),
        *("train.per_device_eval_batch_size=1", "evaluation.batch_size=1", "export.parity_examples=1"),
    )
    with Run.open(tmp_path / "run", config, []) as run:
        result = pipeline(config, run)
    assert set(result) >= {"metric", "base_metric"}
    assert run.record["stages"]["train"]["steps"] == 2
    assert run.record["export"]["parity"]["checked"]
    written = json.loads((run.directory / "deployment_model" / "generation_config.json").read_text())["eos_token_id"]
    assert tuple(sorted(written if isinstance(written, list) else [written])) == ENDS[family_of(name)]
