"""Measures what this project costs beside what one would do otherwise, and writes it into README.md of this folder.

    python -m tests.benchmarks
    python -m tests.benchmarks --only training evaluation --rounds 5

README.md tells what the parts are.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from pathlib import Path

from tests.benchmarks.page import circumstances, put

PARTS = (
    "training", "vision_cache", "head", "step_memory", "evaluation", "startup", "preparation", "learning",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is gone (3)")
    parser.add_argument("--whole", action="store_true", help="prepare VQA v2's shape in full, too")
    given = parser.parse_args()
    for name in given.only:
        part = importlib.import_module(f"tests.benchmarks.{name}")
        print(f"{part.TITLE}, about {part.MINUTES} minutes", flush=True)
        more = {"whole": True} if given.whole and name == "preparation" else {}
        with tempfile.TemporaryDirectory(prefix="vlmexp-benchmark-") as folder:
            found = part.measure(Path(folder), given.rounds, **more)
        print(found, flush=True)
        put(name, part.TITLE, found, circumstances(given.rounds))


if __name__ == "__main__":
    main()
