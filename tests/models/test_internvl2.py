"""InternVL2 against the original code's own numbers, on a tiny random checkpoint in the Hub's format.

golden/internvl2: config.json and model.safetensors in the Hub's format; ref.safetensors, what the original code made of
them; processor.json, what the original image processing made of images drawn by a formula.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, LlamaTokenizer

from tests.conftest import example
from vlmexp.errors import UserError
from vlmexp.models.adapter import attach, load_adapter, merged, peft_config
from vlmexp.models.export import save_adapter
from vlmexp.models.internvl2 import InternVL2ForConditionalGeneration, export_hub, export_plain
from vlmexp.models.internvl2_config import END_OF_TURN_ID, IMAGE_TOKEN_ID, InternVL2Config, native_config
from vlmexp.models.internvl2_processor import (
    SYSTEM_MESSAGE,
    TOKENIZER_OPTIONS,
    TOKENS,
    InternVL2ImageProcessor,
    InternVL2Processor,
    load_tokenizer,
)
from vlmexp.models.load import ModelSource, load_model, load_processor
from vlmexp.parts import build_collator

GOLDEN = Path(__file__).parent.parent / "golden" / "internvl2"
GOLDEN_IMAGE_TOKEN_ID = 7  # the golden inputs were made with this id in the place of <IMG_CONTEXT>
LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
ADDED = """<|plugin|> <|interpreter|> <|action_end|> <|action_start|> <|im_end|> <|im_start|> <img> </img> <IMG_CONTEXT>
<quad> </quad> <ref> </ref> <box> </box>""".split()
PIECES = ["▁t", "he", "▁the", "in", *"▁\n?abcdefghijklmnopqrstuvwxyz"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
FIRST_ADDED_ID = 3 + len(BYTES) + len(PIECES)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    values: dict[str, Any] = load_file(GOLDEN / "ref.safetensors")
    shape = values["px_shape"].tolist()
    wave = torch.sin(torch.arange(int(np.prod(shape)), dtype=torch.float64) * 0.37)
    inputs = {"pixel_values": wave.float().reshape(shape), "input_ids": values["ids"], "attention_mask": values["att"]}
    return {**values, "inputs": inputs}


@pytest.fixture
def golden_model():
    return AutoModelForImageTextToText.from_pretrained(GOLDEN, image_token_id=GOLDEN_IMAGE_TOKEN_ID).eval()


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory) -> Path:
    """The golden checkpoint with a tokenizer, remote code and preprocessor_config.json, as the Hub's repository has."""
    folder = tmp_path_factory.mktemp("hub")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, folder / name)
    vocab = {piece: index for index, piece in enumerate(["<unk>", "<s>", "</s>", *BYTES, *PIECES])}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "n")]
    LlamaTokenizer(vocab=vocab, merges=merges, **TOKENIZER_OPTIONS, pad_token="</s>").save_pretrained(folder)
    write_tokenizer_config(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}
    config["image_token_id"] = FIRST_ADDED_ID + ADDED.index("<IMG_CONTEXT>")
    (folder / "config.json").write_text(json.dumps(config))
    preprocessor = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 448, "crop_size": 448}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def write_tokenizer_config(folder: Path) -> None:
    tokens = {0: "<unk>", 1: "<s>", 2: "</s>", **{FIRST_ADDED_ID + n: token for n, token in enumerate(ADDED)}}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "added_tokens_decoder": {str(index): {"content": token, **flags} for index, token in tokens.items()},
        "additional_special_tokens": ADDED,
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "bos_token": "<s>",
        "chat_template": "{{ 'not the one' }}",
        "eos_token": "</s>",
        "model_max_length": 8192,
        "pad_token": "</s>",
        "tokenizer_class": "InternLM2Tokenizer",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def hub_processor(hub_folder):
    return load_processor(ModelSource(str(hub_folder)), pytest.fail)


@pytest.fixture
def hub_model(hub_folder):
    return load_model(ModelSource(str(hub_folder)), pytest.fail)


def photo(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def prompts(processor, *questions: tuple[str, tuple[int, int]], side: str = "left") -> Any:
    """One image of its own size a question, in a padded batch."""
    parts = [
        [{"type": "image", "image": photo(size[0], size)}, {"type": "text", "text": text}] for text, size in questions
    ]
    return processor.apply_chat_template(
        [[{"role": "user", "content": part}] for part in parts],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": side},
    )  # fmt: skip


TWO = (("what is in the image?", (64, 48)), ("the thing", (30, 90)))


def test_logits_and_greedy_tokens_are_the_originals(golden_model, reference):
    inputs, real = reference["inputs"], reference["att"].bool()
    assert isinstance(golden_model, InternVL2ForConditionalGeneration)
    with torch.inference_mode():
        logits = golden_model(**inputs, position_ids=reference["pos"]).logits
        features = golden_model.model.get_image_features(inputs["pixel_values"]).pooler_output
        generated = golden_model.generate(**inputs, max_new_tokens=5, do_sample=False)
    torch.testing.assert_close(logits[real], reference["logits"][real], rtol=0, atol=1e-4)
    torch.testing.assert_close(features, reference["vision"], rtol=0, atol=1e-4)
    # The original generates from embeddings: its output begins with a BOS token and leaves the prompt out.
    assert generated[:, inputs["input_ids"].shape[1] :].tolist() == reference["generated"][:, 1:].tolist()


def test_every_weight_has_its_place(hub_folder):
    model, info = AutoModelForImageTextToText.from_pretrained(
        hub_folder, output_loading_info=True, attn_implementation="eager", trust_remote_code=True
    )
    assert isinstance(model, InternVL2ForConditionalGeneration)
    assert model.config.text_config._attn_implementation == "eager"
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.generation_config.eos_token_id == 2


@pytest.mark.parametrize(
    "case", json.loads((GOLDEN / "processor.json").read_text()), ids=lambda case: str(case["size"])
)
def test_tiles_are_the_originals(case):
    width, height = case["size"]
    x, y, c = np.meshgrid(np.arange(width), np.arange(height), np.arange(3), indexing="xy")
    image = Image.fromarray(((7 * x + 13 * y + 50 * c + x * y // 17) % 256).astype(np.uint8))
    processor = InternVL2ImageProcessor()
    result = processor(image, return_tensors="pt")
    assert list(result["pixel_values"].shape) == case["pixel_shape"]
    assert result["num_patches"].tolist() == [case["tiles"]]
    assert processor.get_number_of_image_patches(height, width) == case["tiles"] == case["num_img_tokens"] // 256
    pixels = result["pixel_values"].flatten()[:: case["pixel_stride"]]
    torch.testing.assert_close(pixels, torch.tensor(case["pixels"]), rtol=0, atol=1e-5)


def test_the_prompt_is_the_originals(hub_processor):
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "the thing"},
        {"role": "user", "content": "in?"},
    ]
    head = f"<|im_start|>system\n{SYSTEM_MESSAGE}<|im_end|>"
    body = (
        "<|im_start|>user\n<IMG_CONTEXT>\nwhat?<|im_end|><|im_start|>assistant\nthe thing<|im_end|>"
        "<|im_start|>user\nin?<|im_end|><|im_start|>assistant\n"
    )
    assert hub_processor.apply_chat_template(turns, add_generation_prompt=True) == head + body
    for content, expected in (("", head), ([], head), ("be brief", "<|im_start|>system\nbe brief<|im_end|>")):
        own = [{"role": "system", "content": content}, *turns]
        assert hub_processor.apply_chat_template(own, add_generation_prompt=True) == expected + body


def test_the_processor_is_put_together_from_the_hub_files(hub_folder, hub_processor):
    assert isinstance(hub_processor, InternVL2Processor)
    tokenizer = hub_processor.tokenizer
    assert [tokenizer.convert_tokens_to_ids(token) for token in ADDED] == [
        FIRST_ADDED_ID + n for n in range(len(ADDED))
    ]
    assert (tokenizer.eos_token, tokenizer.pad_token, hub_processor.image_seq_length) == ("<|im_end|>", "</s>", 4)
    assert hub_processor.image_processor.size == {"height": 28, "width": 28}
    assert AutoConfig.from_pretrained(hub_folder).image_token_id == hub_processor.image_token_id
    batch = prompts(hub_processor, ("the thing", (56, 28)))
    ids = batch["input_ids"][0].tolist()
    assert ids[0] == tokenizer.bos_token_id
    assert ids[1] != tokenizer.bos_token_id
    assert batch["pixel_values"].shape == (3, 3, 28, 28)  # two tiles and a thumbnail, of 4 tokens each
    place = ids.index(tokenizer.convert_tokens_to_ids("<img>"))
    assert ids[place + 1 : place + 14] == [hub_processor.image_token_id] * 12 + [FIRST_ADDED_ID + ADDED.index("</img>")]
    few = AutoProcessor.from_pretrained(hub_folder, max_patches=1, padding_side="right")
    assert prompts(few, ("the thing", (56, 28)))["pixel_values"].shape[0] == 1
    assert few.tokenizer.padding_side == "right"


def test_a_saved_processor_comes_back_as_it_was(hub_processor, tmp_path):
    hub_processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is InternVL2Processor
    assert type(again.image_processor) is type(AutoImageProcessor.from_pretrained(tmp_path)) is InternVL2ImageProcessor
    first, second = prompts(hub_processor, *TWO), prompts(again, *TWO)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("placeholders", [False, True])
def test_a_sentencepiece_model_gives_the_published_ids(tmp_path, placeholders):
    pytest.importorskip("sentencepiece", reason="transformers needs it to read a tokenizer.model")
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((byte, 6) for byte in BYTES), *((piece, 1) for piece in PIECES)]
    # InternLM2's model has such pieces at the ids of its control tokens; tokens that InternVL2 added stand behind them.
    pieces += [(f"[UNUSED_TOKEN_{n}]", 4) for n in range(6)] if placeholders else []
    for n, (piece, kind) in enumerate(pieces):
        model.pieces.add(piece=piece, type=kind, score=-float(n))
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback, model.trainer_spec.pad_id = 2, True, -1
    model.trainer_spec.unk_id, model.trainer_spec.bos_id, model.trainer_spec.eos_id = 0, 1, 2
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    write_tokenizer_config(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert [tokenizer.convert_tokens_to_ids(token) for token in ADDED] == [
        FIRST_ADDED_ID + n for n in range(len(ADDED))
    ]
    assert tokenizer.convert_tokens_to_ids("<video>") == FIRST_ADDED_ID + len(ADDED)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "</s>")
    text = "<|im_start|>the\nin [UNUSED_TOKEN_4]é<|im_end|>"
    ids = tokenizer(text).input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[:5] == ["<s>", "<|im_start|>", "t", "he", "\n"]
    assert tokenizer.decode(ids[1:]) == text
    assert ids.count(FIRST_ADDED_ID + ADDED.index("<|im_end|>")) == 1
    tokenizer.save_pretrained(tmp_path / "saved")
    assert LlamaTokenizer.from_pretrained(tmp_path / "saved")(text).input_ids == ids


def test_what_is_saved_is_what_the_hub_holds(hub_folder, hub_model, hub_processor, tmp_path):
    export_hub(hub_model, hub_processor, tmp_path / "hub")
    before, after = tensors(hub_folder), tensors(tmp_path / "hub")
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (hub_folder, tmp_path / "hub")]
    assert configs[0] == configs[1]
    again = load_model(ModelSource(str(tmp_path / "hub")), pytest.fail)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in hub_model.state_dict().items())


@pytest.mark.parametrize(("dtype", "same"), [("auto", True), (torch.float32, False)])
def test_a_half_precision_checkpoint_keeps_its_bits(hub_processor, tmp_path, dtype, same):
    config = json.loads((GOLDEN / "config.json").read_text())
    for part in (config, config["llm_config"], config["vision_config"]):
        part["torch_dtype"] = "bfloat16"
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text(json.dumps(config))
    before = {name: value.bfloat16() for name, value in tensors(GOLDEN).items()}
    save_file(before, tmp_path / "half" / "model.safetensors", {"format": "pt"})
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "half", dtype=dtype)
    export_hub(model, hub_processor, tmp_path / "out")
    after, written = tensors(tmp_path / "out"), json.loads((tmp_path / "out" / "config.json").read_text())
    assert all(torch.equal(value.to(after[name].dtype), after[name]) for name, value in before.items())
    assert ({value.dtype for value in after.values()} == {torch.bfloat16}) is same
    assert (written == config) is same
    assert written["llm_config"]["torch_dtype"] == ("bfloat16" if same else "float32")


def test_save_pretrained_keeps_every_option(golden_model, reference, tmp_path):
    golden_model.config.text_config.attention_dropout = 0.25
    golden_model.save_pretrained(tmp_path)
    assert tensors(tmp_path).keys() == tensors(GOLDEN).keys()
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert again.config.image_token_id == GOLDEN_IMAGE_TOKEN_ID
    assert again.config.text_config.attention_dropout == 0.25
    with torch.inference_mode():
        assert torch.equal(again(**reference["inputs"]).logits, golden_model(**reference["inputs"]).logits)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_a_model_from_scratch_is_saved_under_the_same_names(tmp_path, heads):
    hub = json.loads((GOLDEN / "config.json").read_text())
    hub["llm_config"] |= {"num_key_value_heads": heads, "bias": True}
    hub["vision_config"] |= {"qk_normalization": True, "norm_type": "rms_norm", "qkv_bias": False}
    model = AutoModelForImageTextToText.from_config(InternVL2Config.from_dict(hub))
    model.save_pretrained(tmp_path)
    saved = tensors(tmp_path)
    layer = "language_model.model.layers.1.attention.wqkv"
    assert saved[f"{layer}.weight"].shape == (16 * (4 + 2 * heads), 64)
    assert saved[f"{layer}.bias"].shape == (16 * (4 + 2 * heads),)
    assert {"vision_model.encoder.layers.0.attn.q_norm.weight", "language_model.output.weight"} < saved.keys()
    assert not any(name.startswith(("model.", "lm_head")) for name in saved)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_packed_rows_are_a_head_group_each():
    weights = tensors(GOLDEN)["language_model.model.layers.0.attention.wqkv.weight"]
    model = AutoModelForImageTextToText.from_pretrained(GOLDEN)
    attention = model.model.language_model.layers[0].self_attn
    heads = weights.split(16)  # q0 q1 k0 v0 q2 q3 k1 v1
    for name, order in (("q_proj", (0, 1, 4, 5)), ("k_proj", (2, 6)), ("v_proj", (3, 7))):
        assert torch.equal(getattr(attention, name).weight, torch.cat([heads[n] for n in order]))


def test_positions_beyond_the_trained_length_are_stretched():
    model = AutoModelForImageTextToText.from_pretrained(GOLDEN)
    trained, factor, length, size = 512, 2.0, 700, 16
    model.model.language_model.rotary_emb(torch.zeros(1, 1, size), torch.arange(length)[None])
    # InternLM2DynamicNTKScalingRotaryEmbedding
    base = 1e6 * ((factor * length / trained) - (factor - 1)) ** (size / (size - 2))
    expected = 1.0 / base ** (torch.arange(0, size, 2).float() / size)
    torch.testing.assert_close(model.model.language_model.rotary_emb.inv_freq, expected)


def test_padding_and_batching_change_nothing(hub_model, hub_processor):
    batches = {side: prompts(hub_processor, *TWO, side=side) for side in ("left", "right")}
    lengths = batches["left"]["attention_mask"].sum(1)
    assert lengths[0] != lengths[1]  # one of the rows is padded
    with torch.inference_mode():
        answers = hub_model.generate(**batches["left"], max_new_tokens=6, do_sample=False)
        for n, question in enumerate(TWO):
            alone = prompts(hub_processor, question)
            single = hub_model(**alone).logits[0]
            for batch in batches.values():
                row = hub_model(**batch).logits[n][batch["attention_mask"][n].bool()]
                torch.testing.assert_close(row, single, rtol=0, atol=1e-5)
            answer = hub_model.generate(**alone, max_new_tokens=6, do_sample=False)[0, len(single) :].tolist()
            assert answers[n, lengths.max() :][: len(answer)].tolist() == answer


def collate(processor, compose, draw):
    collator = build_collator(compose(), processor, False)
    rows = [example("what is it?", "the thing", draw("red")), example("is it in?", "he is", draw("blue", (30, 90)))]
    return collator(rows), [collator([row]) for row in rows]


def test_a_batch_of_mixed_sizes_has_the_loss_of_its_examples(hub_model, hub_processor, compose, draw):
    batch, singles = collate(hub_processor, compose, draw)
    with torch.inference_mode():
        losses = torch.stack([hub_model(**single).loss for single in singles])
        counts = torch.tensor([int((single["labels"] != -100).sum()) for single in singles])
        torch.testing.assert_close(hub_model(**batch).loss, (losses * counts).sum() / counts.sum(), rtol=0, atol=1e-5)


def trained_adapter(model, batch):
    """The model with a LoRA after three steps, its losses, and the tensors without a gradient in the last one."""
    adapted = attach(model, peft_config("LoraConfig", LORA))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = adapted.train()(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    idle = [name for name, p in adapted.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    return adapted.eval(), losses, idle


def test_lora_trains_and_comes_back(hub_folder, hub_model, hub_processor, compose, draw, tmp_path):
    batch, _ = collate(hub_processor, compose, draw)
    adapted, losses, idle = trained_adapter(hub_model, batch)
    assert losses[-1] < losses[0]
    assert idle == []
    save_adapter(adapted, hub_processor, tmp_path / "model")
    base = load_model(ModelSource(str(hub_folder)), pytest.fail)
    with torch.inference_mode():
        untrained, trained = base(**batch).logits, adapted(**batch).logits
        reloaded = load_adapter(base, tmp_path / "model")(**batch).logits
        export_hub(merged(adapted), hub_processor, tmp_path / "deployment")
        deployed = load_model(ModelSource(str(tmp_path / "deployment")), pytest.fail)(**batch).logits
    assert (trained - untrained).abs().max() > 1e-2
    for other in (reloaded, deployed):
        torch.testing.assert_close(other, trained, rtol=0, atol=1e-4)
    assert tensors(tmp_path / "deployment").keys() == tensors(hub_folder).keys()


PLAIN = """
import sys
sys.modules["vlmexp"] = None  # importing it is an error from here on
import torch
from safetensors.torch import save_file
from tests_prompts import TWO, prompts
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained("plain").eval()
processor = AutoProcessor.from_pretrained("plain")
processor.image_processor = AutoImageProcessor.from_pretrained("plain", backend="pil")
batch = prompts(processor, *TWO)
with torch.inference_mode():
    save_file({**batch, "logits": model(**batch).logits}, "result.safetensors")
print(type(model).__name__, model.config.model_type)
"""


def test_the_plain_export_needs_only_transformers(hub_folder, hub_model, hub_processor, tmp_path):
    export_plain(hub_model, hub_processor, tmp_path / "plain")
    source = "import numpy as np\nfrom typing import Any\nfrom PIL import Image\n"
    source += f"{inspect.getsource(photo)}\n{inspect.getsource(prompts)}\nTWO = {TWO!r}\n"
    (tmp_path / "tests_prompts.py").write_text("from __future__ import annotations\n" + source)
    (tmp_path / "run.py").write_text(PLAIN)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["InternVLForConditionalGeneration", "internvl"]
    result, batch = load_file(tmp_path / "result.safetensors"), prompts(hub_processor, *TWO)
    assert all(torch.equal(result[name], batch[name]) for name in batch)
    with torch.inference_mode():
        torch.testing.assert_close(result["logits"], hub_model(**batch).logits, rtol=0, atol=1e-5)
    # The model that was exported is still what it was.
    export_hub(hub_model, hub_processor, tmp_path / "hub")
    assert all(torch.equal(value, tensors(tmp_path / "hub")[name]) for name, value in tensors(hub_folder).items())


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("llm_config", {"architectures": ["Qwen2ForCausalLM"]}, "architectures is Qwen2ForCausalLM; only InternLM2"),
        (None, {"ps_version": "v1"}, "ps_version is v1"),
        (None, {"use_llm_lora": 16}, "use_llm_lora is 16"),
    ],
)
def test_another_make_is_refused(part, change, message):
    hub = json.loads((GOLDEN / "config.json").read_text())
    (hub[part] if part else hub).update(change)
    with pytest.raises(ValueError, match=message):
        native_config(hub)


def test_another_prompt_is_refused(hub_folder, tmp_path):
    shutil.copytree(hub_folder, tmp_path / "other")
    config = json.loads((hub_folder / "config.json").read_text()) | {"template": "internvl2_5"}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="template is internvl2_5; only internlm2-chat is supported"):
        load_processor(ModelSource(str(tmp_path / "other")), pytest.fail)


def test_a_model_of_unknown_origin_has_no_hub_form(hub_processor, golden_model, tmp_path):
    golden_model.config.hub_config = None
    with pytest.raises(ValueError, match="hub_config"):
        export_hub(golden_model, hub_processor, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_the_tokens_of_the_published_vocabulary():
    hub = json.loads((GOLDEN / "config.json").read_text())
    hub["llm_config"]["vocab_size"] = 92553
    config = InternVL2Config.from_dict(hub)
    assert (config.image_token_id, config.text_config.eos_token_id) == (IMAGE_TOKEN_ID, [2, END_OF_TURN_ID])
    assert set(TOKENS.values()) - set(ADDED) == {"<s>", "</s>", "<unk>", "<video>"}
