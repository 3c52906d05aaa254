"""stage=preview from end to end: what it shows is what the collator makes, and it needs no weights."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.data.clips import clip
from tests.data.test_images import encoded
from tests.models.families import FAMILIES
from tests.preview.conftest import files, trained_texts, write_rows
from vlmexp.comparison.reading import find_runs
from vlmexp.data.images import MediaError
from vlmexp.data.stage import load_split, prepared_data
from vlmexp.errors import UserError
from vlmexp.models.load import load_processor
from vlmexp.parts import build_collator, model_source
from vlmexp.preview.stage import prompt_in_words
from vlmexp.runs import Run, config_key

EVIL = "</script><script>document.title='x'</script> <|im_end|> {question} <image> \x1b[31m"


@pytest.fixture
def quarters(tmp_path):
    """An image of four colours, with a question about each of two of them."""
    image = Image.new("RGB", (150, 90), "red")
    for color, box in {"lime": (75, 0, 150, 45), "blue": (0, 45, 75, 90), "yellow": (75, 45, 150, 90)}.items():
        image.paste(color, box)
    image.save(tmp_path / "quarters.png")
    rows = [{"image": "quarters.png", "question": f"what is {n}?", "answer": a} for n, a in enumerate(["red", "no"])]
    return write_rows(tmp_path, rows)


@pytest.mark.parametrize("choice", FAMILIES)
def test_every_family_without_weights(choice, quarters, show, compose, tmp_path):
    """The trained tokens are those with a label, and the pictures are those of the file."""
    config, processor = FAMILIES[choice]()
    config.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    assert not list((tmp_path / "model").glob("*.safetensors"))
    given = [f"model={choice}", f"model.id={tmp_path / 'model'}", *files(quarters), "collator.share_images=never"]
    content, record = show(*given)
    assert record["stages"]["preview"]["status"] == "done"

    composed = compose(*given)
    collator = build_collator(composed, load_processor(model_source(composed), pytest.fail))
    with Run.open(tmp_path / "other", composed, []) as run:
        examples = load_split(composed, prepared_data(composed, run), "train")
    by_id = {card["questions"][0]["id"]: card for card in content["cards"]}
    batch = collator([examples[0], examples[1]])
    for example, tokens, labels in zip(examples, batch["input_ids"], batch["labels"], strict=True):
        card = by_id[example.id]
        shown = [(token, kind) for token, _, kind, n in card["segments"][0]["pieces"] for _ in range(n)]
        assert [token for token, _ in shown] == tokens.tolist()
        assert [kind == "trained" for _, kind in shown] == (labels != -100).tolist()
        assert card["counts"]["media"] >= 4
        assert "the model sees" in card["media"][0]["about"]
        assert "150 x 90 px in the file" in card["media"][0]["about"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "dataset.prompt, with the instruction of dataset.instruction"),
        (["collator.system_prompt=Mine."], "dataset.prompt, with the instruction of collator.system_prompt"),
        (["dataset.prompt=['{question}']", "collator.system_prompt=Mine."], "dataset.prompt"),
        (["collator.messages.0.content=[{type: image}, {text: '{question}'}]"], "collator.messages"),
        (
            ["collator.messages.0.content=[{type: image}, {text: '{question} {system_prompt}'}]"],
            "collator.messages, with the instruction of dataset.instruction",
        ),
    ],
)
def test_whose_the_prompt_is(options, told, compose):
    assert prompt_in_words(compose(*options)) == told


def test_what_is_trained_in_words(quarters, show):
    content, record = show(*files(quarters), "collator.share_images=never")
    assert dict(content["facts"])["prompt"] == "dataset.prompt, with the instruction of dataset.instruction"
    cards = {card["title"]: card for card in content["cards"]}
    assert trained_texts(cards["train-0"]) == ["red<|im_end|>"]
    assert trained_texts(cards["train-1"]) == ["no<|im_end|>"]
    assert cards["train-0"]["counts"]["trained"] == 2
    full, _ = show(*files(quarters), "collator=vqa_full", directory="full")
    card = next(card for card in full["cards"] if card["title"] == "train-0")
    (text,) = trained_texts(card)
    assert text.startswith("<|im_start|>user\n<|vision_start|><|vision_end|>what is")
    assert text.endswith("red<|im_end|>")
    assert record["result"] == {
        "counted": 2,
        "longest_tokens": max(card["length"] for card in content["cards"]),
        "too_long": 0,
    }


def test_a_packed_row_is_shown_question_by_question(quarters, show):
    content, _ = show(*files(quarters))
    (card,) = content["cards"]
    assert card["title"].startswith("2 questions about the media of train-")
    prefix, *questions = card["segments"]
    assert prefix["title"] == "shared prefix"
    assert {kind for _, _, kind, _ in prefix["pieces"]} == {"masked", "media"}
    assert sorted(zip((s["title"] for s in questions), trained_texts(card)[1:], strict=True)) == [
        ("train-0", "red<|im_end|>"),
        ("train-1", "no<|im_end|>"),
    ]
    separate = sum(question["length"] for question in card["questions"])
    assert card["packing"] == f"{card['length']} tokens packed; as 2 separate rows it would be {separate}."
    assert content["sharing"].startswith("Images are shared: 2 questions are about 1 set of media, 2.0 each.")


def test_text_from_the_data_stays_text(quarters, show, tmp_path, capsys):
    row = {"image": "quarters.png", "question": EVIL, "answer": [EVIL, "b"]}
    content, _ = show(*files(write_rows(tmp_path, [row])))
    page = (tmp_path / "run" / "preview.html").read_text()
    assert "<script>document" not in page
    assert page.count("<script") == 2
    assert content["cards"][0]["questions"][0]["fields"] == [["question", EVIL]]
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overlong", "fate", "trained"),
    [
        ("error", "the training would stop (collator.overlong=error).", "red<|im_end|>"),
        ("drop", "left out (collator.overlong=drop).", "red<|im_end|>"),
        ("shorten_text", "made to fit with 80 (collator.overlong=shorten_text).", "red<|im_end|>"),
    ],
)
def test_what_the_overlong_policy_will_hit(overlong, fate, trained, quarters, show, tmp_path):
    rows = [{"image": "quarters.png", "question": q, "answer": "red"} for q in ("what?", "what " * 40)]
    given = files(write_rows(tmp_path, rows))
    content, record = show(*given, "collator.max_length=80", f"collator.overlong={overlong}", "preview.ids=[train-1]")
    ((name, tokens, media),) = content["worst"]
    assert name == "train-1"
    assert (tokens, media) == (110, 53)
    assert content["policy"].startswith("1 of 2 counted examples is longer than collator.max_length=80; ")
    (card,) = content["cards"]
    (question,) = [question for question in card["questions"] if question["id"] == "train-1"]
    assert question["fate"] == f"{tokens} tokens are more than collator.max_length=80: {fate}"
    assert trained in trained_texts(card)
    assert record["result"]["too_long"] == 1


def test_a_shrunk_image_has_a_row_of_its_own(show, tmp_path):
    """Its question is too long for the image that the others share."""
    Image.new("RGB", (256, 128), "red").save(tmp_path / "a.png")
    Image.new("RGB", (256, 128), "blue").save(tmp_path / "b.png")
    rows = [
        {"image": f"{name}.png", "question": question, "answer": f"{name} {number}"}
        for name in ("a", "b")
        for number, question in enumerate(["what?", "what " * 20, "where?"])
    ]
    given = [*files(write_rows(tmp_path, rows)), "collator.max_length=150", "collator.overlong=shrink_image"]
    content, _ = show(*given, "preview.ids=[train-0,train-3]")
    cards = {card["title"]: card for card in content["cards"]}
    assert len(cards) == len(content["cards"]) == 4
    for name, first, long in (("a", "train-0", "train-1"), ("b", "train-3", "train-4")):
        packed, alone = cards[f"2 questions about the media of {first}"], cards[long]
        assert trained_texts(packed)[1:] == [f"{name} 0<|im_end|>", f"{name} 2<|im_end|>"]
        assert "".join(trained_texts(alone)) == f"{name} 1<|im_end|>"
        assert "256 x 128 px in the file; the model sees" in packed["media"][0]["about"]
        assert " after collator.overlong=shrink_image; the model sees" in alone["media"][0]["about"]
        assert alone["length"] == alone["questions"][0]["length"] <= 150


def test_bad_rows_are_listed_or_end_it(quarters, show, tmp_path):
    (tmp_path / "half.jpg").write_bytes(encoded("JPEG")[:900])
    rows = [{"image": "quarters.png", "question": "q?", "answer": "a"}] * 3
    rows.append({"image": "half.jpg", "question": "q?", "answer": "a"})
    given = [*files(write_rows(tmp_path, rows)), "dataset.max_bad_share=0.5"]
    content, _ = show(*given, "dataset.on_bad_sample=skip")
    assert content["leftOut"] == 1
    assert content["errors"][0].startswith("split train, row train-3, column image: The image ")
    with pytest.raises(UserError, match="1 of 4 rows of files cannot be used"):
        show(*given, directory="strict")


def test_a_file_that_went_away_is_a_bad_row(quarters, make_collator, tmp_path):
    """Between the preparation and the preview."""
    from tests.conftest import example
    from vlmexp.preview.cards import make_cards
    from vlmexp.preview.survey import take_survey

    examples = [example("q?", "a", tmp_path / "quarters.png"), example("q?", "a", tmp_path / "gone.png", id="1")]
    collator = make_collator()
    survey = take_survey(collator, examples, [0, 1], skip_bad=True)
    assert survey.ids == ["0"]
    assert len(survey.bad) == 1
    assert survey.bad[0].startswith("row 1: The image ")
    good, bad = make_cards(collator, [[e] for e in examples], 2048, "error", skip_bad=True)
    assert good.problem == ""
    assert good.counts["trained"] == 2
    assert bad.problem.endswith("gone.png does not exist.")
    for arguments in ((take_survey, collator, examples, [0, 1]), (make_cards, collator, [examples], 2048, "error")):
        with pytest.raises(MediaError, match="does not exist"):
            arguments[0](*arguments[1:], skip_bad=False)


def test_frames_have_their_times(show, tmp_path):
    rows = [{"clip": str(clip("bikes")), "question": "what?", "answer": "bicycle"}]
    content, _ = show(
        *files(write_rows(tmp_path, rows)), "collator=video", "collator.image_processing.max_size=64",
        "dataset.columns={image: null, video: clip, question: question, answer: answer}",
        "collator.video_processing.frame_extraction.num_frames=3",
    )  # fmt: skip
    (medium,) = content["cards"][0]["media"]
    assert medium["about"] == (
        "640 x 272 px and 250 frames at 25 a second in the file, 3 of them taken, 64 x 27 px after "
        "collator.image_processing; the model sees 4 pictures of 64 x 32 px."
    )
    assert [caption for _, caption in medium["pictures"]] == ["0.00 s", "4.96 s", "9.96 s", "repeated"]
    assert content["sizesText"] == "All 1 distinct videos have 640 x 272 px."


def test_an_id_that_is_not_there(quarters, show):
    with pytest.raises(UserError, match=r"no row 'train-11'; did you mean 'train-1'\?"):
        show(*files(quarters), "preview.ids=[train-11]")


def test_a_page_elsewhere(quarters, show, tmp_path):
    with pytest.raises(UserError, match=r"preview\.output=.* cannot be written"):
        show(*files(quarters), f"preview.output={tmp_path / 'quarters.png' / 'page.html'}")


def test_it_is_no_run_to_compare_and_stands_in_no_trainings_way(quarters, show, compose, tmp_path):
    show(*files(quarters))
    assert find_runs([tmp_path], 300) == []
    previewed, trained = (
        json.loads(json.dumps(vars(compose(*files(quarters), *more)), default=vars))
        for more in (["stage=preview", "preview.examples=2"], ["stage=train"])
    )
    assert config_key(previewed) == config_key(trained)
    with Run.open(tmp_path / "run", compose(*files(quarters), "stage=download"), []) as run:
        assert run.decides
    assert [run.status for run in find_runs([tmp_path], 300)] == ["done"]
