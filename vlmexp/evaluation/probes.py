"""What is asked beside the questions: some of them one by one, and some about images that are not theirs."""

from __future__ import annotations

import dataclasses
import logging
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlmexp.collator.lengths import token_lengths
from vlmexp.data.example import Example
from vlmexp.evaluation.answers import Asker, cut_answers
from vlmexp.evaluation.blind import with_blank_images, with_other_images
from vlmexp.evaluation.row import row_of
from vlmexp.evaluation.score import summarise

ALONE, BLIND = "answers_alone", "blind_answers"  # what their files are called while they come
log = logging.getLogger("vlmexp")


def batch_invariance(
    asker: Asker, examples: Sequence[Example], lengths: Sequence[int], predictions: Sequence[str]
) -> dict[str, Any]:
    """Ask some questions one by one and see whether their batch has changed the answers.

    In 16-bit floats it may: two tokens that are all but equally likely can change places with the order of a sum.
    """
    count = min(asker.config.evaluation.invariance_examples, len(examples))
    sample = sorted(random.Random(asker.config.seed).sample(range(len(examples)), count))
    chosen = [examples[index] for index in sample]
    alone = asker.ask(ALONE, chosen, [lengths[index] for index in sample], "ask some one by one", one_by_one=True)
    differences = [
        {"id": example.id, "alone": answer["prediction"], "in_batch": predictions[index]}
        for index, example, answer in zip(sample, chosen, alone, strict=True)
        if answer["prediction"] != predictions[index]
    ]
    if differences:
        first = differences[0]
        log.warning(
            f"{len(differences)} of {count} answers are other ones when asked alone (example {first['id']}: "
            f"{first['alone']!r} alone, {first['in_batch']!r} in its batch); see batch_invariance in the evaluation."
        )
    return {"n": count, "different": len(differences), "differences": differences}


def evaluate_blind(
    asker: Asker, examples: Sequence[Example], metrics: Sequence[str], shown: Callable[[Path], object]
) -> dict[str, Any] | None:
    """Score a random sample of the examples with images that are not theirs; None if there are no such images.

    Args:
        shown: what a file shows: equal for files that show the same.
    """
    config = asker.config
    evaluation = config.evaluation
    count = min(evaluation.blind_examples, len(examples))
    sample = [examples[index] for index in sorted(random.Random(config.seed).sample(range(len(examples)), count))]
    with tempfile.TemporaryDirectory() as folder:
        blinded = (
            with_other_images(sample, config.seed, shown)
            if evaluation.blind == "shuffle"
            else with_blank_images(sample, Path(folder))
        )
        pairs = [(new, old) for new, old in zip(blinded, sample, strict=True) if new != old]
        blinded = [dataclasses.replace(new, boxes=()) for new, _ in pairs]  # which are in another picture
        if len(blinded) < count:
            asker.run.note_fallback(
                f"evaluation.blind={evaluation.blind}: {count - len(blinded)} of {count} questions have no other "
                "images to be shown, and do not count there."
            )
        if not blinded:
            return None
        lengths = token_lengths(asker.collator, blinded, with_answer=False)
        answers = asker.ask(BLIND, blinded, lengths, f"evaluate with {evaluation.blind} images")
    _, summary = summarise(
        [answer["prediction"] for answer in answers],
        [
            dataclasses.replace(row_of(new, evaluation.reasoning_tags, asker.collator.view(old)), boxes=old.boxes)
            for new, old in pairs
        ],
        metrics,
        config.dataset.metadata,
    )
    return {"images": evaluation.blind, **summary, **({} if asker.choices else {"cut": cut_answers(answers)})}
