"""The command line, and a file of the examples that each optimizer step saw.

    python -m tests.benchmarks.recorded FILE stage=train ...

FILE gets a list of steps, each a list of ids, in the order in which the collator got them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vlmexp.__main__ import main
from vlmexp.training.divergence import StepWatch


def record(path: Path) -> None:
    """Write to `path`, at each step, the ids of the examples of all steps so far."""
    steps: list[list[str]] = []
    begin = StepWatch.begin

    def begin_and_record(watch: StepWatch, ids: list[list[str]]) -> Any:
        steps.append([name for batch in ids for name in batch])
        path.write_text(json.dumps(steps))
        return begin(watch, ids)

    StepWatch.begin = begin_and_record  # type: ignore[method-assign]


if __name__ == "__main__":
    record(Path(sys.argv.pop(1)))
    main()
