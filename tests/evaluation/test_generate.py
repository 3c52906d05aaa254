from __future__ import annotations

import pytest
from transformers import GenerationConfig, WatermarkingConfig

from tests.conftest import example
from vlmexp.collator.lengths import fit
from vlmexp.errors import UserError
from vlmexp.evaluation.generate import Reply, generate_answers
from vlmexp.evaluation.row import row_of


def test_a_batch_answers_what_each_example_alone_would(make_collator, model, draw):
    """Prompts and images of different sizes, in an order of their own."""
    collator = make_collator()
    colors, sizes = ["red", "blue", "black"], [(64, 64), (96, 64), (64, 160)]
    items = [
        example("what is it? " * (1 + k % 4), "", draw(colors[k % 3], sizes[k % 3]), id=str(k)) for k in range(7)
    ] + [example("no image here", "", id="7")]
    fitted = fit(collator, items, 2048, "error", with_answer=False)

    def answers(batch_size: int, share_images: bool = False) -> list[str]:
        return generate_answers(
            model, collator, fitted, fitted.lengths, batch_size, max_new_tokens=8, share_images=share_images
        )

    alone = answers(1)
    assert answers(8) == alone
    assert answers(3) == alone
    assert answers(8, share_images=True) == alone
    assert answers(2, share_images=True) == alone
    assert len(set(alone)) > 1


def test_generation_options_reach_the_model(make_collator, model, draw):
    items = [example("describe the image", "", draw("red"))]

    def answer(max_new_tokens: int, **options) -> str:
        return generate_answers(model, make_collator(), items, [1], 1, max_new_tokens, options)[0]

    assert answer(8, min_new_tokens=8).startswith(answer(1, min_new_tokens=1))
    assert len(answer(8, min_new_tokens=8)) > len(answer(1, min_new_tokens=1))


# A value for every field of GenerationConfig that changes answers, or ends in an error, where it is heeded.
PLANTED = {
    "max_length": 3, "max_new_tokens": 1, "min_length": 9999, "min_new_tokens": 12, "early_stopping": True,
    "max_time": 0.0, "stop_strings": ["e"], "do_sample": True, "num_beams": 3, "use_mtp": True, "use_cache": False,
    "cache_implementation": "quantized", "cache_config": {"backend": "none"}, "max_cache_len": 1, "temperature": 9.0,
    "top_k": 2, "top_p": 0.1, "min_p": 0.9, "top_h": 0.1, "typical_p": 0.1, "epsilon_cutoff": 0.9, "eta_cutoff": 0.9,
    "repetition_penalty": 50.0, "encoder_repetition_penalty": 0.01, "length_penalty": -9.0, "no_repeat_ngram_size": 1,
    "bad_words_ids": "SAID", "renormalize_logits": True, "forced_bos_token_id": 5, "forced_eos_token_id": 5,
    "remove_invalid_values": True, "exponential_decay_length_penalty": (0, 99.0), "suppress_tokens": "FLAT",
    "begin_suppress_tokens": "FLAT", "sequence_bias": "BIAS", "token_healing": True, "guidance_scale": 9.0,
    "watermarking_config": WatermarkingConfig(bias=50.0), "num_return_sequences": 2, "output_attentions": True,
    "output_hidden_states": True, "output_scores": True, "output_logits": True, "return_dict_in_generate": True,
    "pad_token_id": 7, "bos_token_id": 7, "encoder_no_repeat_ngram_size": 1, "decoder_start_token_id": 7,
    "is_assistant": True, "num_assistant_tokens": 3, "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.99, "prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1,
    "assistant_early_exit": 1, "assistant_lookbehind": 1, "target_lookbehind": 1, "assistant_ensemble_weight": 0.5,
    "speculation_type": "dflash", "compile_config": "none", "disable_compile": True, "continuous_batching_config": {},
    "low_memory": True, "penalty_alpha": 0.9, "dola_layers": "high", "diversity_penalty": 9.0, "num_beam_groups": 3,
    "constraints": ["x"], "force_words_ids": [[5]], "prefill_chunk_size": 1, "_from_model_config": False,
    "transformers_version": "1.0", "of_its_own": 1,
}  # fmt: skip


def test_no_field_of_the_checkpoint_but_its_ends_changes_an_answer(make_collator, model, draw):
    """Planted one by one, batched; then all at once, batched, alone and behind shared images."""
    collator = make_collator()
    items = [example("describe the image", "", draw("red"), id="0"), example("what?", "", draw("red"), id="1")]
    items.append(example("what is it?", "", draw("blue", (96, 64)), id="2"))
    lengths = fit(collator, items, 2048, "error", with_answer=False).lengths

    def answers(batch_size: int = 3, share_images: bool = False) -> list[str]:
        return generate_answers(model, collator, items, lengths, batch_size, 6, share_images=share_images)

    plain = answers()
    said = sorted(
        {i for text in plain for i in collator.processor.tokenizer(text, add_special_tokens=False)["input_ids"]}
    )
    made = {"SAID": [[i] for i in said], "FLAT": said, "BIAS": [[[i], -99.0] for i in said]}
    fields = {name: made.get(v, v) if isinstance(v, str) else v for name, v in PLANTED.items()}
    unplanted = vars(GenerationConfig()).keys() - fields.keys()
    assert unplanted == {"eos_token_id"}, "a newer transformers has fields that are not planted here"
    for name, value in fields.items():
        before = getattr(model.generation_config, name, None)
        assert before != value, name
        setattr(model.generation_config, name, value)
        assert answers() == plain, name
        setattr(model.generation_config, name, before)
    for name, value in fields.items():
        setattr(model.generation_config, name, value)
    assert answers() == answers(1) == answers(3, share_images=True) == plain
    assert model.generation_config.repetition_penalty == 50.0

    model.generation_config.eos_token_id = said
    ended = answers()
    assert ended == answers(1) == answers(3, share_images=True)
    assert all(len(text) < len(whole) and whole.startswith(text) for text, whole in zip(ended, plain, strict=True))


def test_a_checkpoint_s_fields_do_not_join_options(make_collator, model, draw):
    items = [example("describe the image", "", draw("red"))]
    plain = generate_answers(model, make_collator(), items, [1], 1, 12, {"num_beams": 2})
    model.generation_config.update(repetition_penalty=50.0, no_repeat_ngram_size=1, length_penalty=-9.0)
    assert generate_answers(model, make_collator(), items, [1], 1, 12, {"num_beams": 2}) == plain


@pytest.mark.parametrize("share_images", [True, False])
def test_answers_that_come_to_the_limit_are_marked(make_collator, model, draw, share_images):
    collator = make_collator()
    items = [example("describe the image", "", draw("red"), id="0"), example("what?", "", draw("red"), id="1")]
    lengths = fit(collator, items, 2048, "error", with_answer=False).lengths

    def replies(max_new_tokens: int, batch_size: int = 2, **options) -> list[Reply]:
        kept: dict[int, Reply] = {}
        generate_answers(
            model, collator, items, lengths, batch_size, max_new_tokens, options, share_images=share_images,
            on_batch=kept.update,
        )  # fmt: skip
        return [kept[0], kept[1]]

    whole = replies(100)
    assert [reply.cut for reply in whole] == [False, False]
    tokens = [len(collator.processor.tokenizer(reply.text, add_special_tokens=False)["input_ids"]) for reply in whole]
    for limit in sorted({*tokens, *(count + 1 for count in tokens), 2}):  # an end counts as a token
        for found in (replies(limit), replies(limit, batch_size=1)):
            assert [reply.cut for reply in found] == [count + 1 > limit for count in tokens]
            assert all(whole[k].text.startswith(reply.text) for k, reply in enumerate(found))


def test_an_answer_ends_before_a_stop_string(make_collator, model, draw):
    items = [example("describe the image", "", draw("red"))]
    (whole,) = generate_answers(model, make_collator(), items, [1], 1, 12)
    word = whole.split()[2]
    kept: dict[int, Reply] = {}
    options = {"stop_strings": [word]}
    (text,) = generate_answers(model, make_collator(), items, [1], 1, 12, options, on_batch=kept.update)
    assert text == whole[: whole.index(word)].strip()
    assert kept == {0: Reply(text, cut=False, said=text)}


def test_reasoning_is_no_part_of_an_answer(make_collator, model, draw, monkeypatch):
    collator, kept = make_collator(), dict[int, Reply]()
    monkeypatch.setattr(type(collator.template.control), "said", lambda *_: "<think>A dog? No.</think>\n a <b>cat</b>")
    items = [example("what is it?", "", draw("red"))]
    assert generate_answers(model, collator, items, [1], 1, 2, on_batch=kept.update) == ["a <b>cat</b>"]
    assert kept[0].said == "<think>A dog? No.</think>\n a <b>cat</b>"
    (text,) = generate_answers(model, collator, items, [1], 1, 2, reasoning_tags=["b"])
    assert text == "<think>A dog? No.</think>\n a"
    assert row_of(example("q?", ["<think>w</think> cat", " dog "])).answers == ("cat", " dog ")


def test_answers_do_not_depend_on_what_is_prepared_beforehand(make_collator, model, draw):
    items = [example(f"what is number {k}?", "", draw("red" if k % 2 else "blue"), id=str(k)) for k in range(9)]

    def answers(ahead: int, **options) -> list[str]:
        return generate_answers(model, make_collator(), items, [1] * 9, 2, 6, options, ahead=ahead)

    assert answers(0) == answers(2)
    assert answers(0, do_sample=True) == answers(2, do_sample=True)
    assert answers(0, do_sample=True) != answers(0)


def test_answers_come_with_their_batch_until_an_example_that_cannot_be_read(make_collator, model, draw, tmp_path):
    missing = tmp_path / "missing.png"
    items = [example("what?", "", draw("red"), id=str(k)) for k in range(3)]
    items.append(example("what?", "", missing, id="broken"))
    kept: dict[int, Reply] = {}
    model.train()
    with pytest.raises(UserError, match=r"row broken.*missing\.png"):
        generate_answers(model, make_collator(), items, [4, 3, 2, 1], 1, 4, on_batch=kept.update)
    assert list(kept) == [0, 1, 2]
    assert model.training


def test_only_what_is_not_skipped_is_asked(make_collator, model, draw):
    items = [example(f"what is number {k}?", "", draw("red"), id=str(k)) for k in range(5)]
    everything = generate_answers(model, make_collator(), items, [1] * 5, 2, 6)
    kept: dict[int, Reply] = {}
    some = generate_answers(model, make_collator(), items, [1] * 5, 2, 6, skip={0, 3}, on_batch=kept.update)
    assert some == ["", everything[1], everything[2], "", everything[4]]
    assert sorted(kept) == [1, 2, 4]
