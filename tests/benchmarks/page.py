"""README.md of this folder: what each part found, with the day and the machine, between marks of its own."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.processes import ENVIRONMENTS, ROOT

PAGE = Path(__file__).with_name("README.md")
PACKAGES = ("torch", "transformers", "peft", "accelerate")


def put(name: str, title: str, found: str, about: str, page: Path = PAGE) -> None:
    """Write what a part found in the place of what it found before.

    Raises:
        ValueError: the page has no such part.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    text = page.read_text(encoding="utf-8")
    block = f"{begin}## {title}\n\n{about}\n\n{found.strip()}\n{end}"
    changed, count = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _: block, text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{page} has {count} parts {begin.strip()}, and it needs one.")
    page.write_text(changed, encoding="utf-8")


def circumstances(rounds: int, device: str | None = None) -> str:
    """When, on what and with what something was measured."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    others = [package.replace("==", " ") for package in ENVIRONMENTS.values()]
    machine = device or f"{os.cpu_count()} cores of {processor()}, {memory_gib():.0f} GiB"
    times = "one round" if rounds == 1 else f"{rounds} rounds: medians (least to greatest)"
    python = f"Python {platform.python_version()}"
    with_what = ", ".join([python, *versions, *others])
    return f"{datetime.now(UTC):%Y-%m-%d} · {machine} · {with_what} · {commit()} · {times}"


def processor() -> str:
    """The name of the CPU."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return " ".join(found[1].split()) if found else platform.processor() or platform.machine()


def memory_gib() -> float:
    """The memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def commit() -> str:
    """The commit that is measured, and whether the tree differs from it."""
    asked = ["git", "describe", "--always", "--dirty=+changes", "--exclude=*"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else "no commit"
