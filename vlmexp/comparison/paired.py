"""Two runs on the same examples: what one answers better, what worse, and whether that is more than luck."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmexp.comparison.rows import is_number
from vlmexp.comparison.sheets import Sheet
from vlmexp.comparison.significance import sign_test
from vlmexp.errors import UserError, closest
from vlmexp.evaluation.intervals import numbered, resampled_mean
from vlmexp.files import read_jsonl
from vlmexp.report import is_share

RESAMPLES = 10_000
_EQUAL = 1e-9  # up to which two sums of scores are the same

Prediction = Mapping[str, Any]  # a line of *_predictions.jsonl


@dataclass(frozen=True)
class Pairing:
    """Two runs' scores on the examples that both answered.

    Attributes:
        media: how many different media the examples are about; those about the same are not independent.
        gains: examples on which the second run scores higher; losses: lower; ties: the same.
        p: of the exact sign test, which for scores of 0 and 1 is McNemar's; where media are shared, a medium on whose
            examples the second run scores higher altogether is one gain, and one on which it scores lower one loss.
        low, high: the 95 % bootstrap interval of the difference of the means, second minus first; media are drawn.
        flipped: the examples behind gains and losses, as pairs of predictions, gains first.
        alone: examples that only one of the two has.
        unlike: examples of the same id whose question or answers differ; they are left out.
    """

    metric: str
    n: int
    media: int
    first: float
    second: float
    gains: int
    losses: int
    p: float
    low: float
    high: float
    flipped: Sequence[tuple[Prediction, Prediction]]
    alone: int
    unlike: int

    @property
    def ties(self) -> int:
        return self.n - self.gains - self.losses

    @property
    def difference(self) -> float:
        return self.second - self.first


def read_predictions(path: Path) -> dict[str, Prediction]:
    """Example id -> its line in a *_predictions.jsonl.

    Raises:
        UserError: the file is not there or holds something else.
    """
    if not path.is_file():
        raise UserError(f"There is no {path}: evaluate that run first (stage=eval_base or stage=eval_finetuned).")
    try:
        return {str(row["id"]): _prediction(row) for row in read_jsonl(path, growing=False)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as predictions: {error!r}.") from None


def pair(first: Mapping[str, Prediction], second: Mapping[str, Prediction], metric: str, seed: int = 0) -> Pairing:
    """Match two evaluations by example id and compare them.

    Raises:
        UserError: they share no example, or one of them lacks the metric.
    """
    common = [name for name in first if name in second]
    matched = [name for name in common if _asked(first[name]) == _asked(second[name])]
    if not matched:
        what = "the same ids but other questions" if common else "no example in common"
        raise UserError(f"The two runs have {what}: they were evaluated on different data or samples.")
    for prediction in (predictions[name] for predictions in (first, second) for name in matched):
        if metric not in (known := prediction.get("scores", {})):
            raise UserError(
                f"compare.metric={metric} has no value for single examples{closest(metric, known) or '.'} "
                f"These have one: {', '.join(sorted(known)) or 'none'}."
            )
    pairs = [(first[name], second[name]) for name in matched]
    before = [float(a["scores"][metric]) for a, _ in pairs]
    after = [float(b["scores"][metric]) for _, b in pairs]
    steps = [b - a for a, b in zip(before, after, strict=True)]
    better = [index for index, step in enumerate(steps) if step > 0]
    worse = [index for index, step in enumerate(steps) if step < 0]
    about = numbered([_media(a) for a, _ in pairs])
    of_media = [math.fsum(found) for found in _grouped(steps, about)]
    low, high = resampled_mean(steps, about, RESAMPLES, seed)
    return Pairing(
        metric=metric,
        n=len(pairs),
        media=len(of_media),
        first=math.fsum(before) / len(pairs),
        second=math.fsum(after) / len(pairs),
        gains=len(better),
        losses=len(worse),
        p=sign_test(sum(step > _EQUAL for step in of_media), sum(step < -_EQUAL for step in of_media)),
        low=low,
        high=high,
        flipped=[pairs[index] for index in [*better, *worse]],
        alone=len(first) + len(second) - 2 * len(common),
        unlike=len(common) - len(matched),
    )


def _prediction(row: Any) -> Prediction:
    """The line itself, if its parts are what they are taken for."""
    for name, kind in (("scores", dict), ("answers", list), ("images", list)):
        if not isinstance(row.get(name, kind()), kind):
            raise ValueError(f"{row['id']}: {name}")
    if not all(map(is_number, row.get("scores", {}).values())):
        raise ValueError(f"{row['id']}: scores")
    return row  # type: ignore[no-any-return]


def _media(prediction: Prediction) -> object:
    """What a question is about; None if it is about no media."""
    shown = [tuple(map(str, prediction.get(kind) or ())) for kind in ("images", "videos")]
    return tuple(shown) if any(shown) else None


def _grouped(steps: Sequence[float], about: Sequence[int]) -> list[list[float]]:
    groups: dict[int, list[float]] = {}
    for step, number in zip(steps, about, strict=True):
        groups.setdefault(number, []).append(step)
    return list(groups.values())


def _asked(prediction: Prediction) -> tuple[Any, Any]:
    return prediction.get("question"), prediction.get("answers")


def paired_sheet(pairing: Pairing, names: tuple[str, str], limit: int) -> Sheet:
    """The numbers as summary, and up to `limit` of the gains and as many of the losses as rows."""
    first, second = names
    gains, losses = pairing.flipped[: pairing.gains], pairing.flipped[pairing.gains :]
    notes = []
    if pairing.alone:
        notes.append(f"{pairing.alone:,} examples are in one of the two only and do not count.")
    if pairing.unlike:
        notes.append(f"{pairing.unlike:,} examples share an id but not question and answers, and do not count.")
    for what, found in (("gains", gains), ("losses", losses)):
        if len(found) > limit:
            notes.append(f"{limit} of {len(found):,} {what} are shown; compare.examples=N shows more.")
    return Sheet(
        title=f"{second} against {first}",
        rows=[
            {
                "flip": what,
                "id": str(a["id"]),
                "question": a.get("question", ""),
                "answers": ", ".join(dict.fromkeys(map(str, a.get("answers", [])))),
                "first": a.get("prediction"),
                "second": b.get("prediction"),
            }
            for what, found in (("gain", gains), ("loss", losses))
            for a, b in found[:limit]
        ],
        summary={
            "first run": first,
            "second run": second,
            "metric": pairing.metric,
            "examples": pairing.n,
            **({"media": pairing.media} if pairing.media < pairing.n else {}),
            "first": pairing.first,
            "second": pairing.second,
            "difference": pairing.difference,
            "95 % low": pairing.low,
            "95 % high": pairing.high,
            "gains": pairing.gains,
            "losses": pairing.losses,
            "ties": pairing.ties,
            f"p (exact sign test, {'McNemar' if pairing.media == pairing.n else 'media'})": pairing.p,
        },
        notes=notes,
    )


def verdict(pairing: Pairing) -> str:
    """The result in a sentence."""
    scale, unit = (100, " points") if is_share(pairing.metric, [pairing.first, pairing.second]) else (1, "")
    better, worse = f"{pairing.gains:,} gained", f"{pairing.losses:,} lost"
    interval = f"{scale * pairing.difference:+.2f}{unit} [{scale * pairing.low:+.2f}, {scale * pairing.high:+.2f}]"
    judged = "luck alone hardly explains it" if pairing.p < 0.05 else "luck alone could explain it"
    of = f" over {pairing.media:,} media" if pairing.media < pairing.n else ""
    return f"{interval}: {better}, {worse}, {pairing.ties:,} alike; p = {pairing.p:.3g}{of}, {judged}."
