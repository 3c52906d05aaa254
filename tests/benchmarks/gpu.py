"""What only a GPU shows, in at most 8 minutes and without a network; written into README.md of this folder.

    python -m tests.benchmarks.gpu [--wheels DIR] [--seconds 480]
    python -m tests.benchmarks.gpu --device cpu --tiny      # the same lines on a CPU, to try them; writes nothing

First the tests in `tests/gpu`, then models of random weights at published sizes, trained through the command line and
by TRL on data as VQA v2's. `--wheels DIR` installs what the machine lacks from that folder alone.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.benchmarks.processes import ENVIRONMENTS, ROOT

FURTHER = ("pytest", "bitsandbytes")  # of the tests


def install(wheels: Path) -> None:
    """Install what is not there of this project's needs; what cannot be had from the folder is named and left out."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--find-links", str(wheels)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [*project["dependencies"], ENVIRONMENTS["trl"], *FURTHER]
    if subprocess.run([*command, *needs], capture_output=True, check=False).returncode:
        for needed in needs:
            if subprocess.run([*command, needed], capture_output=True, check=False).returncode:
                print(f"{re.split('[<>=;]', needed)[0]} is not there and not in {wheels}", flush=True)
    importlib.invalidate_caches()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--wheels", type=Path, help="a folder to install from")
    parser.add_argument("--seconds", type=int, default=480, help="after which nothing more is begun (480)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="two layers of each model, and few rows")
    parser.add_argument("--models", nargs="+", default=["qwen2vl_2b", "llava15_7b"])
    given = parser.parse_args()
    if given.wheels:
        install(given.wheels)
    measured = importlib.import_module("tests.benchmarks.gpu_trainings")  # which needs what has just been installed
    found, device = measured.measure(given.models, given.device, given.tiny, given.seconds, given.wheels)
    print(found)
    if device is not None:
        page = importlib.import_module("tests.benchmarks.page")
        page.put("gpu", "On a GPU", found, page.circumstances(1, device))


if __name__ == "__main__":
    main()
