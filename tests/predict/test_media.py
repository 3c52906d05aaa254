from __future__ import annotations

import re

import pytest

from vlmexp.errors import UserError
from vlmexp.predict.media import check_header, left_out, named_files, question_about


def test_a_file_several_and_a_folder(draw, tmp_path):
    red, blue = draw("red"), draw("blue")
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden.png").touch()
    (tmp_path / "inner").mkdir()
    assert named_files("image", str(red)).files == {str(red): [red]}
    assert named_files("image", [str(red), str(blue)]).files == {f"{red}, {blue}": [red, blue]}
    folder = named_files("image", str(tmp_path))
    assert list(folder.files.values()) == [[blue], [red]]
    assert left_out("image", folder) == "a file is no image by the ending and left out: notes.txt."
    assert named_files("image", f"{tmp_path}/r*.png").paths == [red]
    assert left_out("image", named_files("image", str(red))) is None


def test_a_name_that_looks_like_a_pattern(draw, tmp_path):
    odd = tmp_path / "a[1], (b)*.PNG"
    odd.write_bytes(draw("red").read_bytes())
    assert named_files("image", str(odd)).paths == [odd]
    assert odd in named_files("image", str(tmp_path)).paths


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("image", "gone.png", r"image=gone\.png: there is no such file \(looked at /"),
        ("image", "a.png,b.png", r"no such file .*Several images of one question are image=\[A,B\]\."),
        ("image", ["", "b.png"], "image=: there is no such file"),
        ("image", "x" * 5000, "there is no such file"),
        ("image", "~nobody-of-this-name/a.png", "there is no such file"),
        ("image", "nul\0.png", "there is no such file"),
        ("image", [], r"image=\[\] names no file"),
        ("image", "https://a.org/b.png", "is an address: download the file"),
        ("image", [1], "1 is no text"),
        ("image", 5, "5 is no text"),
        ("image", "*.png", r"image=\*\.png has no image in it: it holds no files"),
        ("video", "{folder}", "has no video in it: it holds one.png, three.jpg, two.txt"),
        ("image", ["{folder}", "a"], "is a folder: name it alone"),
    ],
)
def test_what_is_not_there(kind, given, said, tmp_path):
    for name in ("one.png", "two.txt", "three.jpg"):
        (tmp_path / name).touch()
    folder = str(tmp_path)
    given = (
        [item.format(folder=folder) if isinstance(item, str) else item for item in given]
        if isinstance(given, list)
        else given
    )
    given = given.format(folder=folder) if isinstance(given, str) and "{" in given else given
    with pytest.raises(UserError, match=said):
        named_files(kind, given)


def test_a_folder_without_any(tmp_path):
    with pytest.raises(UserError, match=re.escape(f"image={tmp_path} has no image in it: it holds no files")):
        named_files("image", str(tmp_path))


def test_a_file_that_is_no_image(tmp_path):
    (tmp_path / "no.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"no\.jpg cannot be read: .*that Pillow knows.*Name another file"):
        check_header("image", tmp_path / "no.jpg", "auto")


def test_a_question_in_a_conversation(draw):
    red, blue = draw("red"), draw("blue")
    plain = question_about("a", "image", [red], "what?", in_conversation=False)
    assert (plain.images, plain.videos, plain.turns, plain.fields["question"]) == ((red,), (), (), "what?")
    (turn,) = question_about("a", "image", [red, blue], "is <image> like <image>?", in_conversation=True).turns
    assert turn.parts == (("text", "is "), ("image", "1"), ("text", " like "), ("image", "2"), ("text", "?"))
