"""VQA v2 in its official form: questions and annotations as JSON, COCO images by split.

Goyal et al. (https://arxiv.org/abs/1612.00837), https://visualqa.org/download.html. Below `root`:

    v2_OpenEnded_mscoco_train2014_questions.json   v2_mscoco_train2014_annotations.json   train2014/COCO_train2014_*.jpg
    v2_OpenEnded_mscoco_val2014_questions.json     v2_mscoco_val2014_annotations.json     val2014/COCO_val2014_*.jpg

443,757 questions about 82,783 images to train on and 214,354 about 40,504 to validate, with ten answers each. The
answers of the test split are not published: use the validation split as the test split, as most papers do. Its 447,793
questions about 81,434 images, and the 107,394 of them that are test-dev, are for stage=predict:

    v2_OpenEnded_mscoco_test2015_questions.json   v2_OpenEnded_mscoco_test-dev2015_questions.json
    test2015/COCO_test2015_*.jpg
"""

from __future__ import annotations

import functools
import io
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmexp.data.download import fetch_archive
from vlmexp.data.json_rows import listed
from vlmexp.data.regular_files import open_regular
from vlmexp.errors import UserError

SCRIPT = "HuggingFaceM4/VQAv2"  # the same data on the Hub, as a script that the datasets library runs no more
_NAMES = {"train": ("train2014", "Train"), "validation": ("val2014", "Val")}  # split -> COCO's name, the archives' name
_UNLABELLED = {"test": "test2015", "testdev": "test-dev2015"}  # split -> the name of its questions
_IMAGES = "test2015"  # of both


def vqav2(
    root: str,
    download: bool = True,
    questions_url: str = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa",
    images_url: str = "http://images.cocodataset.org/zips",
) -> dict[str, Iterable[dict[str, Any]]]:
    """VQA v2, rows with `image`, `question`, `answers` (ten), `answer_type`, `question_type` and ids.

    Args:
        root: folder with the official files; what is not there is downloaded into it, 20 GB in all.
        download: false: what is not there is an error.
        questions_url, images_url: where the official archives are.

    Raises:
        UserError: something is missing and is not, or cannot be, downloaded.
    """
    folder = Path(root).expanduser().resolve()

    def require(url: str, holds: str) -> None:
        if download:
            fetch_archive(url, folder, holds)
        elif not (folder / holds).exists():
            raise UserError(
                f"dataset.options.root={root} has no {holds}, and dataset.options.download is false: it is in {url}."
            )

    def unlabelled(name: str) -> Iterator[dict[str, Any]]:
        require(f"{questions_url}/v2_Questions_Test_mscoco.zip", _questions(name))
        require(f"{images_url}/{_IMAGES}.zip", _IMAGES)
        image = _images(folder, _IMAGES)
        for question in _entries(folder / _questions(name), "questions"):
            yield _row(question, {}, image)

    def rows(split: str) -> Iterator[dict[str, Any]]:
        coco, title = _NAMES[split]
        require(f"{questions_url}/v2_Questions_{title}_mscoco.zip", _questions(coco))
        require(f"{questions_url}/v2_Annotations_{title}_mscoco.zip", _annotations(coco))
        require(f"{images_url}/{coco}.zip", coco)
        path, image = folder / _questions(coco), _images(folder, coco)
        annotations = _Annotations(folder / _annotations(coco))
        for question in _entries(path, "questions"):
            annotation = annotations.of(_id(question))
            if annotation is None and not annotations.have_any(map(_id, _entries(path, "questions"))):
                raise UserError(
                    f"{folder / _annotations(coco)} has no answer to any question of {_questions(coco)}: their "
                    "question_ids differ, so they are not of the same release."
                )
            yield _row(question, annotation or {}, image)
        annotations.read_on()

    labelled = {split: rows(split) for split in _NAMES}
    return labelled | {split: unlabelled(name) for split, name in _UNLABELLED.items()}


def vqav2_files(root: str, splits: Collection[str | None]) -> list[Path]:
    """The files below `root` with questions and annotations, and with the questions of those splits without answers."""
    folder = Path(root).expanduser().resolve()
    labelled = [folder / name(coco) for coco, _ in _NAMES.values() for name in (_questions, _annotations)]
    return labelled + [folder / _questions(name) for split, name in _UNLABELLED.items() if split in splits]


class _Annotations:
    """The annotations of a file by the id of their question.

    They are read along with the questions, as both are in one order. Those that come before theirs wait, packed: as
    Python's objects all of them would take gigabytes.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._unread = path, self._distinct()
        self._read, self._waiting = set[str | None](), dict[str | None, bytes]()
        self._fit = False

    def of(self, question: str | None) -> dict[str, Any] | None:
        """The annotation of a question; None: there is none.

        Raises:
            UserError: as `_entries`; or two annotations are of one question.
        """
        if question is None:
            return None
        if question in self._waiting:
            return json.loads(zlib.decompress(self._waiting[question]))  # type: ignore[no-any-return]
        if question in self._read:  # it has been asked for before
            return next(entry for entry in _entries(self._path, "annotations") if _id(entry) == question)
        for own, entry in self._unread:
            if own == question:
                self._fit = True
                return entry
            self._waiting[own] = zlib.compress(json.dumps(entry).encode(), 1)
        return None

    def read_on(self) -> None:
        """Read what no question has asked for: the file may be damaged there."""
        for _ in self._unread:
            pass

    def _distinct(self) -> Iterator[tuple[str | None, dict[str, Any]]]:
        for entry in _entries(self._path, "annotations"):
            own = _id(entry)
            if own in self._read and own is not None:
                raise UserError(
                    f"{self._path} has two annotations of question_id={own}, and one is needed. Delete it to download "
                    "it again."
                )
            self._read.add(own)
            yield own, entry

    def have_any(self, questions: Iterable[str | None]) -> bool:
        """Whether there is an annotation of one of these questions, or one that has no id; to ask when all are read."""
        if not self._fit:
            self._fit = any(question is None or question in self._read for question in questions)
        return self._fit


def _images(folder: Path, coco: str) -> Callable[[Any], Path]:
    """From the id of an image to its file; questions about an image stand together, and one path is made for them."""

    below = folder / coco

    @functools.lru_cache(1)
    def path(image: Any) -> Path:
        number = f"{image:012d}" if isinstance(image, int) else image
        return below / f"COCO_{coco}_{number}.jpg"

    return lambda image: path(image) if isinstance(image, int | str) else path.__wrapped__(image)


def _row(question: Mapping[str, Any], annotation: Mapping[str, Any], path: Callable[[Any], Path]) -> dict[str, Any]:
    """One question with its annotation; what either lacks is None, or the name of an image that does not exist."""
    image = question.get("image_id")
    return {
        "id": question.get("question_id"),
        "image": path(image),
        "question": question.get("question"),
        "answers": annotation.get("answers"),
        "answer_type": annotation.get("answer_type"),
        "question_type": annotation.get("question_type"),
        "image_id": image,
    }


def _id(entry: Mapping[str, Any]) -> str | None:
    """What a question and its annotation have in common, whether written as a number or as text."""
    return None if entry.get("question_id") is None else str(entry["question_id"])


def _entries(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """The questions or annotations of an official file; what is no object among them counts as an empty one."""
    try:
        with io.TextIOWrapper(open_regular(path), "utf-8-sig", "surrogatepass") as file:
            for entry in listed(file, name):
                yield entry if isinstance(entry, dict) else {}
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as the official file: {type(error).__name__}: {error}. "
            "Delete it to download it again."
        ) from None


def _questions(coco: str) -> str:
    return f"v2_OpenEnded_mscoco_{coco}_questions.json"


def _annotations(coco: str) -> str:
    return f"v2_mscoco_{coco}_annotations.json"
