"""What to type for values that Hydra's grammar does not take as they are, read back by a shell and by Hydra."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from vlmexp.quoting import one_text, text_of, typed

LETTERS = [*map(chr, range(32, 127)), *"한é日😀", "\u00a0", "\n", "\t"]


def value_of(shell: str):
    (argument,) = shlex.split(shell)
    return OverridesParser.create().parse_override(argument).value()


def test_every_letter_in_every_place_of_a_path():
    for letter in LETTERS:
        for path in (f"a{letter}b.jsonl", f"{letter}b", f"a{letter}", f"/x/{letter}{letter}/y", letter):
            assert value_of(one_text(f"dataset.options.train={path}")) == path


@pytest.mark.parametrize(
    ("override", "value", "shell"),
    [
        ("dataset.options.train=a=b.jsonl", "a=b.jsonl", """'dataset.options.train="a=b.jsonl"'"""),
        ("+x=a#b c", "a#b c", """'+x="a#b c"'"""),
        ("~x=a=b", "a=b", """'~x="a=b"'"""),
        ("x=it's", "it's", r'''"x='it\'s'"'''),
        ('x=a"b', 'a"b', r"""'x="a\"b"'"""),
        ("x=$HOME/a#", "$HOME/a#", """'x="$HOME/a#"'"""),
        ("x=~/data", "~/data", """'x="~/data"'"""),
        ("x=[2024].jsonl", "[2024].jsonl", """'x="[2024].jsonl"'"""),
        ("x=[a].x/[b]", "[a].x/[b]", """'x="[a].x/[b]"'"""),
        ("x=a(1).jsonl", "a(1).jsonl", """'x="a(1).jsonl"'"""),
        ("x={a}.jsonl", "{a}.jsonl", """'x="{a}.jsonl"'"""),
        ("x=[a=b,c,\"d#\"]", ["a=b", "c", "d#"], """'x=["a=b",c,"d#"]'"""),
        ("x={train: /da ta/한국.jsonl, n: 3}", {"train": "/da ta/한국.jsonl", "n": 3},
         """'x={train: "/da ta/한국.jsonl", n: 3}'"""),
        ("x={a: {b: c=d}}", {"a": {"b": "c=d"}}, """'x={a: {b: "c=d"}}'"""),
    ],
)  # fmt: skip
def test_what_is_typed_means_what_was_meant(override, value, shell):
    assert typed(override) == shell
    assert value_of(shell) == value


def test_a_real_shell_gives_what_is_typed():
    overrides = ["x=a=b", "x=it's", "x=$HOME `id` \\ !", "x=a'\"b", "x=한국 #1"]
    script = "printf '%s\\0' " + " ".join(str(one_text(text)) for text in overrides)
    given = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    assert [text_of(text.partition("=")[2]) for text in given] == [text.partition("=")[2] for text in overrides]


def test_the_commas_of_a_sweep_divide_its_values():
    assert typed("x=a=b,한국", sweeps=True) == """'x="a=b","한국"'"""
    assert typed("x=choice(a=b,3)", sweeps=True) == """'x=choice("a=b",3)'"""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a=b", "a=b"),
        ("'a=b'", "a=b"),
        (r"'it\'s'", "it's"),
        ("2024", "2024"),
        ("[a]", "[a]"),
        ("a,b", "a,b"),
        ("", ""),
    ],
)
def test_the_text_that_a_value_stands_for(value, text):
    assert text_of(value) == text


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["dataset.options.train=a=b.jsonl"], ["a=b.jsonl", """type it""", """'dataset.options.train="a=b.jsonl"'"""]),
        (["compare.runs=[a=b,c]", "stage=compare"], ["""'compare.runs=["a=b",c]'"""]),
        (["model=한국"], ["""'model="한국"'"""]),
        (['model="한국"'], ["model=한국 does not exist", "tiny"]),
        (["-m", "x=a=b,c"], ["""'x="a=b",c'"""]),
        (["seed=1", "-m", "x=a=b,c"], ["""'x="a=b",c'"""]),
        (["dataset.options.train=a,b.jsonl"], ["-m", """'dataset.options.train="a,b.jsonl"'""", "list"]),
        (["model.id=a,b"], ["-m", """'model.id="a,b"'"""]),
        (["seed=1,2"], ["seed=1,2 are several values: sweep over them with -m"]),
        (["peft.r=choice(1,2)"], ["is a sweep", "-m"]),
        (["dataset=files", "dataset.options.train=kept,here.jsonl"], ["a file of this name", """train="kept,here.j"""]),
        (["-m", "dataset.options.train=kept,here.jsonl"], ["would be a sweep over 2", """train="kept,here.jsonl"'"""]),
        (["dataset.options.train=a", "b", "c.jsonl"], ["'b' is no option", "'dataset.options.train=a b c.jsonl'"]),
        (["dataset=files", "dataset.options.train=x", "dataset.options.root=2024"], ['dataset.options.root="2024"']),
        (["dataset.options.train=${HOME}/x", "dataset=files"], ["'HOME' not found", "${oc.env:NAME}"]),
        (["a b=3"], ["'a b' is no name of an option"]),
        (["hydra.run.dir="], ["hydra.run.dir= is empty"]),
        (["paths.outputs=''"], ["paths.outputs='' is empty"]),
        ([f"hydra.run.dir={'x' * 300}"], ["the name is too long (300 bytes", "takes 255", "Choose another"]),
        ([f"run={'x' * 300}"], ["the name is too long (300 bytes"]),
        ([f"hydra.run.dir={'abcdefgh/' * 700}"], ["the name is too long (6,3", "takes 4,095"]),
        (["hydra.run.dir=loop/x"], ["symbolic links lead nowhere"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)  # fmt: skip
def test_the_command_line_says_what_to_type(arguments, parts, tmp_path, cli):
    (tmp_path / "kept,here.jsonl").touch()
    (tmp_path / "loop").symlink_to("loop")
    done = cli(*arguments)
    said = done.stderr
    assert done.returncode == 2
    assert said.count("vlmexp: ") == 1
    assert "Traceback" not in said
    for part in parts:
        assert part.lower() in said.lower()
    assert {path.name for path in tmp_path.iterdir()} == {"kept,here.jsonl", "loop"}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WORLD_SIZE", "two", "WORLD_SIZE=two must be a whole number from 1 on"),
        ("WORLD_SIZE", "0", "WORLD_SIZE=0 must be a whole number from 1 on"),
        ("VLMEXP_DATA", "", "paths.data is empty (VLMEXP_DATA, which gives it, is empty)"),
        ("", "A=\udcff", "is no UTF-8"),
    ],
    ids=["word", "zero", "nowhere", "dotenv"],
)
def test_an_environment_that_cannot_be(name, value, said, tmp_path, cli):
    if not name:
        (tmp_path / ".env").write_bytes(value.encode(errors="surrogateescape"))
    done = cli(**({name: value} if name else {}))
    assert done.returncode == 2
    assert said in done.stderr
