"""Metrics as people write them, right and wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

CONSTANT = 3


def fails(prediction: str, answers: list[str]) -> float:
    return 1 / len(prediction)


def takes_one(prediction: str) -> float:
    return 1.0


def nothing(prediction: str, answers: list[str]) -> None:
    return None


def empty(prediction: str, answers: list[str]) -> dict[str, float]:
    return {}


def text(prediction: str, answers: list[str]) -> str:
    return "good"


def nan(prediction: str, answers: list[str]) -> float:
    return float("nan")


def infinite(prediction: str, answers: list[str]) -> dict[str, float]:
    return {"one": 1.0, "other": float("inf")}


def one_in_a_list(prediction: str, answers: list[str]) -> Any:
    return np.array([0.5])


def vqa_accuracy(prediction: str, answers: list[str]) -> float:
    return 0.123


def length(prediction: str, answers: list[str]) -> int:
    return len(prediction)


def by_kind(prediction: str, answers: list[str]) -> dict[str, float]:
    return {"kind": 1.0, "bleu": 0.5}


def cider(prediction: str, answers: list[str]) -> float:
    return 0.5


def numpy_scalar(prediction: str, answers: list[str]) -> Any:
    return np.float32(0.5)


def numpy_array(prediction: str, answers: list[str]) -> Any:
    return np.array(0.25)


def boolean(prediction: str, answers: list[str]) -> bool:
    return prediction in answers


def fails_later(prediction: str, answers: list[str]) -> float:
    if prediction:
        raise RuntimeError("boom")
    return 1.0


def nan_later(prediction: str, answers: list[str]) -> float:
    return float("nan") if prediction else 1.0


def other_names(prediction: str, answers: list[str]) -> dict[str, float]:
    return {prediction or "nothing": 1.0}
