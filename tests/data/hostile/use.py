"""What a run does with a file: it is prepared, and then read as a collator and a report read it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vlmexp.data import verify
from vlmexp.data.images import ImageOptions, MediaError, image_size, load_image, small_image
from vlmexp.data.prepare import prepare
from vlmexp.data.videos import VideoOptions, load_video, video_header
from vlmexp.files import read_jsonl


def prepared(folder: Path, table: Path, role: str | None = None, library: str = "auto") -> str:
    """How many rows of a table are kept, and why the first of the others is not."""
    columns = {"question": "question", "answer": "answer"} | ({role: "file"} if role else {})
    made = prepare(
        folder / "prepared", "hostile", "1", "files", {"train": str(table)}, {"train": "train"}, 0.0, 0.0, 0, columns,
        on_bad_sample="skip", max_bad_share=1.0, video_library=library,
    )  # fmt: skip
    bad = read_jsonl(made.folder / "bad.jsonl")
    return f"{made.manifest['counts']['train']} kept" + (f", bad: {bad[0]['error']}" if bad else "")


def room(path: Path) -> Path:
    """The folder of a file, or the nearest one that there is above a place where there can be none."""
    return Path(next(folder for folder in map(str, path.parents) if os.path.isdir(folder)))


def in_table(path: Path) -> Path:
    """A table with a row about the file, and one about nothing."""
    rows = [{"question": "q", "answer": "a"}, {"question": "q", "answer": "a", "file": str(path)}]
    table = room(path) / "train.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def use_image(path: Path) -> str:
    said = prepared(room(path), in_table(path), "image")
    for read in (image_size, load_image, lambda p: small_image(p, 512), lambda p: load_image(p, ImageOptions(False))):
        try:
            read(path)
        except MediaError:
            assert "bad: " in said
    return said


def use_at_once(path: Path, role: str, threads: int = 16) -> str:
    """A file under many names, all read at once."""
    verify.WORKERS = threads
    names = [path.with_name(f"{number}{path.suffix}") for number in range(threads)]
    for name in names:
        name.symlink_to(path)
    rows = [{"question": "q", "answer": "a", "file": str(name)} for name in names]
    (path.parent / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepared(path.parent, path.parent / "train.jsonl", role)


def use_video(path: Path, library: str) -> str:
    said = prepared(room(path), in_table(path), "video", library)
    for options in (VideoOptions(library), VideoOptions(library, sampling_strategy="fps", fps=2.0)):
        try:
            video_header(path, options)
            load_video(path, options)
        except MediaError as error:
            said += f" / {str(error).replace(str(path), 'it')}"
    return said
