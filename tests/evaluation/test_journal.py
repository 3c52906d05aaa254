from __future__ import annotations

import pytest

from vlmexp.evaluation.journal import Journal, forget, take_up
from vlmexp.models.checkpoint import fingerprint
from vlmexp.storage import StorageError


def test_what_was_appended_is_taken_up_whoever_wrote_it(tmp_path):
    folder = tmp_path / "evaluation"
    assert take_up(folder, "base_predictions", "a", pytest.fail) == {}
    for rank, id in enumerate(("one", "two", "three")):
        Journal(folder, "base_predictions", "a", rank).append({id: {"prediction": f"{id}\u2028é\n"}})
    Journal(folder, "base_predictions", "a", 1).append({"four": {"prediction": "4", "ranking": [1]}})
    expected = {id: {"prediction": f"{id}\u2028é\n"} for id in ("one", "two", "three")}
    expected["four"] = {"prediction": "4", "ranking": [1]}
    assert take_up(folder, "base_predictions", "a", pytest.fail) == expected
    assert [path.name for path in folder.iterdir()] == ["base_predictions.partial-rank0.jsonl"]
    Journal(folder, "base_predictions", "a", 0).append({"five": {"prediction": "5"}})
    assert take_up(folder, "base_predictions", "a", pytest.fail) == {**expected, "five": {"prediction": "5"}}


@pytest.mark.parametrize("torn", ['{"id": "b", "pred', '{"id": "b", "prediction": "\u00e9'], ids=["key", "text"])
def test_a_torn_line_is_dropped(tmp_path, torn):
    journal = Journal(tmp_path, "x", "a", 0)
    journal.append({"a": {"prediction": "1"}})
    journal.path.write_bytes(journal.path.read_bytes() + torn.encode()[:-1])
    assert take_up(tmp_path, "x", "a", pytest.fail) == {"a": {"prediction": "1"}}
    journal.append({"b": {"prediction": "2"}})
    assert take_up(tmp_path, "x", "a", pytest.fail) == {"a": {"prediction": "1"}, "b": {"prediction": "2"}}


def test_a_torn_header_is_no_header(tmp_path):
    journal = Journal(tmp_path, "x", "a", 0)
    journal.path.write_text('{"fingerpr')
    assert take_up(tmp_path, "x", "a", pytest.fail) == {}
    assert not journal.path.exists()


@pytest.mark.parametrize(
    ("damage", "kept", "told"),
    [
        (lambda lines: [*lines[:2], lines[2][:9] + lines[3]], {"1"}, "1 of 3 lines"),
        (lambda lines: [*lines[:2], b"\0" * 40 + b"\n", *lines[2:]], {"1", "2", "3"}, "1 of 5 lines"),
        (lambda lines: [*lines, b"[1,2]\n", b'{"id": "4"}\n', b'"\xff"\n'], {"1", "2", "3"}, "3 of 7 lines"),
        (lambda lines: [*lines, b"[" * 200_000 + b"\n"], {"1", "2", "3"}, "1 of 5 lines"),
        (lambda lines: [b"garbage\n", *lines[1:]], set(), "4 of 4 lines"),
        (lambda lines: [b"[1]\n", *lines[1:]], set(), "4 of 4 lines"),
        (lambda lines: lines[1:], set(), "3 of 3 lines"),
    ],
    ids=["torn", "nul", "other", "deep", "header", "list", "no header"],
)
def test_damaged_lines_are_dropped_and_told(tmp_path, damage, kept, told):
    journal, notes = Journal(tmp_path, "x", "a", 0), []
    for id in "123":
        journal.append({id: {"prediction": "p" + id}})
    journal.path.write_bytes(b"".join(damage(journal.path.read_bytes().splitlines(keepends=True))))
    expected = {id: {"prediction": "p" + id} for id in kept}
    assert take_up(tmp_path, "x", "a", notes.append) == expected
    assert notes == [f"{journal.path}: {told} are damaged; their questions are asked again."]
    assert take_up(tmp_path, "x", "a", pytest.fail) == expected  # the file is whole again, or gone


def test_answers_that_depend_on_something_else_are_thrown_away(tmp_path):
    Journal(tmp_path, "x", "a", 0).append({"a": {"prediction": "1"}})
    Journal(tmp_path, "x", "b", 1).append({"b": {"prediction": "2"}})
    assert take_up(tmp_path, "x", "b", pytest.fail) == {"b": {"prediction": "2"}}
    assert take_up(tmp_path, "x", "a", pytest.fail) == {}
    assert list(tmp_path.iterdir()) == []


def test_kinds_of_answers_are_kept_apart(tmp_path):
    for stem in ("base_predictions", "base_blind_answers"):
        Journal(tmp_path, stem, "a", 0).append({"a": {"prediction": stem}})
    assert take_up(tmp_path, "base_predictions", "a", pytest.fail) == {"a": {"prediction": "base_predictions"}}
    forget(tmp_path, "base_predictions")
    assert [path.name for path in tmp_path.iterdir()] == ["base_blind_answers.partial-rank0.jsonl"]


def test_a_full_disk_is_said_in_a_sentence(tmp_path):
    (tmp_path / "x.partial-rank0.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"x\.partial-rank0\.jsonl cannot be written: the disk is full \("):
        Journal(tmp_path, "x", "a", 0).append({"a": {"prediction": "1"}})


def test_a_checkpoint_is_told_from_another(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    before = fingerprint(str(tmp_path), None)
    (tmp_path / "README.md").write_text("a card changes nothing")
    assert fingerprint(str(tmp_path), None) == before
    (tmp_path / "adapter_model.safetensors").write_bytes(b"Weights")
    assert fingerprint(str(tmp_path), None) != before
    snapshot = tmp_path / "models--me--it" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert fingerprint(str(snapshot), None) == f"{snapshot}@0123"
