"""Compare all published checkpoints with their documented inference code: `python -m tests.published [NAME ...]`.

It prints a line for each folder of `../shared/real`: how many examples were compared, of how many tokens, and in how
many of them the prompt, the labels or the length that is known without pixels differ.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.published.checkpoints import built, missing, published_folders, readable
from tests.published.checks import Published, compared

if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    wrong = 0
    print(f"{'':20} {'examples':>8} {'tokens':>8} {'prompt':>8} {'labels':>8} {'length':>8}")
    with tempfile.TemporaryDirectory() as temporary:
        for name in sys.argv[1:] or published_folders():
            folder = readable(built() / name, Path(temporary, name))
            result = compared(Published(name, folder), Path(temporary))
            counts = [len(found) for found in result.differences.values()]
            print(f"{name:20} {result.examples:8} {result.tokens:8,}", *(f"{count:8}" for count in counts), flush=True)
            print(*(line for found in result.differences.values() for line in found), sep="\n", end="", file=sys.stderr)
            wrong += sum(counts)
    sys.exit(f"{wrong} differences" if wrong else 0)
