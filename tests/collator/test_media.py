"""Resized images and videos in batches: their tokens, their lengths from headers, and shared prefixes."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
import torch
from PIL import Image

from tests.collator.test_sharing import loss_and_gradients
from tests.conftest import example
from tests.data.clips import clip, cut_off, drawn
from vlmexp.collator.lengths import fit, token_lengths
from vlmexp.collator.sharing import branch_inputs
from vlmexp.errors import UserError
from vlmexp.parts import note_texts

VIDEO = ["collator=video", "dataset.columns={image: image, video: video, question: question, answer: answer}"]


def with_video(question, answer, path, *images, id="0"):
    return dataclasses.replace(example(question, answer, *images, id=id), videos=(path,))


def count(processor, batch, name):
    return (batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>")).sum(1).tolist()


@pytest.mark.parametrize("mode", ["keep_aspect", "crop", "stretch"])
@pytest.mark.parametrize("limit", [40, 64, 100])
def test_lengths_of_resized_images_are_those_of_the_batch(mode, limit, make_collator, draw):
    collator = make_collator(
        f"collator.image_processing.resize_mode={mode}", f"collator.image_processing.max_size={limit}"
    )
    sizes = [(64, 64), (200, 150), (30, 500), (1, 1), (33, 34)]
    items = [example("red?", "yes", draw("red", size)) for size in sizes]
    for item, length in zip(items, token_lengths(collator, items, True), strict=True):
        assert collator([item])["input_ids"].shape[1] == length


def test_what_max_size_does_to_the_tokens(make_collator, processor, draw):
    picture = example("red?", "yes", draw("red", (256, 128)))
    for options, tokens in (((), 128), (("keep_aspect", 128), 32), (("crop", 64), 16), (("stretch", 128), 64)):
        names = ("collator.image_processing.resize_mode", "collator.image_processing.max_size")
        collator = make_collator(*(f"{name}={value}" for name, value in zip(names, options, strict=False)))
        assert count(processor, collator([picture]), "image") == [tokens]


def test_lengths_with_a_turned_photograph(make_collator, tmp_path):
    image = Image.new("RGB", (128, 32))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    collator = make_collator("collator.image_processing.max_size=96")
    item = example("red?", "yes", tmp_path / "turned.jpg")
    assert token_lengths(collator, [item], True) == [collator([item])["input_ids"].shape[1]]
    assert collator([item])["image_grid_thw"].tolist() == [[1, 12, 4]]


def test_a_picture_of_a_shape_that_the_processor_refuses(make_collator, draw):
    item = example("red?", "yes", draw("red", (1, 4000)), id="tall")
    with pytest.raises(UserError, match=r"row tall: the model's processor takes no media of 1 x 4000 pixels"):
        token_lengths(make_collator(), [item], True)
    items = [example("red?", "yes", draw("red")), item, example("red?", "no", draw("red"))]
    with pytest.raises(UserError, match=r"row tall: .* 1 x 4000 pixels .*\)\. .* 1 of 3 examples\. Leave such rows"):
        fit(make_collator(), items, 90, "error")
    two = [*items, dataclasses.replace(item, id="other")]
    with pytest.raises(
        UserError, match=r"So it is with 2 of 4 examples, more than dataset.max_bad_share=0.3. Raise that"
    ):
        fit(make_collator(), two, 90, "error", refused_share=0.3)
    fitted = fit(make_collator(), items, 90, "error", refused_share=0.4)
    assert [one.answer for one in fitted] == ["yes", "no"]
    assert fitted.lengths.tolist() == token_lengths(make_collator(), [items[0], items[2]], True)
    assert list(fitted.refused) == ["tall"]
    assert fitted.refused["tall"].startswith("row tall: the model's processor takes no media of 1 x 4000 pixels")
    options = ["collator.image_processing.resize_mode=stretch", "collator.image_processing.max_size=64"]
    assert token_lengths(make_collator(*options), [item], True) == [16 + 17]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("[{type: image}, {type: image}, {type: text, text: '{question}'}]", r"have \{type: image\} twice"),
        (
            "[{type: image}, {type: text, text: '<|image_pad|>{question}'}]",
            r"'<\|image_pad\|>\{question\}' holds <\|image_pad\|>, which",
        ),
    ],
)
def test_messages_that_show_media_twice_or_by_hand(parts, message, make_collator):
    answer = "{role: assistant, content: [{type: text, text: '{answer}'}]}"
    with pytest.raises(UserError, match=message):
        make_collator(f"collator.messages=[{{role: user, content: {parts}}},{answer}]")


def test_media_that_break_later_are_named(make_collator, tmp_path):
    place = {"split": "train", "columns": {"image": "picture", "video": "clip"}}
    image = dataclasses.replace(example("red?", "yes", tmp_path / "gone.png", id="5"), **place)
    with pytest.raises(UserError, match=r"split train, row 5, column picture: The image .*gone.png does not exist"):
        make_collator()([image])
    video = dataclasses.replace(with_video("red?", "yes", tmp_path / "gone.mp4", id="5"), **place)
    with pytest.raises(UserError, match=r"split train, row 5, column clip: The video .*gone.mp4 does not exist"):
        make_collator(*VIDEO)([video])


@pytest.fixture
def grey(tmp_path):
    pytest.importorskip("av")
    return drawn(tmp_path / "grey.mp4", 25)


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ((), [4, 6, 8]),
        (("frame_extraction.num_frames=16",), [8, 6, 8]),
        (("frame_extraction.num_frames=5",), [3, 6, 8]),  # two frames make a patch: the last one is repeated
        (("frame_extraction.sampling_strategy=fps", "frame_extraction.fps=2"), [5, 6, 8]),
        (("file_processing.max_duration=0.8",), [2, 6, 8]),
    ],
)
def test_frames_and_their_tokens(options, grid, make_collator, processor, grey):
    collator = make_collator(*VIDEO, *(f"collator.video_processing.{option}" for option in options))
    item = with_video("is it bright?", "no", grey)
    batch = collator([item])
    assert batch["video_grid_thw"].tolist() == [grid]
    assert count(processor, batch, "video") == [grid[0] * grid[1] * grid[2] // 4]
    assert token_lengths(collator, [item], True) == [batch["input_ids"].shape[1]]
    assert not (batch["labels"] == processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")).any()


def test_no_processor_chooses_frames_again(make_collator, grey):
    """The pixels of a batch are those of the frames that were asked for, in their order."""
    collator = make_collator(*VIDEO, "collator.video_processing.frame_extraction.num_frames=4")
    batch = collator([with_video("bright?", "no", grey)])
    means = batch["pixel_values_videos"].reshape(2, 48, 3, 2, 64).mean(dim=(1, 2, 4)).flatten()
    mean, std = (
        torch.tensor(collator.processor.video_processor.image_mean),
        torch.tensor(collator.processor.video_processor.image_std),
    )
    shown = torch.tensor([10.0, 74.0, 138.0, 202.0]) / 255  # frames 0, 8, 16, 24
    expected = ((shown[:, None] - mean) / std).mean(1)
    torch.testing.assert_close(means, expected, atol=0.05, rtol=0)


def test_a_video_stands_before_an_image(make_collator, processor, grey, draw):
    collator = make_collator(*VIDEO)
    both, image, text = (
        with_video("both?", "yes", grey, draw("red")),
        example("image?", "no", draw("red", (96, 64))),
        example("who?", "b"),
    )
    batch = collator([both, image, text])
    assert count(processor, batch, "video") == [48, 0, 0]
    assert count(processor, batch, "image") == [16, 24, 0]
    tokens = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    assert tokens.index("<|video_pad|>") < tokens.index("<|image_pad|>")
    lengths = token_lengths(collator, [both, image, text], True)
    assert lengths == batch["attention_mask"].sum(1).tolist()


def test_the_size_of_frames_is_that_of_images(make_collator, grey):
    collator = make_collator(*VIDEO, "collator.image_processing.max_size=32")
    item = with_video("bright?", "no", grey)
    assert collator([item])["video_grid_thw"].tolist() == [[4, 4, 4]]
    assert token_lengths(collator, [item], True) == [collator([item])["input_ids"].shape[1]]


def test_questions_about_one_video_share_it_exactly(make_collator, model, grey, draw):
    items = [
        with_video("is it bright?", "no", grey, draw("red")),
        with_video("what color is it?", "gray it is", grey, draw("red")),
        with_video("how many?", "one", grey),
        example("red?", "yes", draw("red")),
    ]
    separate, packed = make_collator(*VIDEO)(items), make_collator(*VIDEO, share_images=True)(items)
    assert (separate["input_ids"].shape[0], packed["input_ids"].shape[0]) == (4, 3)
    loss, gradients = loss_and_gradients(model, separate)
    shared, shared_gradients = loss_and_gradients(model, branch_inputs(model, packed, torch.float32))
    assert shared == pytest.approx(loss, rel=1e-5)
    scale = max(gradient.norm() for gradient in gradients.values())
    for name, gradient in gradients.items():
        difference = (gradient - shared_gradients[name]).norm()
        assert difference <= 1e-4 * max(gradient.norm(), 1e-3 * scale), name


def test_a_batch_of_videos_is_the_sum_of_its_samples(make_collator, model, tmp_path, grey, draw):
    """Different sizes and lengths in one batch give each sample the loss that it has alone."""
    other = drawn(tmp_path / "other.mp4", 5, size=(96, 32))
    items = [
        with_video("is it bright?", "no", grey), with_video("red?", "yes it is", other, draw("red")),
        example("red?", "yes", draw("red")),
    ]  # fmt: skip
    collator = make_collator(*VIDEO)
    together = collator(items)
    labels = together["labels"]
    with torch.inference_mode():
        alone = [model(**collator([item]), use_cache=False).loss.item() for item in items]
        loss = model(**together, use_cache=False).loss.item()
    weights = (labels != -100).sum(1).tolist()
    assert loss == pytest.approx(sum(a * w for a, w in zip(alone, weights, strict=True)) / sum(weights), rel=1e-5)


def test_a_cut_off_video_in_a_batch_is_named(make_collator, tmp_path):
    pytest.importorskip("av")
    path = cut_off(clip("carphone_pristine"), tmp_path / "cut.mp4")
    with pytest.raises(UserError, match=r"row 9: The video .*cut.mp4 cannot be read"):
        make_collator(*VIDEO)([with_video("red?", "yes", path, id="9")])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["dataset.columns={image: null, video: clip}"],
            "has only video data, and .*video_data is false.*collator=video",
        ),
        (["collator.data_processing.image_data=false"], "has only image data, and .*image_data is false"),
        ([*VIDEO, "model=phi3vision"], "microsoft/Phi-3-vision-128k-instruct takes image .*and no video"),
        ([VIDEO[1], "collator.data_processing.video_data=true"], "collator.messages show no video, .*collator=video"),
        (["collator.image_processing.resize_mode=squash"], "'squash' must be one of keep_aspect, crop, stretch"),
        (["collator.image_processing.max_size=0"], "max_size=0 must be at least 1"),
        (["collator.video_processing.frame_extraction.library=ffmpeg"], "'ffmpeg' must be one of auto, decord"),
        (["collator.video_processing.frame_extraction.sampling_strategy=all"], "'all' must be one of uniform, fps"),
        (["collator.video_processing.frame_extraction.num_frames=0"], "num_frames=0 must be at least 1"),
        (["collator.video_processing.frame_extraction.fps=0"], "fps=0.0 must be more than 0"),
        (["collator.video_processing.file_processing.max_duration=-1"], "max_duration=-1.0 must be more than 0"),
        (["dataset.on_bad_sample=ignore"], "'ignore' must be one of error, skip"),
        (["dataset.max_bad_share=1.5"], "max_bad_share=1.5 must be"),
        (["dataset.train_answer=random"], "'random' must be one of most_common, sampled"),
        (["dataset.required=[answer,context]"], "dataset.columns.context is not set"),
    ],
)
def test_what_does_not_fit_together(overrides, message, compose):
    with pytest.raises(UserError, match=message):
        compose(*overrides)


def test_of_two_media_only_those_that_are_shown_are_used(compose):
    from vlmexp.config import used_columns

    assert used_columns(compose(VIDEO[1])) == {"image": "image", "question": "question", "answer": "answer"}
    assert "video" in used_columns(compose(*VIDEO))


@pytest.fixture
def qwen3_collator(compose):
    """Qwen3-VL puts `<0.3 seconds>` before each pair of frames."""
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor

    from vlmexp.models import tiny
    from vlmexp.parts import build_collator

    parts = tiny.processor()
    sizes = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    video = Qwen3VLVideoProcessor(**sizes, size={"shortest_edge": 1024, "longest_edge": 512 * 512})
    processor = Qwen3VLProcessor(parts.image_processor, parts.tokenizer, video, chat_template=parts.chat_template)
    return build_collator(compose(*VIDEO), processor)


def test_lengths_where_the_processor_writes_the_times_of_frames(qwen3_collator, tmp_path, grey):
    """Longer times are more tokens."""
    long = drawn(tmp_path / "long.mp4", 25, rate=Fraction(1, 60))
    items = [with_video("bright?", "no", grey), with_video("bright?", "no", long), example("who?", "b")]
    lengths = token_lengths(qwen3_collator, items, True)
    assert lengths == [qwen3_collator([item])["input_ids"].shape[1] for item in items]
    assert lengths[1] > lengths[0]  # the same number of frames


def test_a_video_of_one_frame_that_the_processor_refuses(qwen3_collator, draw, tmp_path):
    """Beside an image that it takes: both columns are named, and another size would not help."""
    row = with_video("red?", "yes", drawn(tmp_path / "one.mp4", 1), draw("red"), id="3")
    row = dataclasses.replace(row, columns={"image": "picture", "video": "clip"})
    message = r"row 3, column picture or clip: .* no media of 64 x 64 pixels and 1 frame of 64 x 48 pixels \(.*skip\.$"
    with pytest.raises(UserError, match=message):
        token_lengths(qwen3_collator, [row], True)


def test_images_that_are_scaled_down_are_told(make_collator, draw):
    items = [example("red?", "yes", draw("red", size), id=str(size)) for size in ((300, 200), (30, 20))]
    told = []
    for limit in (60_000, 59_999):
        collator = make_collator(f"collator.image_processing.max_pixels={limit}")
        note_texts(collator, fit(collator, items, 2048, "error").found, "train", told.append)
    (said,) = told
    assert said.startswith("train: In 1 of 2 examples an image has more pixels than collator.image_processing.max_pix")
