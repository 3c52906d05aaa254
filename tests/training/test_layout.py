"""How batches are laid out: tried before the training, recorded, and the same training as with padded rows."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch

from tests.conftest import example
from tests.training.conftest import logged
from tests.training.test_train import run_training
from vlmexp.collator import packing
from vlmexp.errors import UserError
from vlmexp.models.adapter import attach
from vlmexp.models.packed_attention import Segment
from vlmexp.parts import packs
from vlmexp.training import layout
from vlmexp.training.layout import Layout, LayoutTest, tried_on

LORA = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.5)
PACKED = [Layout(shared=False, packed=True), Layout(shared=True, packed=True)]


@pytest.fixture
def asked(draw):
    questions = ["is it red?", "what color is the shape?", "how many?", "is there a circle in the image?"]
    pictures = [draw("red"), draw("blue", (96, 64))]
    return [example(text, "yes it is", pictures[n // 2], id=str(n)) for n, text in enumerate(questions)]


def all_one(number):
    """A planted fault: every token sees all before it."""
    return [Segment(0, int((number >= 0).sum()))]


def branches_see_each_other(number):
    rows = (number >= 0).sum(1).cumsum(0).tolist()
    return [Segment(a, b) for a, b in zip([0, *rows[:-1]], rows, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_isolation_is_tried_in_every_precision(dtype, model, make_collator, asked, monkeypatch):
    test = LayoutTest(attach(model.to(dtype), LORA), make_collator(), asked)
    assert [test.refuses(way) for way in PACKED] == [None, None]
    monkeypatch.setattr(packing, "segments", all_one)
    assert all(test.refuses(way) for way in PACKED)
    # Were the losses too alike to tell, it would still be seen.
    monkeypatch.setattr(LayoutTest, "_difference", lambda *_: None)
    assert all(test.refuses(way).startswith("rows see each other: what one says moves") for way in PACKED)
    monkeypatch.setattr(packing, "segments", branches_see_each_other)
    assert test.refuses(PACKED[0]) is None
    assert test.refuses(PACKED[1]).startswith("rows see each other")


def test_positions_that_go_on_are_seen(model, make_collator, asked, monkeypatch):
    positions = packing.row_positions
    test = LayoutTest(attach(model, LORA), make_collator(), asked)
    monkeypatch.setattr(
        packing, "row_positions", lambda *a: positions(*a) + 7 * torch.arange(len(a[1]["input_ids"]))[:, None] ** 2
    )
    assert test.refuses(PACKED[0]) is None, "what all tokens of a row have in common is nothing to rotary positions"
    monkeypatch.setattr(packing, "row_positions", lambda *a: torch.arange(a[1]["input_ids"].numel()).view(
        a[1]["input_ids"].shape) // 2)  # fmt: skip
    assert "its loss differs by" in test.refuses(PACKED[0])


def test_a_model_that_takes_no_such_mask_is_refused_and_nothing_is_left(model, make_collator, asked):
    model.set_attn_implementation("eager")
    adapted = attach(model, LORA).train()
    before = torch.random.get_rng_state()
    test = LayoutTest(adapted, make_collator(), asked, checkpointing={"use_reentrant": False})
    assert "does not take it" in test.refuses(PACKED[0])
    assert test.refuses(Layout(shared=True, packed=False)) is None
    assert all(parameter.grad is None for parameter in adapted.parameters())
    assert all(module.training for module in adapted.modules())
    assert not adapted.is_gradient_checkpointing
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("lengths", "media", "keys", "chosen"),
    [
        ([9, 8, 7, 6], [4, 4, 4, 4], [0, 0, 1, 1], {0, 1, 2, 3}),  # two questions about each of two images
        ([9, 8, 7, 6], [4, 4, 4, 0], [0, 1, 2, 3], {0, 1, 2}),  # of those with media
        ([9, 8, 7, 6, 5, 5], [0] * 6, [0, 1, 2, 3, 4, 5], {2, 3, 4, 5}),
        ([9], [4], [0], {0}),
    ],
)
def test_it_is_tried_on_a_few_examples(lengths, media, keys, chosen):
    assert set(tried_on(np.array(lengths), np.array(media), np.array(keys))) == chosen


QUIET = [
    "save_strategy=no", "max_steps=3", "warmup_steps=0", "learning_rate=0.02", "optim=sgd", "max_grad_norm=0",
    "train_sampling_strategy=random",
]  # fmt: skip


def test_a_packed_training_is_the_padded_one(trained, uneven):
    """Accumulated batches, checkpointing, evaluation."""
    runs = []
    for packing_option in ("auto", "never"):
        trainer, lines, _, after = trained(
            *QUIET, "gradient_accumulation_steps=2", "gradient_checkpointing=true", "eval_strategy=steps",
            extra=["collator.share_images=never", f"collator.packing={packing_option}"],
        )  # fmt: skip
        assert trainer.packed == (packing_option == "auto")
        runs.append((logged(lines), logged(lines, "eval_loss"), after))
    (losses, evaluated, after), (others, same, padded) = runs
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in others], rel=1e-5)
    assert [loss for _, loss in evaluated] == pytest.approx([loss for _, loss in same], rel=1e-5)
    assert all(torch.allclose(after[name], padded[name], atol=5e-6) for name in after)


def test_what_was_decided_is_recorded_and_kept(small, tmp_path, cut_after, monkeypatch, capfd):
    options = ["train.max_steps=4", "train.save_steps=2", "train.eval_strategy=no"]
    record = run_training(small(*options), tmp_path / "run")
    assert "Batches: one row for all questions about an image, no padding." in capfd.readouterr().err
    assert {name: record["data"][name] for name in ("share_images", "packed", "order")} == {
        "share_images": True, "packed": True, "order": "by image",
    }  # fmt: skip
    monkeypatch.setattr(LayoutTest, "refuses", lambda *_: pytest.fail("it is not tried again"))
    again = run_training(small(*options), cut_after(tmp_path / "run", 2))
    assert again["data"]["packed"] is True
    assert again["stages"]["train"]["loss"] == record["stages"]["train"]["loss"]


def test_what_is_refused_is_told(small, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(layout, "LOSS", -1.0)
    quick = ["train.max_steps=1", "train.eval_strategy=no", "train.save_strategy=no", "train.memory_preflight=false"]
    record = run_training(small(*quick), tmp_path / "run")["data"]
    assert (record["share_images"], record["packed"]) == (False, False)
    assert record["order"] == "by train.train_sampling_strategy"
    assert len(record["layouts_refused"]) == 3
    assert "Batches: a row for each example, with padding; not one row for all" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"collator.share_images=always is not possible here: its loss differs by"):
        run_training(small(*quick, "collator.share_images=always"), tmp_path / "always")


def test_what_cannot_be_packed_by_its_options_is_not_tried(small, tmp_path, monkeypatch):
    unlike = [
        "collator.packing=never",
        "collator.label_masking.mask_pad_token=false",  # there is a loss on padding
        "train.neftune_noise_alpha=5",  # the noise goes by the length of a row
        "train.torch_compile=true",  # what is tried is not what runs
    ]
    assert [packs(small(*option)) for option in ([], *([option] for option in unlike))] == [True, *[False] * 4]
    monkeypatch.setattr(LayoutTest, "refuses", lambda _, way: None if not way.packed else pytest.fail("tried"))
    quick = ["train.max_steps=1", "train.eval_strategy=no", "train.save_strategy=no", "train.memory_preflight=false"]
    record = run_training(small(*quick, unlike[0]), tmp_path / "run")["data"]
    assert (record["share_images"], record["packed"]) == (True, False)
