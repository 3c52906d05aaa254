"""README.md is run, not trusted."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from tests.conftest import ROOT, only_run
from vlmexp.files import read_json, read_jsonl
from vlmexp.main import CONFIG_DIR, STAGES

README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"python -m vlmexp (?!--)[^`#\n]+", README)))
SIGNS = [("red", "Look.", "KR"), ("blue", "", "?"), ("green", "", "KR")]
NOT_COMPOSED = ("rat=", "sweep=")  # the mistake that is shown, and what looks at a sweep


def snippet(name: str) -> str:
    """The code block whose first line is a comment with this name."""
    found = re.search(rf"```\w+\n# {re.escape(name)}\n(.*?)```", README, re.DOTALL)
    assert found, name
    return found[1]


@pytest.mark.parametrize(
    "command", [c.strip() for c in COMMANDS if not any(text in c[8:] for text in ("-m ", *NOT_COMPOSED))]
)
def test_every_command_composes(command, cli, tmp_path):
    arguments = [text for text in shlex.split(command)[3:] if not text.startswith("run=") and text != "--cfg"]
    arguments = [text for text in arguments if text != "job"]
    done = cli(*arguments, "--cfg", "job")
    assert done.returncode == 0, done.stderr


def test_the_error_is_the_one_shown(cli):
    shown = re.search(r"\$ python -m vlmexp (\S+)\n(vlmexp: .*)", README)
    assert cli(shown[1]).stderr.strip() == shown[2]


def test_the_quick_start_is_what_ci_runs():
    first, second = re.findall(r"```bash\n(python3 -m venv.*)\n```", README)
    assert first.endswith("-m vlmexp")
    assert second.endswith("-m pytest")
    assert ".[test]" in second
    assert "grep -- '-m pytest$' README.md" in (ROOT / ".ci" / "run").read_text()


def test_every_stage_is_in_the_table():
    for stage in STAGES:
        assert f"| `{stage}` |" in README


def test_every_group_is_named():
    for group in CONFIG_DIR.iterdir():
        if group.is_dir() and group.name not in ("recipe", "experiment", "hydra"):
            assert f"`{group.name}`" in README


def test_the_table_is_a_real_one():
    """The shown numbers are of the order that the main job must reach."""
    base, tuned = re.search(r"VQA accuracy │ 9,673 │ +([\d.]+) % │ +([\d.]+) %", README).groups()
    assert float(base) < 20
    assert float(tuned) >= 96


@pytest.mark.slow
def test_ones_own_data_set_model_metric_and_stage(cli, tmp_path, vqa_files):
    """The snippets as they stand, from a folder outside the repository."""
    conf = tmp_path / "conf"
    for name in ("conf/dataset/signs.yaml", "conf/model/mine.yaml", "mine.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(snippet(name))
    signs = tmp_path / "signs"
    signs.mkdir()
    for split in ("train", "test"):
        text = (vqa_files / f"{split}.jsonl").read_text().replace('"picture": "', f'"image_path": "{vqa_files}/')
        (signs / f"{split}.jsonl").write_text(text)
    mine = [f"hydra.searchpath=[file://{conf}]", "model=mine", "dataset=signs"]
    path = f"{ROOT}:{tmp_path}"
    done = cli(*mine, "stage=mine.count", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert read_json(only_run(tmp_path) / "run.json")["result"]["metric"] > 40
    done = cli(
        *mine, "train.max_steps=2", "train.per_device_train_batch_size=4",
        "evaluation.metrics=[vqa_accuracy,mine.brevity]",
        f"paths.outputs={tmp_path / 'other'}", PYTHONPATH=path, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = read_json(only_run(tmp_path / "other") / "evaluation" / "finetuned_vlm_model_evaluation.json")
    assert written["n"] == 16
    assert 0 < written["metrics"]["brevity"] <= 1


@pytest.mark.slow
def test_ones_own_benchmark_and_a_metric_that_sees_the_row(cli, tmp_path, draw):
    """From a folder of one's own, by what README shows alone."""
    for name in ("conf/dataset/traffic.yaml", "mine.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(snippet(name))
    rows = [
        {"image": str(draw(color)), "question": "What is it?", "options": ["red", "blue", "green"], "answer": number,
         "hint": hint, "country": country, "checked": number < 2}
        for number, (color, hint, country) in enumerate(SIGNS)
    ]  # fmt: skip
    (tmp_path / "traffic").mkdir()
    (tmp_path / "traffic" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli(
        f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "dataset=traffic", "stage=eval_base", "evaluation=rank",
        "evaluation.choices=[A,not at all one of them]", PYTHONPATH=f"{ROOT}:{tmp_path}", timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    evaluation = only_run(tmp_path) / "evaluation"
    result = read_json(evaluation / "base_vlm_model_evaluation.json")
    assert result["n"] == 2
    assert result["metrics"] == {"multiple_choice_accuracy": 0.5, "confident": 0.5}
    assert result["by"]["country"]["KR"]["metrics"] == {"multiple_choice_accuracy": 1.0, "confident": 1.0}
    first, second = read_jsonl(evaluation / "base_vlm_model_predictions.jsonl")
    assert (first["hint"], first["choices"]) == ("Look.", "A. red\nB. blue\nC. green")
    assert (second["hint"], second["answers"]) == ("", ["B"])


def test_the_version_is_in_the_changelog():
    from vlmexp import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
