"""Questions one after another in the terminal, to a model that is loaded once."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from vlmexp.errors import UserError
from vlmexp.predict.media import VIDEO_ENDINGS, Named, check_header, local, named_files
from vlmexp.storage import StorageError

Answer = Callable[[str, Named, str], str]  # (image or video, files, question) -> what is printed


def converse(answer: Answer, library: str, has_question: bool) -> int:
    """Ask for an image or a video, then for a question, print the answer, and so on until an empty line or the end.

    What cannot be used, a mistyped path as well as what the model does not take, is said, and asked for again.

    Args:
        library: that reads videos.
        has_question: false: the prompt shows no question, so none is asked for.

    Returns:
        How many questions were answered.
    """
    count = 0
    print("An image or a video (several in a line: quote names with spaces), then a question. An empty line ends it.")
    while (found := _media(library)) is not None:
        question = _line("question: ") if has_question else ""
        if has_question and not question:
            break
        try:
            print(answer(*found, question))
            count += 1
        except StorageError:  # no answer would be kept
            raise
        except UserError as error:  # of this question alone
            print(error)
    return count


def _media(library: str) -> tuple[str, Named] | None:
    """What somebody names, once it can be read; None at the end."""
    while line := _line("image: "):
        try:
            return _named(line, library)
        except (UserError, OSError) as error:
            print(error)
    return None


def _named(line: str, library: str) -> tuple[str, Named]:
    paths = _paths(line)
    kind = "video" if all(Path(path).suffix.lower() in VIDEO_ENDINGS[:-1] for path in paths) else "image"
    if os.path.isdir(local(paths[0])):
        raise UserError(f"{paths[0]} is a folder: name an image in it. To ask about each, start with image=FOLDER.")
    named = named_files(kind, paths)
    for path in named.paths:
        check_header(kind, path, library)
    return kind, named


def _paths(line: str) -> list[str]:
    """The files in a line: all of it, as a name may hold spaces, or its words as a shell divides them."""
    if os.path.exists(local(line)):
        return [line]
    try:
        return shlex.split(line) or [line]
    except ValueError:  # a quote that is not closed
        return [line]


def _line(prompt: str) -> str:
    """What is typed, without white space around it; empty at the end of the input."""
    try:
        return input(prompt).strip()
    except EOFError:
        print()
        return ""
