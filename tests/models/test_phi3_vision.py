from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerFast,
)

from tests.conftest import ROOT
from vlmexp.models.phi3_vision import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor

GOLDEN = ROOT / "tests" / "golden" / "phi3vision"
REAL = ROOT.parent / "shared" / "real" / "phi3vision"
CASES = json.loads((GOLDEN / "processor.json").read_text())
PROMPT = "<|user|>\n{}{}<|end|>\n<|assistant|>\n"
ONE_IMAGE = PROMPT.format("<|image_1|>\n", "What is this?")


def formula_image(width: int, height: int, shift: int = 0) -> Image.Image:
    x, y, c = np.meshgrid(np.arange(width), np.arange(height), np.arange(3), indexing="xy")
    return Image.fromarray(((7 * x + 13 * y + 50 * c + x * y // 17 + shift) % 256).astype(np.uint8))


def wave(shape: list[int]) -> torch.Tensor:
    values = torch.sin(torch.arange(np.prod(shape), dtype=torch.float64) * 0.37)
    return values.float().reshape(shape)


def small_tokenizer() -> PreTrainedTokenizerFast:
    """As the checkpoint's tokenizer, with fewer words."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"]
    texts = ["What is this? What colour is the circle in the second picture? one two three yes no compare describe\n"]
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False))
    names = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    backend.add_special_tokens([AddedToken("<|image|>", normalized=False, rstrip=True)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the Hub has it, remote code's entries included."""
    folder = tmp_path_factory.mktemp("phi3_vision")
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(folder)
    shutil.copy(GOLDEN / "model.safetensors", folder)
    config = json.loads((GOLDEN / "config.json").read_text()) | {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image|>"),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig"},
        "_attn_implementation": "flash_attention_2",
    }
    (folder / "config.json").write_text(json.dumps(config))
    preprocessor = {
        "auto_map": {"AutoProcessor": "processing_phi3_v.Phi3VProcessor"},
        "image_processor_type": "Phi3VImageProcessor",
        "processor_class": "Phi3VProcessor",
        "num_crops": 4,
        "num_img_tokens": 144,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.fixture
def phi3v(folder) -> Phi3VForCausalLM:
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def phi3v_processor(folder) -> Phi3VProcessor:
    return AutoProcessor.from_pretrained(folder)


def mixed_examples() -> tuple[list[str], list[list[Image.Image]]]:
    """Texts with one image, with none, with two of other sizes, and with one wide image."""
    texts = [
        ONE_IMAGE,
        PROMPT.format("", "yes or no?"),
        PROMPT.format("<|image_1|>\n<|image_2|>\n", "compare the second picture"),
        PROMPT.format("<|image|>\n", "describe"),
    ]
    small, tall, square, wide = (
        formula_image(w, h, n) for n, (w, h) in enumerate([(60, 40), (50, 90), (80, 80), (400, 60)])
    )
    return texts, [[small], [], [tall, square], [wide]]


@pytest.mark.parametrize(("rope", "original_length"), [("short", 4096), ("long", 256)])
@pytest.mark.parametrize("negative_ids", [True, False])
def test_logits_are_the_originals(rope, original_length, negative_ids):
    reference = load_file(GOLDEN / "ref.safetensors")
    model = AutoModelForImageTextToText.from_pretrained(
        GOLDEN, original_max_position_embeddings=original_length, image_token_id=399
    ).eval()
    ids = reference["ids"] if negative_ids else reference["ids"].masked_fill(reference["ids"] < 0, 399)
    inputs = {
        "input_ids": ids,
        "attention_mask": reference["att"],
        "pixel_values": wave(reference["px_shape"].tolist()),
        "image_sizes": reference["sizes"],
    }
    with torch.inference_mode():
        logits = model(**inputs).logits[:, reference["keep"]]
    torch.testing.assert_close(logits, reference[f"logits_{rope}"], rtol=0, atol=1e-4)
    if rope == "short":
        for use_cache in (True, False):
            tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False, use_cache=use_cache)
            assert tokens[:, ids.shape[1] :].tolist() == reference["generated"].tolist()


@pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case["size"])))
def test_pixels_are_the_originals(case):
    processor = Phi3VImageProcessor()
    image = formula_image(*case["size"])
    result = processor(image)
    assert list(result["pixel_values"].shape[1:]) == case["pixel_shape"]
    assert result["image_sizes"].tolist() == [case["image_size"]]
    assert result["num_img_tokens"].tolist() == [case["num_img_tokens"]]
    assert processor.get_number_of_image_tokens(image.height, image.width) == case["num_img_tokens"]
    pixels = result["pixel_values"].flatten()[:: case["pixel_stride"]]
    torch.testing.assert_close(pixels, torch.tensor(case["pixels"]), rtol=0, atol=1e-5)
    array = processor(np.asarray(image))["pixel_values"]
    assert torch.equal(array, result["pixel_values"])


@pytest.mark.skipif(not REAL.exists(), reason=f"the checkpoint's own tokenizer is not at {REAL}")
def test_ids_are_the_originals():
    processor = AutoProcessor.from_pretrained(REAL)
    assert processor.image_token_id == 32044
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    rendered = processor.apply_chat_template(message, add_generation_prompt=True)
    for case in CASES:
        for text in (ONE_IMAGE, rendered):
            ids = processor(images=formula_image(*case["size"]), text=text)["input_ids"][0]
            ids = [-1 if token == 32044 else token for token in ids]
            assert len(ids) == case["n_ids"]
            assert ids[: len(case["ids_head"])] == case["ids_head"]
            assert ids[-len(case["ids_tail"]) :] == case["ids_tail"]
            assert ids.count(-1) == case["num_img_tokens"]
    # The original tokenizes what stands between images on its own, each time with a <s>.
    text = PROMPT.format("see <|image_1|><|image_2|> and\n<|image_3|>", "  which?")
    images = [formula_image(40, 30), formula_image(30, 40), formula_image(90, 20)]
    counts = [processor.image_processor.get_number_of_image_tokens(image.height, image.width) for image in images]
    chunks = [processor.tokenizer(chunk)["input_ids"] for chunk in ("<|user|>\nsee ", "", " and\n")]
    wanted = [token for chunk, count in zip(chunks, counts, strict=True) for token in [*chunk, *[32044] * count]]
    wanted += processor.tokenizer("  which?<|end|>\n<|assistant|>\n")["input_ids"]
    assert processor(images=images, text=text)["input_ids"] == [wanted]


@pytest.mark.skipif(not REAL.exists(), reason=f"the checkpoint's own configuration is not at {REAL}")
def test_the_real_configuration_names_the_real_weights():
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(REAL))
    index = json.loads((REAL / "model.safetensors.index.json").read_text())
    names = {name.replace("img_processor.", "img_processor.vision_model.") for name in model.state_dict()}
    assert names == set(index["weight_map"])
    assert sum(tensor.numel() for tensor in model.state_dict().values()) * 2 == index["metadata"]["total_size"]


def test_all_marks_of_an_image_give_the_same_ids(phi3v_processor):
    image = formula_image(60, 40)
    tagged = phi3v_processor(images=[[image]], text=[ONE_IMAGE])["input_ids"]
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    rendered = phi3v_processor.apply_chat_template(message, add_generation_prompt=True)
    assert rendered == ONE_IMAGE.replace("<|image_1|>", "<|image|>")
    assert phi3v_processor(images=image, text=rendered)["input_ids"] == tagged
    message[0]["content"][0]["image"] = image
    batch = phi3v_processor.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert batch["input_ids"] == tagged
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values", "image_sizes"}
    # One token in the text is the expanded text, shortened: nothing is swallowed behind it.
    raw = phi3v_processor.tokenizer(rendered)["input_ids"]
    at = raw.index(phi3v_processor.image_token_id) + 1
    assert tagged[0][-len(raw[at:]) :] == raw[at:]
    assert tagged[0][-len(raw[at:]) - 1] == phi3v_processor.tokenizer.bos_token_id


def test_tags_number_the_images(phi3v_processor):
    one, two = formula_image(60, 40), formula_image(40, 60)
    swapped = phi3v_processor(images=[one, two], text="<|image_2|> <|image_1|> <|image_2|>", return_tensors="pt")
    plain = phi3v_processor(images=[two, one, two], text="<|image|> <|image|> <|image|>", return_tensors="pt")
    for name, value in plain.items():
        assert torch.equal(swapped[name], value), name


def test_a_tag_without_an_image_is_text(phi3v_processor):
    text = PROMPT.format("", "<|image_1|>")
    assert phi3v_processor(text=text)["input_ids"] == [phi3v_processor.tokenizer(text)["input_ids"]]
    both = phi3v_processor(text=["<|image|> <|image_1|>", text], images=[[formula_image(9, 9)], []])
    assert len(both["pixel_values"]) == 1


@pytest.mark.parametrize(
    ("text", "images", "options", "message"),
    [
        (ONE_IMAGE, 2, {}, r"2 images, but the texts have marks for 1"),
        ([ONE_IMAGE, "no"], [1, 1], {}, r"1 images need the tags .* the text has none: 'no'"),
        ([ONE_IMAGE, "no"], [1], {}, r"images for 1 texts, but there are 2"),
        (["<|image|><|image|>"], [1], {}, r"1 images, but 2 times <\|image\|>"),
        ("<|image|>", None, {}, r"0 images, but 1 times <\|image\|>"),
        (["<|image_1|><|image_3|>"], [2], {}, r"has \[1, 3\]"),
        (ONE_IMAGE, 1, {"truncation": True, "max_length": 50}, r"truncation left 46"),
    ],
)
def test_marks_that_do_not_fit(phi3v_processor, text, images, options, message):
    image = formula_image(20, 20)
    if isinstance(images, int):
        images = [image] * images
    elif images is not None:
        images = [[image] * count for count in images]
    with pytest.raises(ValueError, match=message):
        phi3v_processor(text=text, images=images, **options)


def test_a_tokenizer_without_the_image_token(phi3v_processor):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match=r"needs a tokenizer with the token <\|image\|>"):
        Phi3VProcessor(phi3v_processor.image_processor, tokenizer)


@pytest.mark.parametrize("num_crops", [1, 4, 16])
@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (5000, 3), (8000, 1), (700, 699)])
def test_tiles_of_any_image_fit(num_crops, size):
    processor = Phi3VImageProcessor(num_crops=num_crops)
    result = processor(Image.new("L", size))
    height, width = result["image_sizes"][0].tolist()
    assert height % 336 == width % 336 == 0
    assert (height // 336) * (width // 336) <= num_crops
    assert result["pixel_values"].shape == (1, num_crops + 1, 3, 336, 336)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_equals_single_examples(phi3v, phi3v_processor, side):
    texts, images = mixed_examples()
    batch = phi3v_processor(text=texts, images=images, padding=True, padding_side=side, return_tensors="pt")
    in_order = [image for its_images in images for image in its_images]
    flat = phi3v_processor(text=texts, images=in_order, padding=True, padding_side=side, return_tensors="pt")
    assert all(torch.equal(flat[name], value) for name, value in batch.items())
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    total, count = 0.0, 0
    with torch.inference_mode():
        together = phi3v(**batch, labels=labels)
        for row, (text, its_images) in enumerate(zip(texts, images, strict=True)):
            single = phi3v_processor(text=[text], images=[its_images], return_tensors="pt")
            assert ("pixel_values" in single) == bool(its_images)
            alone = phi3v(**single, labels=single["input_ids"])
            kept = together.logits[row][batch["attention_mask"][row].bool()]
            torch.testing.assert_close(kept, alone.logits[0], rtol=0, atol=1e-5)
            tokens = single["input_ids"].shape[1] - 1
            total, count = total + float(alone.loss) * tokens, count + tokens
    assert side == "left" or float(together.loss) == pytest.approx(total / count, abs=1e-5)


def test_padding_does_not_choose_the_rope(folder, phi3v_processor):
    texts, images = mixed_examples()
    single = phi3v_processor(text=texts[:1], images=images[:1], return_tensors="pt")
    length = single["input_ids"].shape[1]
    model = AutoModelForImageTextToText.from_pretrained(folder, original_max_position_embeddings=length).eval()
    for side in ("left", "right"):
        options = {"padding": "max_length", "max_length": length + 50, "padding_side": side}
        padded = phi3v_processor(text=texts[:1], images=images[:1], return_tensors="pt", **options)
        kept = padded["attention_mask"].bool()
        with torch.inference_mode():
            torch.testing.assert_close(model(**padded).logits[kept], model(**single).logits[0], rtol=0, atol=1e-5)


def test_batched_generation_equals_one_by_one(phi3v, phi3v_processor):
    texts, images = mixed_examples()
    batch = phi3v_processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    together = phi3v.generate(**batch, **options)[:, -6:]
    for row, (text, its_images) in enumerate(zip(texts, images, strict=True)):
        single = phi3v_processor(text=[text], images=[its_images], return_tensors="pt")
        assert phi3v.generate(**single, **options)[0, -6:].tolist() == together[row].tolist()


def test_several_sequences_a_prompt_keep_their_images(phi3v, phi3v_processor):
    texts, images = mixed_examples()
    batch = phi3v_processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
    options = {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 3, "do_sample": False}
    together = phi3v.generate(**batch, **options)[:, -4:].reshape(len(texts), 3, 4)
    for row, (text, its_images) in enumerate(zip(texts, images, strict=True)):
        single = phi3v_processor(text=[text], images=[its_images], return_tensors="pt")
        assert phi3v.generate(**single, **options)[:, -4:].tolist() == together[row].tolist()


def test_generation_passes_from_short_to_long_rope(folder, phi3v_processor):
    inputs = phi3v_processor(text=ONE_IMAGE, images=formula_image(60, 40), return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    model = AutoModelForImageTextToText.from_pretrained(folder, original_max_position_embeddings=length + 2).eval()
    ids = inputs["input_ids"]
    with torch.inference_mode():
        for _ in range(6):
            logits = model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    assert model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False).tolist() == ids.tolist()


def test_image_tokens_need_their_images(phi3v, phi3v_processor):
    inputs = phi3v_processor(text=ONE_IMAGE, images=formula_image(60, 40), return_tensors="pt")
    with pytest.raises(ValueError, match=r"\d+ image tokens in input_ids, but \d+ image features"):
        phi3v(**{**inputs, "input_ids": inputs["input_ids"][:, :-40]})
    embeddings = phi3v.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(ValueError, match="need input_ids"):
        phi3v(inputs_embeds=embeddings, pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"])


def training_batch(processor: Phi3VProcessor) -> dict[str, torch.Tensor]:
    texts, images = mixed_examples()
    batch = processor(
        text=[f"{text}yes<|end|>" for text in texts], images=images, padding=True, padding_side="right",
        return_tensors="pt",
    )  # fmt: skip
    labels = torch.full_like(batch["input_ids"], -100)
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        labels[row, length - 4 : length] = batch["input_ids"][row, length - 4 : length]
    return {**batch, "labels": labels}


def test_the_loss_is_that_of_transformers_models(phi3v, phi3v_processor):
    batch = training_batch(phi3v_processor)
    labels = batch.pop("labels")
    with torch.inference_mode():
        whole = phi3v(**batch, labels=labels)
        summed = phi3v(**batch, labels=labels, num_items_in_batch=torch.tensor(10))
        shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
        kept = shifted != -100
        rows = phi3v(**batch, labels=shifted[kept], shift_labels=shifted[kept], logits_to_keep=kept)
        last = phi3v(**batch, logits_to_keep=1).logits
    items = int(kept.sum())
    assert float(summed.loss) * 10 == pytest.approx(float(whole.loss) * items, rel=1e-5)
    assert float(rows.loss) == pytest.approx(float(whole.loss), rel=1e-5)
    torch.testing.assert_close(last, whole.logits[:, -1:], rtol=0, atol=1e-5)


def test_lora_learns(phi3v, phi3v_processor, tmp_path):
    batch = training_batch(phi3v_processor)
    torch.manual_seed(0)
    model = peft.get_peft_model(phi3v, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for part in ("img_processor", "img_projection", "qkv_proj", "gate_up_proj"):
        assert any(part in name for name in names), part
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(6):
        loss = model(**batch).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[1] < losses[0]
    assert losses[-1] < losses[0] - 0.3
    idle = {name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    # The features are the last layer's input, so nothing behind it takes part.
    assert all("img_processor.encoder.layers.2." in name for name in idle), idle
    batch.pop("labels")
    with torch.inference_mode():
        trained = model.eval()(**batch).logits
        merged = model.merge_and_unload()
        merged.save_pretrained(tmp_path)
        reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
        for other in (merged, reloaded):
            torch.testing.assert_close(other(**batch).logits, trained, rtol=0, atol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(phi3v, phi3v_processor):
    batch = training_batch(phi3v_processor)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            phi3v.gradient_checkpointing_enable({"use_reentrant": False})
            assert phi3v.is_gradient_checkpointing
        phi3v.train().zero_grad()
        phi3v(**batch, use_cache=False).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in phi3v.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("img_processor" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-6, msg=name)


def test_saved_weights_are_the_hubs_bit_for_bit(phi3v, phi3v_processor, tmp_path):
    phi3v.save_pretrained(tmp_path)
    phi3v_processor.save_pretrained(tmp_path)
    saved, original = load_file(tmp_path / "model.safetensors"), load_file(GOLDEN / "model.safetensors")
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in original.items())
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["Phi3VForCausalLM"]
    assert written["model_type"] == "phi3_v"
    assert "auto_map" not in written
    assert "auto_map" not in (tmp_path / "processor_config.json").read_text()
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.chat_template == phi3v_processor.chat_template
    assert processor.image_processor.to_dict() == phi3v_processor.image_processor.to_dict()
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is Phi3VImageProcessor
    texts, images = mixed_examples()
    inputs, again = (
        p(text=texts, images=images, padding=True, return_tensors="pt") for p in (phi3v_processor, processor)
    )
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    with torch.inference_mode():
        assert torch.equal(model.eval()(**again).logits, phi3v(**inputs).logits)


def test_the_configuration(folder, tmp_path):
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is Phi3VConfig
    assert config._attn_implementation is None  # the file pins flash_attention_2
    assert config.rope_parameters["rope_type"] == "longrope"
    for name in ("eager", "sdpa"):
        model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation=name)
        assert model.config._attn_implementation == model.config.vision_config._attn_implementation == name
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_json_string() == config.to_json_string()
    assert Phi3VConfig().vision_config.num_hidden_layers == 24
    with pytest.raises(ValueError, match=r"embd_layer.hd_transform_order='glb_sub' is not supported"):
        Phi3VConfig(embd_layer={"hd_transform_order": "glb_sub"})
    with pytest.raises(ValueError, match=r"img_processor.name='siglip' is not supported"):
        Phi3VConfig(img_processor={"name": "siglip"})


def test_weights_can_be_drawn_anew(folder):
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    embedding = model.model.vision_embed_tokens
    assert not embedding.glb_GN.any()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert 0.01 < float(model.lm_head.weight.detach().std()) < 0.03


def test_the_whole_pipeline(folder, compose, vqa_files, tmp_path):
    """From the config entry to the merged model: batches, shared images, LoRA, export and answers."""
    from vlmexp.files import read_json
    from vlmexp.pipeline import pipeline
    from vlmexp.runs import Run

    config = compose(
        "model=phi3vision", f"model.id={folder}", "dataset=files", "threads=1",
        *(f"dataset.options.{split}={vqa_files / split}.jsonl" for split in ("train", "test")),
        "dataset.columns={image: picture, question: query, answer: response}", "dataset.max_examples={train: 12}",
        "peft.r=4", "train.max_steps=2", "train.logging_steps=1", "train.per_device_train_batch_size=4",
        "evaluation.blind_examples=4",
    )  # fmt: skip
    with Run.open(tmp_path / "run", config, []) as run:
        result = pipeline(config, run)
    assert 0 <= result["metric"] <= 1
    record = read_json(tmp_path / "run" / "run.json")
    assert record["model"]["class"] == "Phi3VForCausalLM"
    assert record["data"]["share_images"] is True
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "deployment_model")
    assert isinstance(merged, Phi3VForCausalLM)
