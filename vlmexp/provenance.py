"""What made a run: code, packages, machine. No environment variable's value and no secret is recorded."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from vlmexp import programs
from vlmexp.confidential import redacted
from vlmexp.files import read_json

GIT_STATE = "git.json"  # beside a copy of the code: the state of the checkout that it was made from
PACKAGES = (
    "vlmexp", "torch", "torchvision", "transformers", "peft", "accelerate", "datasets", "evaluate", "hydra-core",
    "omegaconf", "submitit", "wandb", "pillow", "decord", "numpy", "tokenizers", "safetensors", "sacrebleu",
    "rouge-score",
)  # fmt: skip
_DIFF_LIMIT = 1_000_000  # characters
_QUIET = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")  # git starts no program of a repository's


def package_versions() -> dict[str, str]:
    """Installed version of every package that a result depends on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """The machine as the operating system tells it; which device a model computed on stands with the model."""
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


def record_git(directory: Path) -> dict[str, Any] | None:
    """Commit of the checkout that the code is of (None outside one); an uncommitted diff goes to `git.diff`."""
    state = git_state()
    if state is None:
        return None
    if diff := state["diff"]:
        (directory / "git.diff").write_text(diff, encoding="utf-8")
    return {"sha": state["sha"], "dirty": bool(diff)}


def git_state(root: Path = Path(__file__).parent.parent) -> dict[str, Any] | None:
    """`sha` and uncommitted `diff` of the checkout in a folder, or of that of which the folder holds a copy."""
    if (root / GIT_STATE).exists():
        state: dict[str, Any] = read_json(root / GIT_STATE)
        return state
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        try:
            command = [programs.program("git"), "-C", str(root), *_QUIET, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
        except OSError:  # no git on this machine
            return ""
        return done.stdout if done.returncode == 0 else ""

    # Not another repository, and no program of its, that variables of a hook or of the run would name.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    diff = git("diff", "--no-ext-diff", "--no-textconv", "HEAD", "--", ".", ":(exclude).env*")
    return {"sha": git("rev-parse", "HEAD").strip() or None, "diff": redacted(diff[:_DIFF_LIMIT])}
