"""Boxes in each family's own notation, of the picture as the model sees it, and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import transformers as hf
from PIL import Image, ImageDraw

from tests.models.families import FAMILIES
from vlmexp.collator.boxes import Notation, UnusableBox, View, cuts_off
from vlmexp.collator.lengths import fit, token_lengths
from vlmexp.collator.media import MediaOptions
from vlmexp.data.example import Example
from vlmexp.data.images import ImageOptions, load_image
from vlmexp.errors import UserError
from vlmexp.evaluation.row import row_of
from vlmexp.evaluation.rules.metrics import box_iou
from vlmexp.parts import build_collator, note_texts
from vlmexp.preview.pictures import seen_pictures

BOX = (100.0, 120.0, 300.0, 400.0)
DATA = ["dataset=refcoco_boxes", "dataset.options.path=replica"]
IMAGE = "collator.image_processing"
MODES = {
    "whole": [],
    "smaller": [f"{IMAGE}.max_size=300"],
    "crop": [f"{IMAGE}.resize_mode=crop", f"{IMAGE}.max_size=400"],
    "stretch": [f"{IMAGE}.resize_mode=stretch", f"{IMAGE}.max_size=500"],
}

OPTIONS = [
    ImageOptions(),
    ImageOptions(max_size=320),
    ImageOptions(max_pixels=50_000),
    ImageOptions(resize_mode="stretch", max_size=256),
    ImageOptions(resize_mode="crop", max_size=256),
    ImageOptions(resize_mode="crop"),
]


def boxed(folder: Path, *boxes: tuple[float, ...], size: tuple[int, int] = (640, 480), turn: int = 1) -> Example:
    """A black picture with white boxes; `turn`: how it is stored, of the EXIF orientations 1 and 6."""
    image = Image.new("RGB", size)
    for left, top, right, bottom in boxes:
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill="white")
    exif = Image.Exif()
    exif[0x112] = turn
    path = folder / f"{size[0]}x{size[1]}-{turn}-{len(boxes)}.png"
    stored = image.transpose(Image.Transpose.ROTATE_90) if turn == 6 else image
    stored.save(path, exif=exif)
    return Example(
        id="7", fields={"question": "the box"}, answers=("as text",), images=(path,), boxes=boxes,
        split="train", columns={"box": "bbox"},
    )  # fmt: skip


def collator_of(compose, choice: str, *overrides: str):
    processor = FAMILIES[choice]()[1]
    if choice == "qwen25vl":  # of the published size
        processor.image_processor = hf.Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 1003520})
    return build_collator(compose(f"model={choice}", *DATA, *overrides), processor)


@pytest.mark.parametrize(
    ("choice", "mode", "limit", "text"),
    [
        # 100/640, 120/480, 300/640 and 400/480 of a thousand.
        ("qwen2vl", "whole", None, "<|box_start|>(156,250),(469,833)<|box_end|>"),
        ("qwen3vl", "stretch", 100, '{"bbox_2d": [156, 250, 469, 833]}'),
        ("internvl2", "smaller", None, "<box>[[156, 250, 469, 833]]</box>"),
        ("internvl3", "crop", None, "<box>[[42, 250, 458, 833]]</box>"),  # of the 480 pixels from 80 on
        ("paligemma", "whole", None, "<loc0256><loc0160><loc0852><loc0480>"),  # of 1023; 852.5 to the even number
        ("paligemma2", "crop", 70, "<loc0256><loc0043><loc0852><loc0469>"),
        ("llava15", "whole", None, "[0.156, 0.250, 0.469, 0.833]"),
        # Sides of 28 pixels: 644 x 476, 308 x 224 (of 300 x 225), 392 x 392 (of 400), 140 x 112 (of 150 x 112).
        ("qwen25vl", "whole", None, '{"bbox_2d": [101, 119, 302, 397]}'),
        ("qwen25vl", "smaller", None, '{"bbox_2d": [48, 56, 144, 187]}'),
        ("qwen25vl", "crop", None, '{"bbox_2d": [16, 98, 180, 327]}'),
        ("qwen25vl", "smaller", 150, '{"bbox_2d": [22, 28, 66, 93]}'),
    ],
)
def test_a_box_in_the_words_of_a_family(choice, mode, limit, text, compose, tmp_path):
    collator = collator_of(compose, choice, *MODES[mode])
    item = dataclasses.replace(boxed(tmp_path, BOX), media_limit=limit)
    assert collator.answer_text(item) == text
    assert collator.template.control.said(collator.processor.tokenizer, collator.answer_ids(item)) == text


@pytest.mark.parametrize("choice", FAMILIES)
def test_a_perfect_answer_is_right_whatever_is_done_to_the_picture(choice, compose, tmp_path):
    items = [
        boxed(tmp_path, BOX),
        boxed(tmp_path, (20.0, 400.0, 240.0, 620.0), size=(333, 1000), turn=6),
        boxed(tmp_path, (500.0, 100.0, 1000.0, 800.0), (600.0, 30.0, 1100.0, 400.0), size=(1600, 900)),
    ]
    whole = collator_of(compose, choice)
    for options in OPTIONS:
        collator = dataclasses.replace(whole, media=MediaOptions(options))
        for item in [*items, *(dataclasses.replace(item, media_limit=200) for item in items)]:
            (row,) = [row_of(item, view=collator.view(item))]
            values = box_iou(collator.answer_text(item), item.answers, row)
            assert values["box_IoU"] > 0.96, (options, item.media_limit, collator.answer_text(item))
            assert values["box_unread"] == 0
            wrong = dataclasses.replace(item, boxes=((0.0, 330.0, 60.0, 390.0),))
            if options.resize_mode != "crop":
                assert box_iou(collator.answer_text(wrong), item.answers, row)["box_ACC@0.5"] == 0


def white(picture: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is white in a picture."""
    rows, columns = np.nonzero(np.asarray(picture.convert("L")) > 127)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_box_is_where_its_pixels_are(options, turn, compose, tmp_path, make_collator):
    """A box counts in the upright picture, whichever way it is stored."""
    item = boxed(tmp_path, (100.0, 160.0, 180.0, 400.0), size=(320, 480), turn=turn)
    view = make_collator().views(item, options)
    picture = load_image(item.images[0], options)
    shares = view.seen(item.boxes[0])
    whole = (*picture.size, *picture.size)
    assert [share * side for share, side in zip(shares, whole, strict=True)] == pytest.approx(white(picture), abs=1.01)


def test_pixels_are_those_of_the_processor(compose, tmp_path):
    item = boxed(tmp_path, BOX)
    collator = collator_of(compose, "qwen25vl")
    ((picture,),) = seen_pictures(collator([item]), collator.processor, only_videos=False)
    ((left, top, right, bottom),) = Notation(unit="shares").boxes(collator.answer_text(item), (1, 1))
    assert (left, top, right, bottom) == pytest.approx(white(picture), abs=1)
    assert picture.size == collator.view(item).pixels == (644, 476)
    with pytest.raises(UserError, match=r"model.boxes.unit=pixels: CLIPImageProcessor.* choose shares, thousandths, "):
        collator_of(compose, "llava15", "model.boxes.unit=pixels")


def test_boxes_are_read_back():
    view = View(Notation(unit="thousandths", around="<box>[{boxes}]</box>"), (80.0, 0.0, 560.0, 480.0), (0, 0))
    one = [(320.0, 120.0, 440.0, 240.0)]
    for text in (
        "<box>[[500, 250, 750, 500]]</box>", "It is at [ 500,250 , 750,500].", "(500, 250), (750, 500)",
        "Man 2: [500, 250, 750, 500]", "500 250 750 500",
    ):  # fmt: skip
        assert view.boxes(text) == one
    assert view.boxes("[0, 0, 1000, 1000], [500, 250, 750, 500]") == [(80.0, 0.0, 560.0, 480.0), *one]
    for text in ("", "left", "[1, 2, 3]", "1.2.3.4", "[8, 4, 59, 52, 52, 6]", "1, 2, 3, 4.5.6"):
        assert view.boxes(text) == []
    bare = Notation(unit="thousandths", box="{left} {top} {right} {bottom}")
    assert bare.boxes("at 100 200  300 400.", (1, 1)) == [(0.1, 0.2, 0.3, 0.4)]
    assert bare.boxes("in 1234 or 5.6", (1, 1)) == []
    named = Notation(unit="pixels", box='{"bbox_2d": [{left}, {top}, {right}, {bottom}]}')
    assert named.boxes('```json\n[{"bbox_2d": [5, 10, 50, 80], "label": "2"}]', (100, 100)) == [(0.05, 0.1, 0.5, 0.8)]
    rows = Notation(unit="loc", box="<loc{top}><loc{left}><loc{bottom}><loc{right}>", between=" ; ")
    assert rows.boxes("<loc0000><loc1023><loc1023><loc1023> cat", (1, 1)) == [(1.0, 0.0, 1.0, 1.0)]
    assert rows.text([(0.0, 0.0, 1.0, 1.0), (1.0, 0.0, 1.0, 1.0)], (1, 1)) == (
        "<loc0000><loc0000><loc1023><loc1023> ; <loc0000><loc1023><loc1023><loc1023>"
    )


def test_what_is_cut_off_is_no_part_of_a_box(compose, tmp_path):
    """Nothing of a box is a bad example, a part of it is what can be said; the right box stays the whole one."""
    crop = collator_of(compose, "qwen2vl", *MODES["crop"])
    part, gone = boxed(tmp_path, (40.0, 0.0, 200.0, 480.0)), boxed(tmp_path, (0.0, 10.0, 80.0, 90.0), size=(640, 481))
    gone = dataclasses.replace(gone, id="gone", images=part.images)
    assert crop.answer_text(part) == "<|box_start|>(0,0),(250,1000)<|box_end|>"
    row = row_of(part, view=crop.view(part))
    assert box_iou(crop.answer_text(part), (), row)["box_IoU"] == 0.75  # 120 of 160 columns
    sentence = (
        r"split train, row gone, column bbox: collator.image_processing.resize_mode=crop leaves nothing of the box"
    )
    with pytest.raises(UnusableBox, match=sentence):
        crop([gone])
    with pytest.raises(UserError, match=f"{sentence}.* So it is with 1 of 2 examples"):
        fit(crop, [part, gone], 900, "error")
    fitted = fit(crop, [part, gone], 900, "error", refused_share=0.5)
    assert [item.id for item in fitted] == ["7"]
    assert list(fitted.refused) == ["gone"]
    assert len(fit(crop, [part, gone], 900, "error", with_answer=False)) == 2  # it is asked, and the answer is wrong


def test_a_box_out_of_its_picture_is_a_mistake(compose, tmp_path):
    collator = collator_of(compose, "qwen2vl")
    near = dataclasses.replace(boxed(tmp_path, BOX), boxes=((600.0, -1.0, 642.0, 480.5),))
    assert collator.answer_text(near) == "<|box_start|>(938,0),(1000,1000)<|box_end|>"
    far = dataclasses.replace(near, boxes=((600.0, 0.0, 660.0, 480.0),))
    for with_answer in (True, False):
        with pytest.raises(
            UserError, match=r"row 7, column bbox: the box from 600, 0 to 660, 480 reaches out of its pict"
        ):
            token_lengths(collator, [far], with_answer)


def test_a_box_has_the_tokens_of_its_marks(compose, tmp_path):
    """In an answer as in a question, where they stay what they are; all are counted."""
    processor = FAMILIES["qwen2vl"]()[1]
    processor.tokenizer.add_tokens(["<|box_start|>", "<|box_end|>"], special_tokens=True)
    collator = build_collator(compose("model=qwen2vl", *DATA), processor)
    item = boxed(tmp_path, BOX)
    begin, end = processor.tokenizer.convert_tokens_to_ids(["<|box_start|>", "<|box_end|>"])
    ids = collator.answer_ids(item)
    assert (ids[0], ids[-2], ids.count(begin), ids.count(end)) == (begin, end, 1, 1)
    asked = dataclasses.replace(item, fields={"question": "what is at <|box_start|>(1,2),(3,4)<|box_end|>?"})
    batch = collator([asked])
    assert batch["input_ids"][0].tolist().count(begin) == 2
    assert batch["labels"][0][batch["labels"][0] >= 0].tolist() == ids
    assert token_lengths(collator, [item, asked], True) == [
        collator([one])["input_ids"].shape[1] for one in (item, asked)
    ]
    with pytest.raises(
        UserError, match=r"model.boxes: '<\|im_end\|><\|box_start\|>\(0,0\).* holds what this model takes"
    ):
        build_collator(compose("model=qwen2vl", *DATA, "model.boxes.around='<|im_end|>{boxes}'"), processor)


def test_a_processor_that_cuts_pictures_is_told_of(compose, tmp_path):
    cutting = {name for name in FAMILIES if cuts_off(FAMILIES[name]()[1].image_processor)}
    assert cutting == {"llava15"}
    collator, said = collator_of(compose, "llava15"), []
    note_texts(collator, fit(collator, [boxed(tmp_path, BOX)], 900, "error").found, "train", said.append)
    assert ["In 1 of 1 examples the answer is a box, and CLIPImageProcessor" in text for text in said] == [True]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.boxes.unit=hundredths"], "'hundredths' must be one of shares, thousandths, loc, pixels"),
        (["model.boxes.box='[{left}, {top}, {right}]'"], r"model.boxes.box='\[.* must have each of \{left\}, .* once"),
        (["model.boxes.several='[]'"], r"model.boxes.several='\[\]' must have each of \{boxes\} once"),
        (["model.boxes.box='{left}{top} {right} {bottom}'"], "must have something between two numbers"),
        (["dataset.box_form=yxyx"], "'yxyx' must be one of xywh, xyxy"),
        (["evaluation.answers=rank"], "evaluation.answers=rank: the answers are boxes"),
        (["dataset.columns.messages=talk"], "dataset.columns.box=bbox and dataset.columns.messages=talk"),
        (["evaluation.metrics=[box_iou,rouge,my.own]"], r"the answers are boxes, and rouge compare other things"),
        (["dataset.columns.box=null", "dataset.columns.answer=answer"], "The metric box_iou is for data whose answers"),
        (["dataset.columns.image=null"], "needs dataset.columns.image"),
    ],
)
def test_options_of_boxes_are_checked(overrides, sentence, compose):
    with pytest.raises(UserError, match=sentence):
        compose("model=internvl3", *DATA, *overrides)
