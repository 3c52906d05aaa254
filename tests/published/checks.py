"""What the collator makes of examples, against what the documented inference code makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hydra
from PIL import Image

from tests.conftest import example
from tests.published.checkpoints import family_of
from tests.published.reference import Reference, reference
from vlmexp.checks import checked
from vlmexp.collator.lengths import token_lengths
from vlmexp.config import Config
from vlmexp.data.example import Example
from vlmexp.data.images import load_image
from vlmexp.main import CONFIG_DIR
from vlmexp.models.load import check_model
from vlmexp.parts import build_collator, model_source

# Question, answer, and the sizes of the images.
CASES: list[tuple[str, str, list[tuple[int, int]]]] = [
    ("What color is the shape?", "red", [(640, 480)]),
    ("이 그림에 무엇이 있나요?", "빨간색 원 3개", [(448, 448)]),
    ("두 그림은 같은 것입니까? 中国", "아니요", [(336, 600), (28, 28)]),
    ("Which is larger: a or b? It's  3.5 %.", "b, of course", [(50, 400)]),
    ("Line one\n\n\tline <b>two</b> <table> <loc0001> <box>?", "<b>x</b>\n\ny <loc0002>", [(28, 28)]),
    ("How many continents are there?", "seven (7)", []),
]

# The token that ends an answer in training: the chat template's, or else the tokenizer's EOS.
ENDS = {
    "qwen2vl": 151645, "qwen25vl": 151645, "qwen3vl": 151645, "llava15": 2, "llava_next": 2, "llava_onevision": 151645,
    "internvl2": 92542, "internvl3": 151645, "paligemma": 1, "gemma3": 106, "idefics3": 128258, "smolvlm": 49279,
    "phi3vision": 32007,
}  # fmt: skip


class Published:
    """A published checkpoint as the framework reads it, without a model."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.family, self.folder = name, family_of(name), folder
        self.config = composed(name, folder)
        self.source = model_source(self.config)
        self.processor = check_model(self.source, _fail, weights=False)
        self.collator = build_collator(self.config, self.processor)
        self.end = ENDS[self.family]

    def reference(self) -> Reference:
        return reference(self.family, self.folder, self.config.model.processor_kwargs)


def composed(name: str, folder: Path, *overrides: str) -> Config:
    """The config of a published folder's `model` choice, with no words before a question but those of its own."""
    choice = name if (CONFIG_DIR / "model" / f"{name}.yaml").exists() else family_of(name)
    options = [f"model={choice}", f"model.id={folder}", "model.dtype=float32", "collator.system_prompt=''"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        return checked(hydra.compose("config", [*options, *overrides]))


def _fail(note: str) -> None:
    raise AssertionError(note)


@dataclass
class Compared:
    """How many examples were compared, and what differs."""

    examples: int = 0
    tokens: int = 0
    differences: dict[str, list[str]] = field(default_factory=lambda: {"prompt": [], "labels": [], "length": []})


def compared(published: Published, folder: Path) -> Compared:
    """Compare prompts, labels and lengths without pixels of all cases; images are drawn into the folder."""
    result, expected = Compared(), published.reference()
    items = [item for item in drawn(folder) if item.images or published.family != "paligemma"]  # it takes no text alone
    lengths = token_lengths(published.collator, items, with_answer=True)
    for item, length in zip(items, lengths, strict=True):
        question, images = item.fields["question"], [load_image(path) for path in item.images]
        prompt = expected.prompt(question, images)
        answer = expected.labels(question, images, item.answer, published.end)
        batch = published.collator([item])
        ids, labels = (batch[name][0].tolist() for name in ("input_ids", "labels"))
        result.examples += 1
        result.tokens += len(ids)
        found = {
            "prompt": (ids[: len(ids) - len(answer)], prompt),
            "labels": (labels, [-100] * len(prompt) + answer),
            "length": (length, len(ids)),
        }
        for what, (ours, theirs) in found.items():
            if ours != theirs:
                result.differences[what].append(f"{question!r}, {len(images)} images: {ours} and not {theirs}")
    return result


def drawn(folder: Path) -> Iterator[Example]:
    """The cases as examples, with plain images in the folder."""
    for number, (question, answer, sizes) in enumerate(CASES):
        paths = [image(folder, *size) for size in sizes]
        yield example(question, answer, *paths, id=str(number))


def image(folder: Path, width: int, height: int) -> Path:
    """A plain image of that size."""
    path = folder / f"{width}x{height}.png"
    if not path.exists():
        Image.new("RGB", (width, height), "teal").save(path)
    return path
