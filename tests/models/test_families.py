"""The whole line for every family: prompt, batch, loss, LoRA, generation, adapter, merge, export, the same answers."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import peft
import pytest
import torch
from PIL import Image

from tests.conftest import example
from tests.data.clips import drawn
from tests.models.families import FAMILIES, write_checkpoint
from vlmexp.checks import checked
from vlmexp.collator.batch import Collator
from vlmexp.collator.lengths import fit, token_lengths
from vlmexp.collator.packing import packed_inputs
from vlmexp.collator.prompt import ChatMessage, MessagePart, PromptTemplate, special_strings
from vlmexp.collator.sharing import branch_inputs
from vlmexp.data.example import Example
from vlmexp.data.images import load_image
from vlmexp.errors import UserError
from vlmexp.evaluation.generate import generate_answers
from vlmexp.evaluation.prefix_check import refuses_sharing
from vlmexp.evaluation.ranking import rank_answers
from vlmexp.evaluation.shared_prefix import shared_answers
from vlmexp.export.stage import card_prompt
from vlmexp.main import CONFIG_DIR
from vlmexp.models.adapter import attach, load_adapter, merged
from vlmexp.models.ends import end_ids
from vlmexp.models.export import save_adapter, write_pretrained
from vlmexp.models.load import ModelSource, load_model, load_processor
from vlmexp.models.modules import DEFAULT_PATTERNS, PARTS
from vlmexp.parts import build_collator, model_source
from vlmexp.pipeline import pipeline
from vlmexp.runs import Run
from vlmexp.training.answers import AnswerScores
from vlmexp.training.layout import Layout, LayoutTest
from vlmexp.training.loss import labelled_tokens, summed_loss

LORA = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
SIZES = ((64, 48), (30, 90), (200, 100))


class Family:
    """One family's tiny checkpoint with what the `model` choice says of it."""

    def __init__(self, choice: str, folder: Path) -> None:
        self.choice = choice
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
            overrides = [f"model={choice}", f"model.id={folder}", "model.dtype=float32"]
            composed = hydra.compose("config", overrides)
        composed.model.processor_kwargs = {}  # the sizes are those of the real checkpoint
        self.config = checked(composed)
        self.source = model_source(self.config)
        self.processor = load_processor(self.source, pytest.fail)

    def model(self) -> Any:
        return load_model(self.source, pytest.fail)

    def collator(self, share_images: bool = False) -> Collator:
        return build_collator(self.config, self.processor, share_images)


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request, tmp_path_factory) -> Family:
    return Family(request.param, write_checkpoint(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Noise in three sizes: the families make one, two and more tiles or grids of them."""
    paths = []
    for number, (width, height) in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture
def examples(photos: list[Path]) -> list[Example]:
    questions = [
        ("what color is the circle?", "red"),
        ("is it?", "yes"),
        ("how many are there in the image?", "two or 3"),
    ]
    return [
        example(question, answer, photo, id=str(number))
        for number, ((question, answer), photo) in enumerate(zip(questions, photos, strict=True))
    ]


def logits_of_prompts(model: Any, collator: Collator, rows: list[Example], left: bool) -> list[torch.Tensor]:
    """For each example the logits at its prompt's tokens, padding left out."""
    batch = collator.prompts(rows)
    if not left:  # the same rows, padded on the other side
        real = batch["attention_mask"].bool()
        for name, values in batch.items():
            if values.shape == real.shape:
                moved = torch.full_like(values, collator.pad_id if name == "input_ids" else 0)
                for row in range(len(rows)):
                    moved[row, : int(real[row].sum())] = values[row, real[row]]
                batch[name] = moved
    with torch.inference_mode():
        logits = model(**batch).logits
    return [logits[row, batch["attention_mask"][row].bool()] for row in range(len(rows))]


def test_padding_changes_nothing(family, examples):
    model, collator = family.model(), family.collator()
    alone = [logits_of_prompts(model, collator, [row], left=True)[0] for row in examples]
    for left in (True, False):
        together = logits_of_prompts(model, collator, examples, left)
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=1e-5)


def test_token_lengths_are_known_without_pixels(family, examples):
    collator = family.collator()
    batch = collator(examples)
    assert token_lengths(collator, examples, with_answer=True) == batch["attention_mask"].sum(1).tolist()


def test_the_loss_is_on_the_answer_and_its_end(family, examples):
    collator = family.collator()
    batch = collator(examples)
    words = family.processor.tokenizer
    for ids, labels, row in zip(batch["input_ids"], batch["labels"], examples, strict=True):
        trained = labels[labels != -100].tolist()
        assert words.decode(trained[:-1]).lstrip() == row.answer
        assert trained[-1] == collator.end_id
        assert ids[labels != -100].tolist() == trained
        assert (labels[:-1] == -100).sum() >= 4


ENDS = {
    "qwen2vl": "<|im_end|>", "qwen25vl": "<|im_end|>", "qwen3vl": "<|im_end|>", "llava15": "</s>", "llava_next": "</s>",
    "llava_onevision": "<|im_end|>", "internvl2": "<|im_end|>", "internvl3": "<|im_end|>", "paligemma": "<eos>",
    "paligemma2": "<eos>", "gemma3": "<end_of_turn>", "idefics3": "<end_of_utterance>", "smolvlm": "<end_of_utterance>",
    "phi3vision": "<|end|>",
}  # fmt: skip


def test_the_end_of_a_turn_is_found_without_being_told(family):
    config = dataclasses.replace(family.config, model=dataclasses.replace(family.config.model, end_of_turn=None))
    end_id = build_collator(config, family.processor).end_id
    assert family.processor.tokenizer.convert_ids_to_tokens(end_id) == ENDS[family.choice]


# All of them, with what the checkpoint and its tokenizer name beside the chat template's.
ALL_ENDS = {
    **dict.fromkeys(("qwen2vl", "qwen25vl", "qwen3vl"), frozenset({"<|im_end|>", "<|endoftext|>"})),
    "internvl2": {"<|im_end|>", "<|im_start|>"},
    "gemma3": {"<end_of_turn>", "<eos>"},
    "idefics3": {"<end_of_utterance>", "<|endoftext|>"},
    "phi3vision": {"<|end|>", "<|endoftext|>", "</s>"},
}


def test_an_answer_ends_where_the_template_the_tokenizer_or_the_checkpoint_says(family):
    words, end_id = family.processor.tokenizer, family.collator().end_id
    ends = end_ids(family.model(), words, end_id)
    assert set(words.convert_ids_to_tokens(ends)) == ALL_ENDS.get(family.choice, {ENDS[family.choice]})
    assert end_id in ends


def loss(model: Any, batch: dict[str, torch.Tensor], count: int | None = None) -> torch.Tensor:
    return model(**batch, **({} if count is None else {"num_items_in_batch": torch.tensor(count)})).loss


def test_a_mixed_batch_has_the_loss_of_its_examples(family, examples):
    model, collator = family.model(), family.collator()
    with torch.inference_mode():
        singles = [collator([row]) for row in examples]
        counts = [int((batch["labels"] != -100).sum()) for batch in singles]
        separate = sum(loss(model, b) * n for b, n in zip(singles, counts, strict=True)) / sum(counts)
        together = loss(model, collator(examples))
    torch.testing.assert_close(together, separate, rtol=0, atol=1e-5)


VIDEO = ["collator=video", "dataset.columns={image: image, video: video, question: question, answer: answer}"]


@pytest.fixture
def video_collator(family, compose) -> Collator:
    if "video" not in family.config.model.media:
        pytest.skip("this family takes no video")
    return build_collator(compose(f"model={family.choice}", f"model.id={family.source.id}", *VIDEO), family.processor)


def test_a_batch_of_long_and_short_videos_and_images_is_the_sum_of_its_examples(
    family, video_collator, examples, tmp_path
):
    image = examples[0]
    items = [
        dataclasses.replace(
            image, id=f"{frames} frames", images=(), videos=(drawn(tmp_path / f"{frames}.mp4", frames),)
        )
        for frames in (4, 11)
    ]
    items.insert(1, image)
    alone, together = [video_collator([item]) for item in items], video_collator(items)
    prompts = [ids[mask == 1] for ids, mask in zip(together["input_ids"], together["attention_mask"], strict=True)]
    for single, prompt, length in zip(alone, prompts, token_lengths(video_collator, items, True), strict=True):
        assert single["input_ids"][0].tolist() == prompt.tolist()
        assert len(prompt) == length
    model = family.model()
    with torch.inference_mode():  # as many tokens with a loss in each
        losses = [loss(model, batch) for batch in alone]
        torch.testing.assert_close(loss(model, together), sum(losses) / 3, rtol=0, atol=1e-5)


def test_an_image_beside_a_video_counts_or_is_refused(family, video_collator, examples, tmp_path):
    both = dataclasses.replace(examples[0], videos=(drawn(tmp_path / "clip.mp4", 4),))
    if family.choice == "smolvlm":  # its processor gives one of them the other's place
        with pytest.raises(UserError, match=r"takes images or videos, not both at once"):
            token_lengths(video_collator, [both], True)
        return
    batch = video_collator([both])
    assert token_lengths(video_collator, [both], True) == [batch["input_ids"].shape[1]]
    with torch.inference_mode():
        assert torch.isfinite(loss(family.model(), batch))


def test_a_shortened_question_fits(family, examples):
    """Also where a text alone has fewer tokens than between the template's."""
    collator = family.collator()
    row = dataclasses.replace(examples[0], fields={"question": "is the12 "})
    (length,) = token_lengths(collator, [row], True)
    for limit in range(length - 5, length):
        fitted = fit(collator, [row], limit, "keep")
        assert collator([fitted[0]])["input_ids"].shape[1] == fitted.lengths[0]
        assert fitted.too_long or fitted.lengths[0] <= limit


def test_an_answer_does_not_reach_the_prompt(family, examples):
    """Another answer of the same length changes no logit before the answer, but for the rounding of sums."""
    model, collator = family.model(), family.collator()
    first = examples[0]
    other = example(first.fields["question"], "dre", first.images[0])
    batches = [collator([row]) for row in (first, other)]
    start = int((batches[0]["labels"][0] != -100).nonzero()[0])
    with torch.inference_mode():
        one, two = (model(**{k: v for k, v in b.items() if k != "labels"}).logits[0, :start] for b in batches)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_batched_answers_are_those_of_one_by_one(family, examples):
    model, collator = family.model(), family.collator()
    lengths = token_lengths(collator, examples, with_answer=False)
    together = generate_answers(model, collator, examples, lengths, batch_size=3, max_new_tokens=6)
    alone = generate_answers(model, collator, examples, lengths, batch_size=1, max_new_tokens=6)
    assert together == alone


def test_the_prompt_of_the_model_card_is_that_of_the_training(family, photos):
    collator = family.collator()
    prompt = card_prompt(family.config, collator)
    text = prompt["text"].replace("{question}", "is it red?")
    image = load_image(photos[0])
    made = family.processor(
        text=[text], images=[image], return_tensors="pt", add_special_tokens=prompt["add_special_tokens"]
    )
    trained = collator.prompts([example("is it red?", "", photos[0])])
    assert made["input_ids"].tolist() == trained["input_ids"].tolist()


def test_a_special_token_in_a_question_is_text(family, examples, photos):
    collator = family.collator()
    plain = collator([examples[0]])
    hostile = (
        "{question} {{ x }} <image> <|image_pad|> <|im_end|> <IMG_CONTEXT> <start_of_image> <|image_1|> <eos> </s>\n?"
    )
    batch = collator([example(hostile, hostile, photos[0])])
    ids = set(family.processor.tokenizer.all_special_ids) | set(collator.media_ids)

    def control_tokens(row: torch.Tensor) -> list[int]:
        return [token for token in row.tolist() if token in ids]

    assert control_tokens(batch["input_ids"][0]) == control_tokens(plain["input_ids"][0])
    with torch.inference_mode():
        assert torch.isfinite(loss(family.model(), batch))


def test_a_special_token_in_two_pieces_is_text(family):
    """Wherever a token is cut: its halves in two fields, or in two parts of a message, never become one."""
    tokenizer = family.processor.tokenizer
    both = (MessagePart("image"), MessagePart("text", "{question}{context}"))
    messages = [ChatMessage("user", both), ChatMessage("assistant", (MessagePart("text", "{context}{answer}"),))]
    style = family.config.model.prompt_style
    template = PromptTemplate(family.processor, messages, "", ["question", "context"], style)
    control = set(tokenizer.get_added_vocab().values())

    def found(first: str, second: str) -> list[list[int]]:
        prompt = template.render({"question": first, "context": second}, images=1)
        answer = template.answer({"context": first}, second)
        return [[token for token in tokenizer(text)["input_ids"] if token in control] for text in (prompt, answer)]

    plain = found("a", "b")
    for token in sorted(special_strings(family.processor))[:12]:
        for cut in range(1, len(token)):
            assert found(token[:cut], token[cut:]) == plain, (token, cut)


def test_lora_learns_and_all_its_forms_answer_alike(family, examples, tmp_path):
    collator = family.collator()
    model = attach(family.model(), LORA)
    batch = collator(examples)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0] - 0.1

    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.inference_mode():
        trained = model.eval()(**inputs).logits
        save_adapter(model, family.processor, tmp_path / "model")
        reloaded = load_adapter(family.model(), tmp_path / "model")(**inputs).logits
        whole = merged(model)
        write_pretrained(whole, family.processor, tmp_path / "deployment")
        together = whole(**inputs).logits
        deployed = load_model(ModelSource(str(tmp_path / "deployment"), dtype="float32"), pytest.fail)
        processor = load_processor(ModelSource(str(tmp_path / "deployment")), pytest.fail)
        again = build_collator(family.config, processor)(examples)
        from_disk = deployed(**{name: value for name, value in again.items() if name != "labels"}).logits
    for other in (reloaded, together, from_disk):
        torch.testing.assert_close(other, trained, rtol=0, atol=1e-4)


def test_checkpointed_activations_and_logits_of_labelled_tokens_alone_give_the_same_gradients(family, examples):
    gradients, losses = [], []
    for checkpointed, labelled in ((False, False), (True, False), (True, True)):
        model = attach(family.model(), LORA)
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.1)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        batch = family.collator()(examples)
        if labelled:
            tokens = labelled_tokens(batch["labels"])
            summed, outputs = summed_loss(model.train(), model.get_output_embeddings(), batch)
            assert outputs.logits.shape[:2] == (1, tokens)
            losses.append(summed / tokens)
        else:
            losses.append(loss(model.train(), batch))
        losses[-1].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-6, atol=0)
    for name, gradient in gradients[0].items():
        for other in gradients[1:]:
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "all_weights"])
def test_answering_during_training_changes_no_gradient(family, examples, adapter):
    """What generating leaves in a model, such as positions, must not reach the next training step."""
    collator, share = family.collator(), family.config.model.shared_image_prefix
    fitted = fit(collator, examples, 10_000, "error", with_answer=False)
    gradients = []
    for answers in (False, True):
        torch.manual_seed(0)
        model = attach(family.model(), adapter).train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.1)
        if answers:
            scores = AnswerScores(collator, fitted, ["exact_match"], 2, 4, {}, share)(model)
            assert scores["n"] == len(examples)
            assert model.training
        loss(model, collator(examples)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "all_weights"])
def test_one_part_is_trained_and_the_others_are_frozen(family, examples, part, adapter):
    if (family.choice, part, adapter) == ("gemma3", "projector", LORA):  # its projector is a bare matrix
        with pytest.raises(UserError, match=r"\['projector'\]: Gemma3.* has no linear layer there"):
            attach(family.model(), adapter, [part])
        return
    model = attach(family.model(), adapter, [part])
    loss(model, family.collator()(examples)).backward()
    moved = {DEFAULT_PATTERNS.part_of(name) for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {part}


def test_the_whole_pipeline(family, compose, vqa_files, tmp_path):
    options = ["dataset=files", *(f"dataset.options.{s}={vqa_files / s}.jsonl" for s in ("train", "test"))]
    config = compose(
        *(f"model={family.choice}", f"model.id={family.source.id}", "train=smoke", "evaluation.blind_examples=4"),
        *(*options, "dataset.columns={image: picture, question: query, answer: response}"),
    )
    with Run.open(tmp_path / "run", config, []) as run:
        result = pipeline(config, run)
    assert set(result) >= {"metric", "base_metric"}
    assert run.record["stages"]["train"]["steps"] == 4
    assert run.record["status"] == "done"
    assert run.record["data"]["share_images"] == bool(config.model.shared_image_prefix)
    assert (run.directory / "deployment_model" / "model.safetensors").exists()


def test_questions_on_one_image_are_answered_as_if_alone(family, photos):
    if not family.config.model.shared_image_prefix:
        pytest.skip("this family's attention does not allow it: its YAML says why")
    words = "what color is the shape in image how many".split()
    asked = [
        example(" ".join(random.Random(number).sample(words, 2 + number % 5)) + "?", "", photos[number % 2])
        for number in range(7)
    ]
    model, collator = family.model(), family.collator()
    lengths = token_lengths(collator, asked, with_answer=False)
    alone = generate_answers(model, collator, asked, lengths, batch_size=1, max_new_tokens=6)
    ends = end_ids(model, family.processor.tokenizer, collator.end_id)
    said = collator.template.control.said
    for packed in (False, True):
        shared = shared_answers(model, collator.packed_prompts(asked), 6, ends, packed)
        assert [said(family.processor.tokenizer, ids) for ids in shared] == alone


@pytest.mark.parametrize("reading", ["packed", "shared", "separate"])
def test_a_candidate_has_the_likelihood_of_its_tokens_and_of_any_end(family, photos, reading):
    share_prompts, packed = reading != "separate", reading == "packed"
    if share_prompts and not family.config.model.shared_image_prefix:
        pytest.skip("this family's attention does not allow it: its YAML says why")
    choices = [["yes", "two or 3", "no"], ["red", "is"], ["the circle in the image", "red", "two", "yes"]]
    asked = [
        example(question, "", photos[number // 2])
        for number, question in enumerate(("is it red?", "what?", "what color is the circle?"))
    ]
    model, collator = family.model(), family.collator()
    lengths = token_lengths(collator, asked, with_answer=False)
    rankings = rank_answers(model, collator, asked, lengths, 3, choices, share_prompts=share_prompts, packed=packed)
    ends = family.processor.tokenizer.convert_tokens_to_ids(list(ALL_ENDS.get(family.choice, {ENDS[family.choice]})))
    for row, candidates, ranking in zip(asked, choices, rankings, strict=True):
        expected = {}
        for text in candidates:
            batch = collator([dataclasses.replace(row, target=text)])
            labels = batch.pop("labels")[0]
            with torch.inference_mode():
                spoken = model(**batch).logits[0].double().log_softmax(-1)[:-1]
            *said, last = (labels[1:] != -100).nonzero()[:, 0].tolist()
            expected[text] = float(sum(spoken[place, labels[place + 1]] for place in said))
            expected[text] += math.log(sum(math.exp(spoken[last, end]) for end in ends))
        assert dict(ranking) == pytest.approx(expected, abs=1e-3)
        assert [value for _, value in ranking] == sorted(dict(ranking).values(), reverse=True)


@pytest.mark.parametrize("questions", [1, 2, 10])
def test_a_shared_image_has_the_separate_loss_and_gradients(family, photos, questions):
    if not family.config.model.shared_image_prefix:
        pytest.skip("this family's attention does not allow it: its YAML says why")
    rng = random.Random(0)
    asked = [
        example(
            " ".join(rng.sample("what color is the shape in image how many".split(), 4)) + "?",
            rng.choice(["yes", "two or 3"]),
            photo,
        )
        for photo in photos[:2]
        for _ in range(questions)
    ]
    results = []
    for shared in (False, True):
        model = attach(family.model(), LORA)
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.1)
        batch = family.collator(share_images=shared)(asked)
        if shared:
            assert len(batch["input_ids"]) == 2
            batch = branch_inputs(model, batch, torch.float32)
        value = loss(model, {**batch, "use_cache": False})
        value.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None])
        results.append((value.item(), gradients))
    (separate, expected), (packed, found) = results
    assert packed == pytest.approx(separate, abs=1e-5)
    assert (found - expected).norm() / expected.norm() < 1e-4


# Image tokens, or a whole prefix, see each other in both directions, so what they become depends on the question.
SEE_AHEAD = {"paligemma", "paligemma2", "gemma3"}


def asked_in_different_lengths(photos: list[Path]) -> list[Example]:
    words = "what color is the shape in image how many".split()
    return [
        example(" ".join(words[number : 2 + 2 * number]), ["yes", "two or 3", "red"][number % 3], photos[number // 2])
        for number in range(5)
    ]


@pytest.mark.parametrize("shared", [False, True])
def test_packed_rows_have_the_loss_and_gradients_of_single_ones(family, photos, shared):
    """Accumulated one by one without padding, and in one packed row with gradient checkpointing."""
    if family.choice in SEE_AHEAD:
        pytest.skip("this family sees ahead: its batches are padded")
    asked, results = asked_in_different_lengths(photos), []
    for packed in (False, True):
        model = attach(family.model(), LORA)
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.1)
        rows = [asked] if packed else [[row] for row in asked]
        batches = [family.collator(share_images=packed and shared)(row) for row in rows]
        if packed:
            model.train()
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert len(batches[0]["input_ids"]) == (3 if shared else 5)
            real = int(batches[0]["attention_mask"].sum())
            batches = [packed_inputs(model, batches[0])]
            assert batches[0]["input_ids"].shape == (1, real)
            assert batches[0]["attention_mask"].shape == (1, 1, real, 3)
        total = 0.0
        for batch in batches:
            labels = batch.pop("labels")
            logits = model(**batch, use_cache=False).logits.float()
            value = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")
            value.backward()
            total += value.item()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((total, gradients))
    (separate, expected), (together, found) = results
    assert together == pytest.approx(separate, rel=1e-5)
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_a_family_is_known_by_trying_it(family, photos):
    """Without a word in its YAML: what is exact is taken, and nothing else."""
    asked = asked_in_different_lengths(photos)
    model, collator = attach(family.model(), LORA), family.collator()
    modes = [module.training for module in model.modules()]
    test = LayoutTest(model, collator, asked, checkpointing={"use_reentrant": False})
    refused = [test.refuses(Layout(shared, packed)) for shared in (True, False) for packed in (True, False)][:3]
    keys = [example.images for example in asked]
    refused += [refuses_sharing(family.model(), collator, asked, keys, packed) for packed in (True, False)]
    assert [why is not None for why in refused] == [family.choice in SEE_AHEAD] * 5, refused
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes
    half = LayoutTest(model.to(torch.bfloat16), collator, asked)  # in which little differences tell nothing
    refused = [half.refuses(Layout(shared, packed=True)) for shared in (True, False)]
    assert [why is not None for why in refused] == [family.choice in SEE_AHEAD] * 2, refused
