"""Conversations in the forms that data sets have: each becomes the same turns, or is named in one sentence."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from vlmexp.data.conversation import BadConversation, read_conversation
from vlmexp.data.examples import Examples
from vlmexp.data.prepare import prepare
from vlmexp.data.turns import Turn, loaded_turns, stored_turns
from vlmexp.files import read_jsonl

IMAGE, VIDEO = ("image", ""), ("video", "")


def said(role: str, *parts) -> Turn:
    return Turn(role, tuple(("text", part) if isinstance(part, str) else part for part in parts))


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


CHAT = [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "a circle"}]


@pytest.mark.parametrize(
    ("value", "media", "expected"),
    [
        (CHAT, {}, [said("user", "what is it?"), said("assistant", "a circle")]),
        (json.dumps(CHAT), {}, [said("user", "what is it?"), said("assistant", "a circle")]),
        # Media without a place stand at the beginning, a video before an image.
        (CHAT, {"image": 2}, [said("user", IMAGE, IMAGE, "what is it?"), said("assistant", "a circle")]),
        (
            [{"role": "system", "content": "Be brief."}, *CHAT],
            {"image": 1, "video": 1},
            [said("system", "Be brief."), said("user", VIDEO, IMAGE, "what is it?"), said("assistant", "a circle")],
        ),
        (
            [
                {
                    "role": "user",
                    "content": [text(" is "), {"type": "image"}, text("red? ")],
                },
                {"role": "assistant", "content": [text("\nno\n")]},
            ],
            {"image": 1},
            [said("user", "is ", IMAGE, "red?"), said("assistant", "no")],
        ),
        # In LLaVA's form <image> is a place, and the line break beside it belongs to it.
        (
            [
                {"from": "human", "value": "<image>\nis it like\n<image>?"},
                {"from": "gpt", "value": "<image> is text here"},
                {"from": "human", "value": "and\n\nthis?\n<image>"},
                {"from": "gpt", "value": 3},
            ],
            {"image": 3},
            [
                said("user", IMAGE, "is it like", IMAGE, "?"), said("assistant", "<image> is text here"),
                said("user", "and\n\nthis?", IMAGE), said("assistant", "3"),
            ],
        ),
        # In other texts of the user's they are places where there are as many as media,
        (
            [
                {"role": "user", "content": "is <image 2>\nlike <image 1>? See <image 2>."},
                {"role": "assistant", "content": "<image 1> is text here"},
                {"role": "user", "content": [text("and "), text("<video>")]},
                {"role": "assistant", "content": "no"},
            ],
            {"image": 2, "video": 1},
            [
                said("user", "is ", ("image", "2"), "\nlike ", ("image", "1"), "? See <image 2>."),
                said("assistant", "<image 1> is text here"),
                said("user", "and ", ("video", "1")), said("assistant", "no"),
            ],
        ),
        (
            [{"role": "user", "content": "what is <image>?"}, {"role": "assistant", "content": "a tag"}],
            {"image": 1},
            [said("user", "what is ", ("image", "1"), "?"), said("assistant", "a tag")],
        ),
        # and else, or where parts name the places, mere text.
        (
            [{"role": "user", "content": "what is <image>?"}, {"role": "assistant", "content": "a tag"}],
            {"image": 2},
            [said("user", IMAGE, IMAGE, "what is <image>?"), said("assistant", "a tag")],
        ),
        (
            [{"role": "user", "content": [{"type": "image"}, text("is <image> a tag?")]}, CHAT[1]],
            {"image": 1},
            [said("user", IMAGE, "is <image> a tag?"), said("assistant", "a circle")],
        ),
        (
            [{"from": "human", "value": "<image 1> or <image 2>?"}, {"from": "gpt", "value": "b"}],
            {"image": 2},
            [said("user", ("image", "1"), " or ", ("image", "2"), "?"), said("assistant", "b")],
        ),
    ],
)  # fmt: skip
def test_what_a_conversation_says(value, media, expected):
    turns = read_conversation(value, media)
    assert list(turns) == expected
    assert loaded_turns(stored_turns(turns)) == turns


@pytest.mark.parametrize(
    ("value", "reason", "message"),
    [
        (None, "no conversation", "None is no list of turns"),
        ([], "no conversation", "[] is no list of turns"),
        ("hello", "no conversation", "'hello' is no list of turns"),
        ("what is it?", "no conversation", "'what is it?' is no list of turns"),
        ("[" + 5000 * "1" + "]", "no conversation", "'[1111"),  # more digits than Python reads
        (["hello"], "no conversation", 'turn 1 has neither a "role" nor a "from": hello'),
        ([{"role": "tool", "content": "x"}], "unknown role", "turn 1 is that of 'tool'; there are system, user,"),
        ([CHAT[0]], "no answer", "its last turn is the user's, and nobody answers"),
        ([*CHAT, CHAT[0]], "no answer", "its last turn is the user's, and nobody answers"),
        ([{"role": "system", "content": "x"}], "no answer", "its last turn is the system's"),
        ([CHAT[1], CHAT[0]], "turns out of order", "its turns are those of assistant, user, and user and assistant"),
        ([CHAT[0], CHAT[0], CHAT[1]], "turns out of order", "its turns are those of user, user, assistant"),
        ([CHAT[0], {"role": "assistant", "content": " \n"}], "empty turn", "turn 2, the assistant's, is empty"),
        ([CHAT[0], {"role": "assistant", "content": None}], "empty turn", "turn 2, the assistant's, is empty"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "no conversation", "turn 1: {'type': 'audio'} is no part"),
        (
            [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}],
            "no conversation", "turn 1: a part names its own image (a.png): put the row's images into a column",
        ),
        (
            [CHAT[0], {"role": "assistant", "content": [{"type": "image"}]}],
            "no conversation", "turn 2, the assistant's, has a place for media: only a user's may",
        ),
        (
            [{"from": "human", "value": "<image><image>what?"}, {"from": "gpt", "value": "x"}],
            "no image", "it has places for 2 images and the row has 1 (dataset.columns.image,",
        ),
        (
            [{"from": "human", "value": "<video>what?"}, {"from": "gpt", "value": "x"}],
            "no video", "it has places for 1 videos and the row has 0",
        ),
        ([{"role": {}, "content": "x"}], "unknown role", "turn 1 is that of '{}'"),
    ],
)  # fmt: skip
def test_what_is_no_conversation(value, reason, message):
    with pytest.raises(BadConversation) as error:
        read_conversation(value, {"image": 1})
    assert error.value.reason == reason
    assert str(error.value).startswith(message)


def test_conversations_are_stored_and_bad_ones_are_listed(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "b.png")
    human, gpt = ({"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"})
    rows = [
        {"id": "two", "image": ["a.png", "b.png"], "conversations": [human, gpt, human, {**gpt, "value": "blue"}]},
        {"id": "none", "conversations": [{"from": "human", "value": "why?"}, gpt]},
        {"id": "unanswered", "image": "a.png", "conversations": [human, gpt, {"from": "human", "value": "and?"}]},
        {"id": "fewer", "conversations": [human, gpt]},
        {"id": "gone", "image": "gone.png", "conversations": [human, gpt]},
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    columns = {"image": "image", "messages": "conversations"}
    prepared = prepare(
        tmp_path / "data", "talks", "1", "files", {"train": str(tmp_path / "train.json")}, {"train": "train"},
        validation_fraction=0.0, test_fraction=0.0, split_seed=0, columns=columns, required=["messages"],
        on_bad_sample="skip", max_bad_share=0.9,
    )  # fmt: skip
    assert prepared.manifest["bad"] == {"train": {"no answer": 1, "no image": 1, "missing": 1}}
    assert read_jsonl(prepared.folder / "bad.jsonl")[0]["error"] == (
        "split train, row unanswered, column conversations: its last turn is the user's, and nobody answers."
    )
    two, none = Examples(prepared, "train", columns)
    assert [path.name for path in two.images] == ["a.png", "b.png"]
    assert two.turns == (said("user", IMAGE, "what?"), said("assistant", "red"), said("user", IMAGE, "what?"))
    assert (two.fields, two.answer, two.answers) == ({"question": "what?"}, "blue", ("blue",))
    assert (none.turns, none.answer, none.images) == ((said("user", "why?"),), "red", ())
