"""Files that somebody names to ask about: one, several for one question, or a folder of them."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vlmexp.data.conversation import read_conversation
from vlmexp.data.example import MEDIA_ROLES, Example
from vlmexp.data.image_files import FORMATS, MediaError
from vlmexp.data.images import image_size
from vlmexp.data.turns import Turn
from vlmexp.data.verify import verify
from vlmexp.data.videos import VideoOptions, video_header
from vlmexp.errors import UserError

VIDEO_ENDINGS = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".ogv", ".wmv", ".gif",
)  # fmt: skip
_SHOWN = 3  # names of files that are left out


@dataclass(frozen=True)
class Named:
    """What an option names: the files of each question, and those in the folder that are none of this kind."""

    files: Mapping[str, list[Path]]  # id of a question -> its files
    others: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[Path]:
        return list(dict.fromkeys(path for files in self.files.values() for path in files))


def named_files(kind: str, given: Any) -> Named:
    """The questions that are asked about what `image=` or `video=` names.

    Args:
        kind: image or video.
        given: a file; a list of files, all for one question; a folder or a pattern, each file of which has its own.

    Raises:
        UserError: there is no such file, or there are none in the folder.
    """
    values = given if isinstance(given, list) else [given]
    if not values:
        raise UserError(f"{kind}=[] names no file: write {kind}=FILE, {kind}=[A,B] or {kind}=FOLDER.")
    if unfit := [value for value in values if not isinstance(value, str)]:
        raise UserError(f"{kind}={given}: {unfit[0]!r} is no text; write the name of a file in quotes.")
    if isinstance(given, str) and (found := _several(kind, given)) is not None:
        return found
    return Named({", ".join(values): [_file(kind, value, len(values)) for value in values]})


def endings(kind: str) -> tuple[str, ...]:
    """The endings of files of a kind, by which those in a folder are found."""
    if kind == "video":
        return VIDEO_ENDINGS
    return tuple(sorted(ending for ending, name in Image.registered_extensions().items() if name in FORMATS))


def check_header(kind: str, path: Path, library: str) -> None:
    """Raise a UserError if the file does not begin as an image or a video does."""
    try:
        if kind == "video":
            video_header(path, VideoOptions(library=library))
        else:
            image_size(path)
    except MediaError as error:
        raise UserError(f"{error} Name another file.") from None


def damaged(kind: str, paths: Sequence[Path], library: str) -> tuple[dict[Path, str], str]:
    """What is wrong with the files that cannot be decoded, and a hash of the content of all of them."""
    files = verify(dict.fromkeys(paths, kind), Path(), f"check {kind}s", library)
    content = hashlib.sha256("".join(str(file.sha256) for file in files.values()).encode()).hexdigest()
    return {path: str(file.error) for path, file in files.items() if file.error is not None}, content


def question_about(id: str, kind: str, files: Sequence[Path], question: str, in_conversation: bool) -> Example:
    """A question without an answer, as an example.

    Args:
        in_conversation: whether the prompt is a conversation of the example's own, which is this question alone.
    """
    turns: tuple[Turn, ...] = ()
    if in_conversation:
        said = [{"role": "user", "content": question}]
        turns = read_conversation(said, {kind: len(files)}, answered=False)[:-1]
    images, videos = (tuple(files) if kind == role else () for role in MEDIA_ROLES)
    return Example(id, {"question": question}, (), images=images, videos=videos, turns=turns)


def _several(kind: str, given: str) -> Named | None:
    """The files of a folder or of a pattern; None if it is neither."""
    path = local(given)
    if os.path.isdir(path):
        inside = sorted(entry for entry in Path(path).iterdir() if entry.is_file() and not entry.name.startswith("."))
    elif glob.has_magic(given) and not os.path.exists(path):
        inside = sorted(entry for name in glob.glob(path) if (entry := Path(name)).is_file())
    else:
        return None
    found = {str(entry): [entry.absolute()] for entry in inside if entry.suffix.lower() in endings(kind)}
    others = [entry.name for entry in inside if str(entry) not in found]
    if not found:
        holds = f"it holds {_listed(others)}" if others else "it holds no files (folders in it are not looked into)"
        raise UserError(f"{kind}={given} has no {kind} in it: {holds}. Name a folder with {kind}s, or a file.")
    return Named(found, others)


def left_out(kind: str, named: Named) -> str | None:
    """A sentence about the files of a folder that are not asked about."""
    if not named.others:
        return None
    count = len(named.others)
    files = "a file is no" if count == 1 else f"{count} files are no"
    return f"{files} {kind} by the ending and left out: {_listed(named.others)}."


def local(value: str) -> str:
    """A path as somebody types it or drags it here, as the system takes it."""
    return os.path.expanduser(value.removeprefix("file://"))  # not Path's own methods, which raise for odd names


def _file(kind: str, value: str, count: int) -> Path:
    path = local(value)
    if "://" in path:
        raise UserError(f"{kind}={value} is an address: download the file and name its path.")
    if os.path.isdir(path):
        raise UserError(f"{value} is a folder: name it alone, {kind}={value}, to ask about each {kind} in it.")
    if not os.path.isfile(path):
        several = f" Several {kind}s of one question are {kind}=[A,B]." if count == 1 and "," in value else ""
        raise UserError(f"{kind}={value}: there is no such file (looked at {os.path.abspath(path)}).{several}")
    return Path(path).absolute()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
