"""What trackers write holds no secret, whatever the configuration and its errors hold."""

from __future__ import annotations

import dataclasses

import pytest

from tests.test_confidential import KEY, TOKEN, planted, planted_in
from vlmexp.runs import Run
from vlmexp.tracking.opening import tracked

__all__ = ["planted"]


@pytest.mark.parametrize("tool", ["wandb", "tensorboard"])
def test_no_file_of_a_tracker_holds_a_secret(tool, planted, compose, monkeypatch):
    config = compose(f"tracking={tool}", "tracking.mode=offline")
    said = f"as {TOKEN} with {KEY}"  # as of a version that let it pass
    collator = dataclasses.replace(config.collator, system_prompt=said, template_options={TOKEN: [KEY]})
    config = dataclasses.replace(config, collator=collator)
    config.tracking.name = said
    monkeypatch.setattr("sys.argv", ["vlmexp", f"tracking.name={said}"])
    with Run.open(planted / "run", config, [f"tracking.name={said}"]) as run, tracked(config, run):
        run.tracker.log({"step": 1, "loss": 0.5})
        run.tracker.evaluated("base", {"n": 1, "metrics": {"vqa_accuracy": 1.0}}, 0, [])
        run.note_fallback(said)
    assert any((planted / "run").rglob("*.wandb" if tool == "wandb" else "events.*"))
    assert planted_in(planted / "run") == []
