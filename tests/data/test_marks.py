"""Which marks in a text are places of media."""

from __future__ import annotations

import pytest

from vlmexp.data.marks import in_front, split_at_marks

FIRST, SECOND, CLIP = ("image", "1"), ("image", "2"), ("video", "1")


@pytest.mark.parametrize(
    ("text", "media", "expected"),
    [
        ("is it red?", {"image": 1}, ["is it red?"]),
        ("<image>\nis it red?", {"image": 1}, [FIRST, "\nis it red?"]),
        ("is <image> as\t<image>\n\n?", {"image": 2}, ["is ", FIRST, " as\t", SECOND, "\n\n?"]),
        ("<image 1> or <image 2>?", {"image": 2}, [FIRST, " or ", SECOND, "?"]),
        ("<image 2> or <image_1>?", {"image": 2}, [SECOND, " or ", FIRST, "?"]),
        # A number that comes again is a reference to what has been shown.
        ("<image 1>: is <image 1> red?", {"image": 1}, [FIRST, ": is <image 1> red?"]),
        ("<image>: is <image 1> red?", {"image": 1}, [FIRST, ": is <image 1> red?"]),
        ("<video>\nas in <image>?", {"image": 1, "video": 1}, [CLIP, "\nas in ", FIRST, "?"]),
        ("<video> as in <image>?", {"image": 1}, ["<video> as in ", FIRST, "?"]),
        # Not as many as media, or not all of them: text.
        ("<image> or what?", {"image": 2}, ["<image> or what?"]),
        ("<image><image>?", {"image": 1}, ["<image><image>?"]),
        ("<image 1>?", {"image": 2}, ["<image 1>?"]),
        ("<image 2>?", {"image": 1}, ["<image 2>?"]),
        ("the tag <image>", {"image": 0}, ["the tag <image>"]),
        ("<Image> <images> <|image_1|> < image>", {"image": 1}, ["<Image> <images> <|image_1|> < image>"]),
        ("<image>", {"image": 1}, [FIRST]),
        ("", {"image": 1}, []),
    ],
)
def test_places(text, media, expected):
    parts = [("text", part) if isinstance(part, str) else part for part in expected]
    assert split_at_marks(text, media) == tuple(parts)


@pytest.mark.parametrize(
    ("text", "media", "expected"),
    [
        ("<image>\n<image> \n is it?", {"image": 2}, (FIRST, SECOND, ("text", "is it?"))),
        ("<image 2><image 1>", {"image": 2}, (SECOND, FIRST)),
        ("is <image>?", {"image": 1}, None),
        ("<image> or <image>", {"image": 2}, None),
        ("\nis it?", {"image": 1}, None),
        ("", {}, None),
    ],
)
def test_places_in_front_of_all_words(text, media, expected):
    assert in_front(split_at_marks(text, media)) == expected
