"""The space that a search looks through: from Hydra's overrides to optuna's distributions, and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString, Transformer
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from vlmexp.errors import UserError

_DIGITS = 6  # of a number from an interval


@dataclass(frozen=True)
class Space:
    """What all points have in common, and between which values they differ.

    Attributes:
        fixed: overrides of every point.
        dimensions: option -> its values; those of a choice are texts, as they stand on the command line.
    """

    fixed: list[str]
    dimensions: dict[str, BaseDistribution]

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """The overrides of a point: option -> value as optuna has it."""
        return [*self.fixed, *(f"{option}={_text(params[option], d)}" for option, d in self.dimensions.items())]

    def params(self, overrides: Sequence[str]) -> dict[str, Any] | None:
        """The values of a point with these overrides; None if it is no point of this space."""
        given = dict(text.split("=", 1) for text in overrides if text not in self.fixed)
        if given.keys() != self.dimensions.keys() or not set(self.fixed) <= set(overrides):
            return None
        values = {option: _value(given[option], d) for option, d in self.dimensions.items()}
        return values if all(_holds(d, values[option]) for option, d in self.dimensions.items()) else None

    def probes(self) -> Iterator[list[str]]:
        """Overrides that show whether all values are possible, each beside the first values of the others.

        These are every choice, and of an interval both ends and, as they may be whole numbers, a value between them.
        """
        first = {option: _probed(d)[0] for option, d in self.dimensions.items()}
        yield self.overrides(first)
        for option, distribution in self.dimensions.items():
            for value in _probed(distribution)[1:]:
                yield self.overrides(first | {option: value})

    def grid(self) -> Iterator[list[str]]:
        """The overrides of all points; none if an option may have any value of an interval."""
        for values in itertools.product(*(_all(d) for d in self.dimensions.values())):
            yield self.overrides(dict(zip(self.dimensions, values, strict=True)))


def read_space(overrides: Sequence[Override]) -> Space:
    """Take overrides apart: those with several values (a list, choice, range or interval) are searched.

    Of an option that is given twice the latter counts.

    Raises:
        UserError: nothing is to be searched, or an interval is none.
    """
    fixed: dict[str, str] = {}
    dimensions: dict[str, BaseDistribution] = {}
    for override in overrides:
        option = override.get_key_element()
        fixed.pop(option, None)
        dimensions.pop(option, None)
        if override.is_sweep_override():
            dimensions[option] = _distribution(override)
        else:
            fixed[option] = f"{option}={override.get_value_element_as_str()}"
    if not dimensions:
        raise UserError(
            "hydra/sweeper=optuna: no option has several values; write 'peft.r=choice(8,16)' or "
            "'train.learning_rate=tag(log,interval(1e-5,1e-3))'."
        )
    return Space(list(fixed.values()), dimensions)


def _distribution(override: Override) -> BaseDistribution:
    if override.is_choice_sweep():
        choices = list(dict.fromkeys(map(_choice, override.sweep_iterator())))
        if not choices:
            raise UserError(f"{override.input_line} fits no file of a group; name the values with choice(A,B).")
        return CategoricalDistribution(choices)
    if override.is_range_sweep():
        values = sorted(override.sweep_iterator())  # type: ignore[type-var]
        if not values:
            raise UserError(f"{override.input_line}: the range is empty.")
        step: Any = values[1] - values[0] if len(values) > 1 else 1  # type: ignore[operator]
        if all(isinstance(value, int) for value in values):
            return IntDistribution(values[0], values[-1], step=step)  # type: ignore[arg-type]
        return FloatDistribution(values[0], values[-1], step=step)  # type: ignore[arg-type]
    interval = override.value()
    assert isinstance(interval, IntervalSweep)
    low, high, is_log = interval.start, interval.end, "log" in interval.tags
    if other := interval.tags - {"log"}:
        raise UserError(f"{override.input_line}: an interval can be tagged log, and not {', '.join(sorted(other))}.")
    if low is None or high is None or not low < high or (is_log and low <= 0):
        least = "0 < A < B for a logarithmic one" if is_log else "A < B"
        raise UserError(f"{override.input_line}: interval(A,B) needs {least}.")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=is_log)
    return FloatDistribution(low, high, log=is_log)


def _choice(value: Any) -> str:
    """A value as it stands on the command line. Hydra has taken the quotes off a text in choice(); some need them."""
    text = Transformer.str(value)
    if isinstance(value, str) and _read(text) != value:
        return QuotedString(value, Quote.single).with_quotes()
    return text


def _read(text: str) -> Any:
    """What Hydra reads; None if it cannot."""
    try:
        return OverridesParser.create().parse_override(f"x={text}").value()
    except HydraException:
        return None


def _probed(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    between = [] if distribution.step else [distribution.low + (distribution.high - distribution.low) * 11 / 30]
    return list(dict.fromkeys([distribution.low, distribution.high, *between]))


def _all(distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if distribution.step is None:
        return []
    steps = round((distribution.high - distribution.low) / distribution.step)
    return [distribution.low + number * distribution.step for number in range(steps + 1)]


def _text(value: Any, distribution: BaseDistribution) -> str:
    if not isinstance(distribution, FloatDistribution):
        return str(value)
    text = f"{value:.{_DIGITS}g}"
    return text if distribution.low <= float(text) <= distribution.high else repr(float(value))


def _value(text: str, distribution: BaseDistribution) -> Any:
    """What _text made a text of; NaN if it is no number where one is needed."""
    if isinstance(distribution, CategoricalDistribution):
        return text
    try:
        return int(text) if isinstance(distribution, IntDistribution) else float(text)
    except ValueError:
        return math.nan


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if not distribution.low <= value <= distribution.high:
        return False
    steps = (value - distribution.low) / distribution.step if distribution.step else 0.0
    return abs(steps - round(steps)) < 1e-6
