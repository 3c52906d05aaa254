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

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmexp.data.download import fetch_archive
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
        for question in _entries(folder / _questions(name), "questions"):
            yield _row(question, {}, folder / _IMAGES, _IMAGES)

    def rows(split: str) -> Iterator[dict[str, Any]]:
        coco, title = _NAMES[split]
        require(f"{questions_url}/v2_Questions_{title}_mscoco.zip", _questions(coco))
        require(f"{questions_url}/v2_Annotations_{title}_mscoco.zip", _annotations(coco))
        require(f"{images_url}/{coco}.zip", coco)
        annotations = {_id(entry): entry for entry in _entries(folder / _annotations(coco), "annotations")}
        annotations[None] = {}
        questions = _entries(folder / _questions(coco), "questions")
        if questions and not any(_id(question) in annotations for question in questions):
            raise UserError(
                f"{folder / _annotations(coco)} has no answer to any question of {_questions(coco)}: their "
                "question_ids differ, so they are not of the same release."
            )
        for question in questions:
            yield _row(question, annotations.get(_id(question), {}), folder / coco, coco)

    labelled = {split: rows(split) for split in _NAMES}
    return labelled | {split: unlabelled(name) for split, name in _UNLABELLED.items()}


def vqav2_files(root: str, splits: Collection[str | None]) -> list[Path]:
    """The files below `root` with questions and annotations, and with the questions of those splits without answers."""
    folder = Path(root).expanduser().resolve()
    labelled = [folder / name(coco) for coco, _ in _NAMES.values() for name in (_questions, _annotations)]
    return labelled + [folder / _questions(name) for split, name in _UNLABELLED.items() if split in splits]


def _row(question: Mapping[str, Any], annotation: Mapping[str, Any], images: Path, coco: str) -> dict[str, Any]:
    """One question with its annotation; what either lacks is None, or the name of an image that does not exist."""
    image = question.get("image_id")
    number = f"{image:012d}" if isinstance(image, int) else image
    return {
        "id": question.get("question_id"),
        "image": images / f"COCO_{coco}_{number}.jpg",
        "question": question.get("question"),
        "answers": annotation.get("answers"),
        "answer_type": annotation.get("answer_type"),
        "question_type": annotation.get("question_type"),
        "image_id": image,
    }


def _id(entry: Mapping[str, Any]) -> str | None:
    """What a question and its annotation have in common, whether written as a number or as text."""
    return None if entry.get("question_id") is None else str(entry["question_id"])


def _entries(path: Path, name: str) -> list[dict[str, Any]]:
    """The questions or annotations of an official file; what is no object among them counts as an empty one."""
    try:
        with open_regular(path) as file:
            entries = json.load(file)[name]
        if not isinstance(entries, list):
            raise TypeError(f"its {name} are a {type(entries).__name__} and no list")
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as the official file: {type(error).__name__}: {error}. "
            "Delete it to download it again."
        ) from None
    return [entry if isinstance(entry, dict) else {} for entry in entries]


def _questions(coco: str) -> str:
    return f"v2_OpenEnded_mscoco_{coco}_questions.json"


def _annotations(coco: str) -> str:
    return f"v2_mscoco_{coco}_annotations.json"
