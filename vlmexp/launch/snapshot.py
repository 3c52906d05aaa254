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
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import vlmexp
from vlmexp.confidential import redacted
from vlmexp.files import new_folder, write_json
from vlmexp.provenance import GIT_STATE, git_state

PACKAGE = Path(vlmexp.__file__).parent
_CACHE = "__pycache__"
_IGNORED = shutil.ignore_patterns(_CACHE, "*.pyc", ".env*")


def take_snapshot(folder: Path, config_dir: Path, search_path: Sequence[Path] = ()) -> Path:
    """Copy the package, its Hydra plugins and the config folders to `folder/<digest>`, unless they are there already.

    What git says of the checkout is written beside them, for the runs to record. Secrets in YAML files are left out.

    Returns:
        the copy: the folder to put on PYTHONPATH, with `searchpath-0`, ... for the folders of `search_path`.
    """
    plugins = [Path("hydra_plugins", name) for name in ("vlmexp_launcher", "vlmexp_sweeper")]
    sources = {Path("vlmexp"): PACKAGE, **{plugin: PACKAGE.parent / plugin for plugin in plugins}}
    if not config_dir.is_relative_to(PACKAGE):
        sources[Path("conf")] = config_dir
    built = folder / f".{os.getpid()}"
    with new_folder(built) as temporary:
        for name, source in sources.items():
            shutil.copytree(source, temporary / name, ignore=_IGNORED)
        if (state := git_state()) is not None:
            write_json(temporary / GIT_STATE, state)
        for number, source in enumerate(
            search_path
        ):  # perhaps a whole repository, of which only the YAML files are ours
            (temporary / f"searchpath-{number}").mkdir()
            for path in _yaml_files(source):
                copy = temporary / f"searchpath-{number}" / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
        _redact(temporary)
    target = folder / contents(built)[:12]
    if target.is_dir() and contents(target) == contents(built):
        shutil.rmtree(built)
    else:  # what else bears this name is none of ours
        shutil.rmtree(target, ignore_errors=True)
        built.replace(target)
    return target


def is_copy(folder: Path, config_dir: Path) -> bool:
    """Whether a folder is a copy of the code and the config that are here, whatever its search path and git's word."""
    beside = {GIT_STATE, *(path.name for path in folder.glob("searchpath-*") if path.is_dir())}
    with tempfile.TemporaryDirectory() as own:
        return contents(folder, beside) == contents(take_snapshot(Path(own), config_dir), beside)


def contents(folder: Path, ignored: Collection[str] = ()) -> str:
    """SHA-256 of all files of a copy but those that Python keeps for itself, which `forget_caches` removes.

    Args:
        ignored: names in the folder itself that do not count.
    """
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and _CACHE not in name.parts and name.parts[0] not in ignored:
            total.update(str(name).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def forget_caches(snapshot: Path) -> None:
    """Remove what Python has compiled in a copy: it would be run in the place of the files that `contents` counts."""
    for path in snapshot.rglob(_CACHE):
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)


def python_environment(snapshot: Path) -> dict[str, str]:
    """Environment variables under which Python imports the copy, and else what it would import here."""
    # Python would put the working directory, which may be the checkout, before everything else.
    # Of somebody else's sweep, in whose directory one may be, no module is a user's own.
    here = [] if Path.cwd().is_relative_to(snapshot.parents[1].resolve()) else [str(Path.cwd())]
    path = [str(snapshot), *os.environ.get("PYTHONPATH", "").split(os.pathsep), *here]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, path)))}


def shell_lines(environment: dict[str, str]) -> list[str]:
    """The same as lines of a shell script."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.yaml") if path.is_file())


def _redact(folder: Path) -> None:
    """Take secrets out of the YAML files, those too that the sweep does not use."""
    for path in _yaml_files(folder):
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        if (without := redacted(text)) != text:
            path.write_text(without, encoding="utf-8", errors="surrogateescape")
