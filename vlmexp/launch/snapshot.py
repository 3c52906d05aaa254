"""A copy of the code and the config that a sweep was submitted with: what is edited later changes no queued job.

The code is the package's. A user's own modules, named by dotted paths, are imported from where they lie when a job
starts: they may read files that lie beside them.

A copy and no git worktree, as the package may come from a wheel, and as changes that are not committed count too.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import vlmexp
from vlmexp.files import digest, new_folder, write_json
from vlmexp.provenance import GIT_STATE, git_state

PACKAGE = Path(vlmexp.__file__).parent
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def take_snapshot(folder: Path, config_dir: Path, search_path: Sequence[Path] = ()) -> Path:
    """Copy the package, its Hydra plugins and the config folders to `folder/<digest>`, unless they are there already.

    What git says of the checkout is written beside them, for the runs to record.

    Returns:
        the copy: the folder to put on PYTHONPATH, with `searchpath-0`, ... for the folders of `search_path`.
    """
    plugins = [Path("hydra_plugins", name) for name in ("vlmexp_launcher", "vlmexp_sweeper")]
    sources = {Path("vlmexp"): PACKAGE, **{plugin: PACKAGE.parent / plugin for plugin in plugins}}
    if not config_dir.is_relative_to(PACKAGE):
        sources[Path("conf")] = config_dir
    searched = {Path(f"searchpath-{number}"): path for number, path in enumerate(search_path)}
    state = git_state()
    target = folder / _digest([*sources.values()], [*searched.values()], state)
    if not target.exists():
        with new_folder(target) as temporary:
            for name, source in sources.items():
                shutil.copytree(source, temporary / name, ignore=_IGNORED)
            if state is not None:
                write_json(temporary / GIT_STATE, state)
            for name, source in searched.items():  # perhaps a whole repository, of which only the YAML files are ours
                (temporary / name).mkdir()
                for path in _yaml_files(source):
                    copy = temporary / name / path.relative_to(source)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path, copy)
    return target


def python_environment(snapshot: Path) -> dict[str, str]:
    """Environment variables under which Python imports the copy, and else what it would import here."""
    # Python would put the working directory, which may be the checkout, before everything else.
    path = [str(snapshot), *os.environ.get("PYTHONPATH", "").split(os.pathsep), str(Path.cwd())]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, path)))}


def shell_lines(environment: dict[str, str]) -> list[str]:
    """The same as lines of a shell script."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.yaml") if path.is_file())


def _digest(whole: Iterable[Path], searched: Iterable[Path], state: Mapping[str, Any] | None) -> str:
    total = hashlib.sha256(digest(state).encode())
    files = [(folder, path) for folder in whole for path in sorted(folder.rglob("*"))]
    files += [(folder, path) for folder in searched for path in _yaml_files(folder)]
    for folder, path in files:
        if path.is_file() and path.suffix != ".pyc":
            total.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]
