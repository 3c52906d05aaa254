"""Ways of doing one thing, each in a process of its own, which take turns: what they take, and tables of it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ROOT = Path(__file__).parent.parent.parent
ENVIRONMENTS = {  # of others' packages, each apart from ours, which it sees where it needs no other version
    "trl": "trl==1.16.0",
    "llamafactory": "llamafactory==0.9.5",
}


class Unavailable(Exception):
    """A way that cannot be gone here; the text says why."""


@dataclass(frozen=True)
class Spent:
    """What a process took, and what it printed."""

    wall_s: float
    cpu_s: float  # on all threads, of its own processes too
    peak_mib: float
    output: str
    seen_s: float = 0.0  # from the start until a file was there


def spent(
    command: Sequence[str | Path],
    folder: Path,
    variables: Mapping[str, str] | None = None,
    threads: int = 1,
    watched: Path | None = None,
) -> Spent:
    """Run a command in a folder to its end.

    Args:
        watched: the file whose appearance is timed.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    log = folder / "log.txt"
    start = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(part) for part in command], cwd=folder, stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | settings | dict(variables or {}),
        )  # fmt: skip
        seen_s = appeared(watched, process.pid, start) if watched else 0.0
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall_s, output = time.perf_counter() - start, log.read_text(errors="replace")
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{output[-3000:]}")
    return Spent(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, output, seen_s)


def appeared(path: Path, process: int, start: float) -> float:
    """Seconds from `start` until there is something in a file; until the process ends, if there never is."""
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if path.exists() and path.stat().st_size:
            break
        time.sleep(0.02)
    return time.perf_counter() - start


def interpreter(name: str, wheels: Path | None = None) -> Path:
    """The Python of an environment with others' packages, which is made in the user's cache unless it is there.

    Args:
        wheels: take packages from this folder and from nowhere else.

    Raises:
        Unavailable: it cannot be installed here.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder, package = cache / "vlmexp-benchmarks" / name, ENVIRONMENTS[name]
    python, done = folder / "bin" / "python", folder / package
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (next(folder.glob("lib/python*/site-packages")) / "shared.pth").write_text("\n".join(shared) + "\n")
        source = ["--no-index", "--find-links", str(wheels)] if wheels else []
        command = [python, "-m", "pip", "install", "-qq", *source, package]
        installed = subprocess.run(command, capture_output=True, text=True, check=False)
        if installed.returncode:
            last = (installed.stderr.strip() or "pip failed").splitlines()[-1]
            raise Unavailable(f"{package} did not install: {last}")
        done.touch()
    return python


def in_turns(ways: Mapping[str, Callable[[int], T]], rounds: int) -> dict[str, list[T] | str]:
    """What each way gives in each round, which it is told; why it gives nothing, where it cannot be gone.

    A noisy machine is as noisy to each.
    """
    found: dict[str, list[T] | str] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            results = found[name]
            if isinstance(results, str):
                continue
            print(f"  round {number + 1} of {rounds}: {name}", flush=True)
            try:
                results.append(way(number))
            except Unavailable as error:
                found[name] = str(error)
    return found


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, and the least and the greatest where there are several."""
    middle = f"{statistics.median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; numbers stand on the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
