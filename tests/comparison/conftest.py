from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.comparison.synthetic import evaluation, make_run, prediction, write_evaluation
from vlmexp.runs import now


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """One run directory of each kind that there can be, in a folder as the working directory of its user has."""
    runs, sweep = tmp_path / "outputs", tmp_path / "multirun" / "2026-01-02" / "10-00-00-000000"
    slow = {"train.learning_rate": 1e-4}
    good, better = [True] * 6 + [False] * 4, [True] * 9 + [False]
    make_run(sweep / "0", {"peft.r": 4, "seed": 0}, good, base=[False] * 10)
    make_run(sweep / "1", {"peft.r": 4, "seed": 1}, [*good[1:], False], base=[False] * 10)
    make_run(sweep / "2", {"peft.r": 8, "seed": 0}, better, base=[False] * 10)
    failed = make_run(
        sweep / "3", {"peft.r": 8, "seed": 1}, [], status="failed", error="OutOfMemoryError: 80 GiB is not enough\nat x"
    )
    (failed / "train.log").write_text("starting\nTraceback (most recent call last):\nOutOfMemoryError: 80 GiB\n")
    points = [
        {"point": n, "overrides": [f"peft.r={4 * 2 ** (n // 2)}", f"seed={n % 2}"], "directory": str(n)}
        for n in range(6)
    ]
    (sweep / "points.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    make_run(runs / "lost", slow, [], status="running", heartbeat="2026-01-01T00:00:00+00:00")
    make_run(runs / "alive", slow, [], status="running", heartbeat=now())
    make_run(runs / "preempted", slow, [], status="preempted")
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text('{"status": "do')
    other = make_run(runs / "other", slow, [])
    rows = [prediction(number, True) for number in range(5)]
    write_evaluation(other, "finetuned", rows, data_fingerprint="b" * 64, n=5)
    older = make_run(runs / "older", {}, [])
    (older / "run.json").write_text('{"status": "done"}')
    (older / "config.resolved.yaml").write_text("peft: {r: 4}\n")
    (older / "metrics.jsonl").unlink()
    written = {key: evaluation(rows + rows)[key] for key in ("metrics", "n", "main_metric")}
    (older / "evaluation" / "finetuned_vlm_model_evaluation.json").write_text(json.dumps(written))
    return tmp_path
