from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.models.families import FAMILIES
from vlmexp.files import read_json
from vlmexp.preview.stage import preview
from vlmexp.runs import Run


@pytest.fixture
def show(compose, tmp_path):
    """Run the stage; returns what is in its page, and in run.json."""

    def run_preview(*overrides: str, directory: str = "run") -> tuple[dict, dict]:
        config = compose("stage=preview", "threads=1", *overrides)
        folder = tmp_path / directory
        with Run.open(folder, config, []) as run:
            run.conclude(preview(config, run))
        return page_content(folder / "preview.html"), read_json(folder / "run.json")

    return run_preview


def page_content(path: Path) -> dict:
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(found[1])


def files(*columns: str) -> list[str]:
    """Overrides for a data set in train.jsonl that has nothing but a train split."""
    return ["dataset=files", "dataset.validation_fraction=0", "dataset.test_fraction=0", *columns]


def write_rows(folder: Path, rows: list[dict]) -> str:
    """Write train.jsonl; returns the override that names it."""
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"dataset.options.train={folder / 'train.jsonl'}"


def trained_texts(card: dict) -> list[str]:
    """The trained text of each segment of a row."""
    return ["".join(text for _, text, kind, _ in s["pieces"] if kind == "trained") for s in card["segments"]]


@pytest.fixture(scope="session")
def bytewise():
    """A byte-level tokenizer with special tokens."""
    return FAMILIES["qwen2vl"]()[1].tokenizer
