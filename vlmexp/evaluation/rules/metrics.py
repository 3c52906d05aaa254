"""The rules of benchmarks as metrics of (prediction, answers, row), and those that need all rows at once.

The answer of a row of choices is its letter. What a rule would read at random counts as wrong, and how many of these
there are is a value of its own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from vlmexp.errors import UserError
from vlmexp.evaluation.row import Row
from vlmexp.evaluation.rules import boxes, letters, matching, yes_no

# Of MME's categories; the other ten are of perception.
_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_CIRCLE = 1_000_000  # MMBench's circular rows of one question have indices that differ by multiples of it


def ai2d_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """AI2D as lmms-eval scores it: `D. text` or the letter alone, whatever its case and punctuation."""
    said = letters.unpunctuated(letters.whole_or_dotted(prediction))
    return float(said in map(letters.unpunctuated, answers))


def scienceqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """ScienceQA as lmms-eval scores it: the letter alone in any case, or `B.` and whatever follows."""
    return float(letters.lone_or_dotted(prediction.strip()) in answers)


def seedbench_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """SEED-Bench as lmms-eval scores it: the first character is the letter."""
    return float(letters.first_character(prediction.strip()) in answers)


def mmstar_accuracy(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """MMStar (Chen et al., https://arxiv.org/abs/2403.20330) as lmms-eval scores it, see `letters.anywhere`."""
    return {"mmstar_accuracy": float(letters.anywhere(prediction) in answers)}


def realworldqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """RealWorldQA as lmms-eval scores it: a letter as MMStar's, another answer without case and final periods."""
    text = prediction.strip().lower().rstrip(".")
    return float(
        any(letters.anywhere(prediction) == given if _is_letter(given) else text == given.lower() for given in answers)
    )


def mmmu_accuracy(prediction: str, answers: Sequence[str], row: Row) -> dict[str, float]:
    """MMMU as its paper scores it: of choices the letter that is read, of open questions `mmmu_open`.

    `mmmu_unread` is 1 where no letter can be read, which the official code draws at random; here that is wrong.
    """
    if not row.choices:
        return {"mmmu_accuracy": float(matching.mmmu_open(prediction, answers)), "mmmu_unread": 0.0}
    read = letters.mmmu(prediction.strip(), row.choices)
    return {"mmmu_accuracy": float(read in answers), "mmmu_unread": float(not read)}


def mmbench_accuracy(prediction: str, answers: Sequence[str], row: Row) -> dict[str, float]:
    """MMBench's single rows: its own reader, and where that reads nothing, MMStar's."""
    texts = {letter: row.metadata.get(letter) for letter in "ABCD"}
    there = {letter: str(text) for letter, text in texts.items() if text is not None}
    read = letters.mmbench(prediction.strip(), there) or letters.anywhere(prediction, "".join(there))
    return {"mmbench_accuracy": float(read in answers)}


def gqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """GQA as lmms-eval scores it, see `matching.gqa`."""
    return float(matching.gqa(prediction.strip(), answers))


def aokvqa_direct(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """A-OKVQA's direct answers as its authors score them: right with three of the annotators, a third with each.

    Texts are equal whatever their case is, and nothing else is normalised.
    """
    said = prediction.strip().lower()
    return {"aokvqa_direct_accuracy": min(1.0, sum(said == answer.lower() for answer in answers) / 3)}


def ocrbench_accuracy(prediction: str, answers: Sequence[str], row: Row) -> float:
    """OCRBench: whether an answer is in the response; its score out of 1,000 is the number of right ones."""
    return float(matching.ocrbench(prediction.strip(), answers, row.metadata.get("dataset") == "HME100k"))


def pope_accuracy(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """POPE: exactly yes or no."""
    return {"pope_accuracy": float(yes_no.pope(prediction) in map(yes_no.pope, answers))}


def mme_accuracy(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """MME's single questions, see `yes_no.mme`."""
    return {"mme_accuracy": float(yes_no.mme(prediction) in (answer.lower() for answer in answers))}


def refcoco_rec(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """RefCOCO's boxes (Kazemzadeh et al. 2014) as shares of the picture, see `boxes.normalised_box`.

    The answer is a list `[left, top, right, bottom]` as text.
    """
    return boxes.box_values("refcoco", boxes.normalised_box(prediction), _box(answers))


def refcoco_grounding(prediction: str, answers: Sequence[str], row: Row) -> dict[str, float]:
    """RefCOCO's boxes in pixels or thousandths, see `boxes.best_box`; the row has `image_width` and `image_height`."""
    meant = _box(answers)
    width, height = (float(row.metadata[name]) for name in ("image_width", "image_height"))
    return boxes.box_values("grounding", boxes.best_box(prediction, meant, width, height), meant)


def box_iou(prediction: str, answers: Sequence[str], row: Row) -> dict[str, float]:
    """The boxes that were said, in the model's own notation, against the right ones, in pixels of the picture.

    Boxes are paired, those that overlap most first. A value is the sum over the pairs, divided by how many boxes were
    said or are right, whichever is more; with one of each it is that of RefCOCO (Kazemzadeh et al. 2014). `box_unread`
    is 1 where no box can be read.
    """
    if row.view is None:
        raise UserError(
            "The metric box_iou is for data whose answers are boxes: name their column in dataset.columns.box, or "
            "leave the metric out."
        )
    said = row.view.boxes(prediction)
    found = [boxes.box_values("box", *pair) for pair in boxes.paired(said, row.boxes)]
    most = max(len(said), len(row.boxes), 1)
    values = {name: sum(value[name] for value in found) / most for name in boxes.value_names("box")}
    return values | {"box_unread": float(not said)}


def pope(predictions: Sequence[str], answers: Sequence[Sequence[str]], rows: Sequence[Row]) -> dict[str, float]:
    """POPE's precision, recall, F1 and yes ratio, see `yes_no.pope_values`."""
    meant = [yes_no.pope(given[0]) if given else "" for given in answers]
    return yes_no.pope_values([yes_no.pope(text) for text in predictions], meant)


def mme(predictions: Sequence[str], answers: Sequence[Sequence[str]], rows: Sequence[Row]) -> dict[str, float | None]:
    """MME's scores: over its categories the sum of accuracy and of accuracy by pairs, in per cent.

    Needs the metadata `category` and `question_id`, which the two questions about a picture share. A question whose
    other half is not among the rows does not count; a kind of category that has no rows has no score.
    """
    pairs: dict[tuple[str, object], list[float]] = defaultdict(list)
    for prediction, given, row in zip(predictions, answers, rows, strict=True):
        pair = str(_needed(row, "category", "mme")), _needed(row, "question_id", "mme")
        pairs[pair] += mme_accuracy(prediction, given).values()
    scores: dict[str, list[float]] = defaultdict(list)
    for (category, _), right in pairs.items():
        if len(right) == 2:
            scores[category].append(100 * sum(right) / 2 + 100 * (sum(right) == 2))
    parts = {
        "mme_perception_score": [c for c in scores if c not in _COGNITION],
        "mme_cognition_score": [c for c in scores if c in _COGNITION],
    }
    return {
        name: sum(sum(scores[c]) / len(scores[c]) for c in found) if found else None for name, found in parts.items()
    }


def mmbench(predictions: Sequence[str], answers: Sequence[Sequence[str]], rows: Sequence[Row]) -> dict[str, float]:
    """MMBench's circular accuracy: the share of questions whose rows, with turned options, are all right.

    Needs the metadata `index`.
    """
    circles: dict[int, list[float]] = defaultdict(list)
    for prediction, given, row in zip(predictions, answers, rows, strict=True):
        circles[int(_needed(row, "index", "mmbench")) % _CIRCLE] += mmbench_accuracy(prediction, given, row).values()
    return {"mmbench_circular": _mean(min(right) for right in circles.values())}


def mmstar(predictions: Sequence[str], answers: Sequence[Sequence[str]], rows: Sequence[Row]) -> dict[str, float]:
    """MMStar's average: the mean over `l2_category` (metadata) of the accuracy within each."""
    found: dict[str, list[float]] = defaultdict(list)
    for prediction, given, row in zip(predictions, answers, rows, strict=True):
        found[str(_needed(row, "l2_category", "mmstar"))] += mmstar_accuracy(prediction, given).values()
    return {"mmstar_average": _mean(_mean(right) for right in found.values())}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _is_letter(answer: str) -> bool:
    return len(answer) == 1 and answer in "ABCD"


def _box(answers: Sequence[str]) -> boxes.Box:
    try:
        left, top, right, bottom = map(float, json.loads(answers[0]))
    except (ValueError, TypeError, IndexError):
        raise ValueError(f"the answer {answers[:1]} is no box [left, top, right, bottom]") from None
    return left, top, right, bottom


def _needed(row: Row, column: str, metric: str) -> Any:
    if column not in row.metadata:
        raise UserError(f"The metric {metric} needs the column {column}: name it in dataset.metadata or dataset.kept.")
    return row.metadata[column]
