"""How prompts are read is tried with the model: without padding, with a mask, or each with its own image."""

from __future__ import annotations

from functools import partial

import pytest
from transformers import AttentionInterface

from tests.conftest import example
from tests.models.test_packed_attention import lower_right
from vlmexp.collator.lengths import fit
from vlmexp.collator.packing import packed_inputs
from vlmexp.evaluation import prefix_check, shared_prefix
from vlmexp.evaluation.generate import generate_answers
from vlmexp.evaluation.prefix_check import Sharing, find_sharing
from vlmexp.evaluation.ranking import rank_answers
from vlmexp.models import packed_attention
from vlmexp.models.packed_attention import Layout, Segment, teach_attention


@pytest.fixture
def asked(draw):
    photos = [draw("red"), draw("blue", (96, 64))]
    return [example("what is it? " * (1 + k % 3), "", photos[k % 2], id=str(k)) for k in range(5)]


@pytest.fixture
def found(model, make_collator, asked):
    keys = [row.images for row in asked]
    return partial(find_sharing, model, make_collator(), asked, keys, longest=100)


def test_what_is_exact_is_taken(found, model, monkeypatch):
    assert found(packs=True, is_known=False) == Sharing(packed=True)
    assert found(packs=False, is_known=False) == Sharing()
    monkeypatch.setattr(model.config.get_text_config(), "_attn_implementation_internal", "eager")
    assert found(packs=True, is_known=False) == Sharing()  # which reads masks and nothing else


def test_a_window_that_is_shorter_than_a_question(found, model, monkeypatch):
    config = model.config.get_text_config()
    monkeypatch.setattr(config, "use_sliding_window", True, raising=False)
    monkeypatch.setattr(config, "sliding_window", 100, raising=False)
    assert found(packs=True, is_known=True) == Sharing(packed=True)
    monkeypatch.setattr(config, "sliding_window", 99)
    refused = Sharing("some layers look 99 tokens back, and the longest row has 100")
    assert found(packs=True, is_known=True) == refused


def test_questions_that_see_each_other_are_not_packed(found, monkeypatch):
    def leaking(model, batch):
        packed = packed_inputs(model, batch)
        return {**packed, "attention_mask": Layout([Segment(0, packed["input_ids"].shape[1])]).sight(model.device)}

    monkeypatch.setattr(shared_prefix, "packed_inputs", leaking)
    assert found(packs=True, is_known=False) == Sharing()
    monkeypatch.setattr(prefix_check, "refuses_sharing", lambda *_: "they see each other")
    assert found(packs=True, is_known=True) == Sharing()
    assert found(packs=True, is_known=False) == Sharing("they see each other")


def test_flash_attention_shares_images_without_padding_alone(found, model, make_collator, asked, monkeypatch):
    collator = make_collator()
    lengths = fit(collator, asked, 2048, "error", with_answer=False).lengths.tolist()
    answers = generate_answers(model, collator, asked, lengths, 5, 6)
    choices = [["red", "a blue circle", "no"]] * len(asked)
    ranked = rank_answers(model, collator, asked, lengths, 5, choices, share_prompts=False)

    def flash(module, q, k, v, mask, sliding_window=None, **options):
        assert mask is None, "no mask of this form"
        lengths = (options[name] for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"))
        flat = (part[0].transpose(0, 1) for part in (q, k, v))
        return lower_right(*flat, *lengths, window_size=(-1, 0), enable_gqa=True)[None], None

    teach_attention()
    plain = AttentionInterface()["flash_attention_2"]
    taught = partial(packed_attention._reading_sight, flash, packed_attention._flash)
    AttentionInterface.register("flash_attention_2", taught)
    try:
        text = model.config.get_text_config()
        monkeypatch.setattr(text, "_attn_implementation_internal", "flash_attention_2")
        shared = generate_answers(model, collator, asked, lengths, 5, 6, share_images=True, packed=True)
        likelihoods = rank_answers(model, collator, asked, lengths, 5, choices, packed=True)
        with pytest.raises(AssertionError, match="no mask of this form"):
            generate_answers(model, collator, asked, lengths, 5, 6, share_images=True)
        assert text._attn_implementation == "flash_attention_2"
    finally:
        AttentionInterface.register("flash_attention_2", plain)
    assert shared == answers
    for one, other in zip(likelihoods, ranked, strict=True):
        assert dict(one) == pytest.approx(dict(other), abs=1e-4)
