"""Run directories as runs leave them, made in milliseconds: what the tests of the comparison read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from vlmexp.evaluation.intervals import bootstrap_interval

Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
START = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG: dict[str, Any] = {
    "stage": "pipeline",
    "run": None,
    "seed": 0,
    "model": {"id": "vlmexp:tiny", "revision": None, "dtype": "bfloat16"},
    "dataset": {"name": "squares", "max_examples": {"train": None, "test": None}, "metrics": ["vqa_accuracy", "bleu"]},
    "collator": {
        "system_prompt": "Answer briefly.",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "{question}"}]}],
    },
    "peft": {"config_class": "LoraConfig", "r": 8, "lora_alpha": 16},
    "train": {"learning_rate": 1e-3, "max_steps": 20, "bf16": False},
    "tracking": {"report_to": "none"},
    "paths": {"data": "data", "outputs": "outputs"},
}


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """CONFIG with dotted options set."""
    config = json.loads(json.dumps(CONFIG))
    for option, value in options.items():
        *path, name = option.split(".")
        group = config
        for part in path:
            group = group.setdefault(part, {})
        group[name] = value
    return config


def prediction(number: int, right: bool, **values: Any) -> dict[str, Any]:
    """A line of *_predictions.jsonl about an example that is answered rightly or not."""
    return {
        "id": f"test-{number}",
        "question": f"what is in picture {number}?",
        "images": [f"media/{number}.png"],
        "answers": ["square"],
        "prediction": "square" if right else "circle",
        "scores": {"vqa_accuracy": float(right), "exact_match": float(right)},
        "answer_type": "open" if number % 2 else "yes/no",
    } | values


def evaluation(rows: Sequence[Mapping[str, Any]], **values: Any) -> dict[str, Any]:
    """The *_evaluation.json of such predictions."""
    metrics = {name: sum(row["scores"][name] for row in rows) / len(rows) for name in rows[0]["scores"]}
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(row["answer_type"], []).append(row)
    by = {
        kind: {"n": len(found), "metrics": {n: sum(r["scores"][n] for r in found) / len(found) for n in metrics}}
        for kind, found in sorted(kinds.items())
    }
    intervals = {name: list(bootstrap_interval([row["scores"][name] for row in rows])) for name in metrics}
    return {
        "n": len(rows), "metrics": metrics, "intervals": intervals, "main_metric": "vqa_accuracy",
        "by": {"answer_type": by}, "split": "test", "population": 1000,
        "sample": "all", "model": "vlmexp:tiny", "dataset": "squares",
        "data_fingerprint": "a" * 64,
    } | values  # fmt: skip


def make_run(
    directory: Path,
    options: Mapping[str, Any] | None = None,
    right: Sequence[bool] = (True, False),
    base: Sequence[bool] | None = None,
    losses: Sequence[float] = (2.0, 1.0),
    **record: Any,
) -> Path:
    """A finished run; `record` overrides parts of run.json.

    Args:
        right: whether each example is answered rightly after the fine-tuning; empty: it was not evaluated.
        base: the same before it; None: never.
    """
    (directory / "evaluation").mkdir(parents=True)
    options = dict(options or {})
    (directory / "config.resolved.yaml").write_text(yaml.dump(nested(options), Dumper=Dumper, sort_keys=False))
    (directory / "run.json").write_text(
        json.dumps(
            {
                "id": f"{directory.name}-abcdef", "key": "k", "vlmexp": "0.1.0", "stage": "pipeline", "status": "done",
                "created": START.isoformat(), "heartbeat": (START + timedelta(seconds=90)).isoformat(),
                "attempts": [
                    {"started": START.isoformat(), "ended": (START + timedelta(seconds=90)).isoformat(), "host": "a"}
                ],
                "stages": {"train": {"status": "done", "eval_loss": losses[-1], "peak_memory_gib": 1.5}},
                "result": {}, "fallbacks": [], "git": {"sha": "c0ffee", "dirty": False},
                "packages": {"torch": "2.14.1", "peft": "0.21.2"}, "hardware": {"cpus": 2},
                "overrides": [f"{name}={value}" for name, value in options.items()],
                "data": {"name": "squares", "folder": str(directory.parent / "data"), "fingerprint": "a" * 64},
            }
            | record
        )
    )  # fmt: skip
    (directory / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": 10 * (i + 1), "loss": loss, "samples_per_s": 100.0 + i, "memory_gib": 1.0}) + "\n"
            + json.dumps({"step": 10 * (i + 1), "eval_loss": loss + 0.5}) + "\n"
            for i, loss in enumerate(losses)
        )
    )  # fmt: skip
    for stem, answered in (("finetuned", right), ("base", base or [False] * len(right))):
        write_evaluation(directory, stem, [prediction(number, hit) for number, hit in enumerate(answered)])
    if base is None:
        for path in (directory / "evaluation").glob("base_*"):
            path.unlink()
    return directory


def write_evaluation(directory: Path, stem: str, rows: Sequence[Mapping[str, Any]], **values: Any) -> None:
    """Put an evaluation of these predictions into a run directory; none of no predictions."""
    if rows:
        path = directory / "evaluation" / f"{stem}_vlm_model_evaluation.json"
        path.write_text(json.dumps(evaluation(rows, **values)))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.with_name(f"{stem}_vlm_model_predictions.jsonl").write_text(lines, encoding="utf-8")


def make_sweep(folder: Path, count: int) -> None:
    """Runs 0 … count - 1 that differ in rank, learning rate and seed."""
    for number in range(count):
        options = {
            "peft.r": 2 ** (number % 5), "train.learning_rate": [1e-3, 3e-3, 1e-2][number % 3], "seed": number // 15,
        }  # fmt: skip
        right = [(number * 7 + example) % 10 < 6 for example in range(20)]
        make_run(folder / str(number), options, right, base=[False] * 20, losses=[3.0 / (i + 1) for i in range(20)])
