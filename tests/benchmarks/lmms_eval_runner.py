"""lmms-eval's own command line, with a record of what its model was given and of what each row scores.

`tests.benchmarks.against_lmms_eval` starts it with the interpreter of lmms-eval's environment, which has no vlmexp:

    python lmms_eval_runner.py RECORD.json --model llava_hf --tasks ...

RECORD.json exists beforehand and says `local`, the folder that stands for a data set of the Hub, and `metrics`, those
of each task. Into it come, for each task, `rows` in the order of the data (tokens of the prompt, a digest of the
pixels, the answer, scores) and `summary`, the metrics over all rows.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import math
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from lmms_eval import evaluator, utils
from lmms_eval.__main__ import cli_evaluate
from lmms_eval.models import get_model

given: list[dict[str, Any]] = []  # what the model was given, in the order of its calls, which have a row each
calls: dict[tuple[str, int], dict[str, Any]] = {}  # the same and what it said, by task and number of the row


def local_tables(local: dict[str, str]) -> None:
    """Read data sets of the Hub from folders, also those that the code of a task names (GQA's table of images)."""
    load = datasets.load_dataset

    def load_local(path: str, *arguments: Any, **options: Any) -> Any:
        return load(local.get(path, path), *arguments, **options)

    datasets.load_dataset = load_local


def no_empty_images() -> None:
    """Give processors None for no image: lmms-eval's class gives them an empty list, which transformers 5 refuses."""
    process = transformers.ProcessorMixin.__call__

    def process_some(self: Any, *arguments: Any, **options: Any) -> Any:
        return process(self, *arguments, **options | {"images": options.get("images") or None})

    transformers.ProcessorMixin.__call__ = process_some


def record_calls(model_class: Any) -> None:
    """Keep tokens and pixels of each call of `generate` and its answer, and find out which row it was for."""
    generate, answer, in_order = (
        transformers.GenerationMixin.generate, model_class.generate_until, utils.Collator.get_original,
    )  # fmt: skip
    ordered: list[dict[str, Any]] = []

    def recording_generate(self: Any, *arguments: Any, **inputs: Any) -> Any:
        given.append({"tokens": inputs["input_ids"][0].tolist(), "pixels": digest(inputs.get("pixel_values"))})
        return generate(self, *arguments, **inputs)

    def recording_order(self: Any, answers: list[Any]) -> Any:
        ordered.extend(in_order(self, given))
        given.clear()
        return in_order(self, answers)

    def recording_answer(self: Any, requests: list[Any]) -> Any:
        answers = answer(self, requests)
        for request, prompt, said in zip(requests, ordered, answers, strict=True):
            *_, row, task, _ = request.args
            calls[task, row] = prompt | {"answer": said.text}
        ordered.clear()
        return answers

    transformers.GenerationMixin.generate = recording_generate
    utils.Collator.get_original = recording_order
    model_class.generate_until = recording_answer


def digest(pixels: torch.Tensor | None) -> str | None:
    """The same for the same shape and values."""
    if pixels is None:
        return None
    return hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.float().contiguous().numpy().tobytes()).hexdigest()


def row_score(task: Any, metric: str, value: Any, folder: str) -> float | None:
    """A row's own score, or what lmms-eval's aggregation makes of this row alone; None where it needs others."""
    if isinstance(value, dict) and "score" in value:
        value = value["score"]
    if isinstance(value, (int, float)):
        return float(value)
    aggregation = task.aggregation()[metric]
    takes_place = "args" in inspect.signature(aggregation).parameters
    place = {"args": argparse.Namespace(output_path=folder)} if takes_place else {}
    score = float(aggregation([value], **place))
    return None if math.isnan(score) else score


def main() -> None:
    path = Path(sys.argv.pop(1))
    record = json.loads(path.read_text(encoding="utf-8"))
    local_tables(record["local"])
    no_empty_images()
    record_calls(get_model(sys.argv[sys.argv.index("--model") + 1]))
    evaluate = evaluator.evaluate

    def recording_evaluate(*arguments: Any, **options: Any) -> Any:
        found = evaluate(*arguments, **options)
        tasks = {output.task_name: output.task for output in evaluator.get_task_list(options["task_dict"])}
        rows, summary = {}, {}
        for name, metrics in record["metrics"].items():
            samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
            rows[name] = [
                calls[name, sample["doc_id"]]
                | {
                    "scores": {
                        metric: row_score(tasks[name], metric, sample[metric], str(path.parent))
                        for metric in metrics
                        if metric in sample
                    },
                }
                for sample in samples
            ]
            values = {key.partition(",")[0]: value for key, value in found["results"][name].items()}
            summary[name] = {
                key: value for key, value in values.items() if isinstance(value, (int, float)) and "_stderr" not in key
            }
        path.write_text(json.dumps(record | {"rows": rows, "summary": summary}), encoding="utf-8")
        return found

    evaluator.evaluate = recording_evaluate
    cli_evaluate()


if __name__ == "__main__":
    main()
