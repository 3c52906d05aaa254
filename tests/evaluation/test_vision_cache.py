"""Features of a frozen tower from the disk: the same losses, gradients and answers, without a look at a picture."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.conftest import example
from tests.data.clips import drawn
from tests.models.test_families import LORA, VIDEO, family, photos  # noqa: F401  # fixtures
from vlmexp.collator import media
from vlmexp.collator.batch import Collator
from vlmexp.collator.features import StoredFeatures
from vlmexp.data.example import Example
from vlmexp.evaluation import vision_cache
from vlmexp.evaluation.generate import generate_answers
from vlmexp.evaluation.vision_cache import Pictures, use_stored_features
from vlmexp.models.adapter import attach
from vlmexp.models.encoders import Encoder
from vlmexp.models.modules import DEFAULT_PATTERNS
from vlmexp.parts import build_collator
from vlmexp.storage import StorageError
from vlmexp.training.loss import summed_loss


def pictures_of(rows: list[Example]) -> Pictures:
    shown = [row for row in rows if row.images or row.videos]
    return Pictures(shown, [20] * len(shown))


def kept(
    model: Any,
    collator: Collator,
    rows: list[Example],
    root: Path,
    wanted: str = "on",
    uses: float = 5.0,
    note: Callable[[str], None] = pytest.fail,
) -> dict[str, Any]:
    encoder = lambda: Encoder(model, DEFAULT_PATTERNS)  # noqa: E731
    return use_stored_features(
        model, encoder, [collator], pictures_of(rows), uses, wanted, root, None, note, lambda: None
    )


def passed(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Loss and gradient of a training step, dropout included."""
    torch.manual_seed(1)
    model.train()
    model.zero_grad()
    loss, _ = summed_loss(model, model.get_output_embeddings(), {**batch, "use_cache": False})
    loss.backward()
    gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return loss.item(), torch.cat(gradients)


@pytest.fixture
def looks(monkeypatch) -> list[Path]:
    """Files of pictures that are decoded."""
    seen: list[Path] = []
    load = media.load_image
    monkeypatch.setattr(media, "load_image", lambda path, options: (seen.append(path), load(path, options))[1])
    return seen


@pytest.fixture
def rows(photos, tmp_path) -> list[Example]:  # noqa: F811
    """An image twice, text alone, several images, and their copies under other names."""
    copy = tmp_path / "copy.png"
    shutil.copy(photos[1], copy)
    asked = [
        ("what color is the circle?", "red", (photos[0],)), ("is it?", "yes", (photos[1],)),
        ("how many are there in the image?", "two or 3", (photos[2],)), ("is a triangle?", "no", (photos[0],)),
        ("a text?", "no", ()), ("what is in both images?", "circle", (photos[0], photos[2])), ("so?", "blue", (copy,)),
    ]  # fmt: skip
    return [example(question, answer, *shown, id=str(i)) for i, (question, answer, shown) in enumerate(asked)]


def lora_of(model: Any, parts: list[str] | None = None) -> Any:
    adapted = attach(model, LORA, parts or ["language"])
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    return adapted


def test_features_from_the_disk_are_those_of_the_tower(family, rows, looks, tmp_path, compose):  # noqa: F811
    collator = family.collator()
    torch.manual_seed(0)
    model = lora_of(family.model())
    batches = [rows[:3], rows[3:], rows[::-1]]
    if "video" in family.config.model.media:
        options = [f"model={family.choice}", f"model.id={family.source.id}", *VIDEO]
        collator = build_collator(compose(*options), family.processor)
        clips = [(drawn(tmp_path / f"{frames}.mp4", frames),) for frames in (4, 11)]
        moving = [dataclasses.replace(rows[4], id=f"v{number}", videos=clip) for number, clip in enumerate(clips)]
        rows = rows + moving
        batches += [moving, [rows[0], *moving, rows[4]]]
    plain = [passed(model, collator(batch)) for batch in batches]
    questions, lengths = rows[:7], list(range(7))
    answers = generate_answers(model, collator, questions, lengths, 4, 6, description="")
    shared = dataclasses.replace(collator, share_images=True)
    packed = shared(rows[:7])

    about = kept(model, collator, rows, tmp_path / "features")
    assert about["used"]
    looks.clear()
    for batch, (loss, gradient) in zip(batches, plain, strict=True):
        again, theirs = passed(model, collator(batch))
        assert again == pytest.approx(loss, rel=1e-6)
        assert torch.linalg.vector_norm(theirs - gradient) <= 1e-5 * torch.linalg.vector_norm(gradient)
    assert generate_answers(model, collator, questions, lengths, 4, 6, description="") == answers
    with_features = dataclasses.replace(shared, features=collator.features)(rows[:7])
    assert all(torch.equal(with_features[name], value) for name, value in packed.items() if "pixel" not in name)
    assert not looks  # no picture was decoded
    # The copy has the content of another file, and the features of this one.
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == about["pictures"] - 2

    # What is on the disk is what the model is given: other numbers there, another loss.
    assert collator.features is not None
    path = collator.features.path(collator.features.key(rows[0], collator.media))
    found = collator.features.read(path.stem)
    assert found is not None
    collator.features.write(path.stem, {name: value + 1 for name, value in found.items()})
    assert abs(passed(model, collator(batches[0]))[0] - plain[0][0]) > 1e-3
    # Without a file, and with half of one, there are pixels again.
    for spoil in (
        lambda: path.write_bytes(path.read_bytes()[:-9]),
        path.unlink,
        lambda: shutil.rmtree(path.parents[2]),
    ):
        spoil()
        looks.clear()
        assert passed(model, collator(batches[0]))[0] == pytest.approx(plain[0][0], rel=1e-6)
        assert len(looks) == 3


@pytest.fixture
def tiny(model, make_collator, rows) -> tuple[Any, Collator, list[Example]]:
    return lora_of(model), make_collator("collator.label_masking.mask_input_tokens=true"), rows


def test_other_weights_other_pixels_and_other_precision_have_features_of_their_own(tiny, make_collator, tmp_path):
    model, collator, rows = tiny
    folders, files = set(), set()

    def keep(collator: Collator) -> int:
        about = kept(model, collator, rows, tmp_path)
        folders.add(about["folder"])
        files.update(tmp_path.rglob("*.safetensors"))
        return int(about["computed"])

    keep(collator)
    count = len(files)
    assert count == 4
    assert keep(collator) == 0
    assert (len(folders), len(files)) == (1, count)
    with torch.no_grad():  # weights of the language model are of no concern to the tower
        model.get_input_embeddings().weight.add_(1)
    assert keep(collator) == 0
    assert (len(folders), len(files)) == (1, count)
    keep(make_collator("collator.image_processing.max_size=32"))
    assert (len(folders), len(files)) == (1, 2 * count)
    visual = model.get_base_model().model.visual
    for weight in (visual.patch_embed.proj.weight, visual.blocks[-1].mlp.fc2.bias, visual.merger.mlp[2].bias):
        before = len(folders)
        with torch.no_grad():
            weight.view(-1)[-1] += 1e-3
        keep(collator)
        assert len(folders) == before + 1
    Image.new("RGB", (64, 48), "teal").save(rows[0].images[0])  # the same name, another picture
    assert keep(collator) == 0  # one that is tried has been made
    batch = collator([rows[0]])
    collator.features = None
    assert passed(model, batch)[0] == pytest.approx(passed(model, collator([rows[0]]))[0], rel=1e-6)


@pytest.mark.parametrize("parts", [["vision", "language"], ["projector"], ["vision", "projector", "language"]])
def test_what_is_trained_is_not_kept(model, make_collator, rows, tmp_path, parts):
    said: list[str] = []
    collator = make_collator()
    about = kept(lora_of(model, parts), collator, rows, tmp_path / "features", note=said.append)
    assert about["used"] is False
    assert "is trained: " in about["reason"]
    assert about["reason"] in said[0]
    assert collator.features is None
    assert not (tmp_path / "features").exists()


def test_a_weight_outside_of_the_known_names_is_found_by_its_gradient(tiny, tmp_path):
    model, collator, rows = tiny
    inner = model.get_base_model().model
    inner.scale = nn.Parameter(torch.ones(1))  # a name that no pattern knows
    inner.visual.merger.register_forward_hook(lambda _, __, output: output * inner.scale)
    assert "scale" in kept(model, collator, rows, tmp_path / "a", note=lambda _: None)["reason"]
    inner.scale.requires_grad_(False)
    first = kept(model, collator, rows, tmp_path / "a")
    with torch.no_grad():
        inner.scale.mul_(2)
    assert kept(model, collator, rows, tmp_path / "a")["folder"] != first["folder"]


def test_chance_in_the_tower_or_before_it_turns_it_off(tiny, tmp_path, monkeypatch):
    model, collator, rows = tiny
    visual = model.get_base_model().model.visual
    random = visual.blocks[0].register_forward_hook(lambda m, _, out: nn.functional.dropout(out, 0.5, m.training))
    about = kept(model, collator, rows, tmp_path / "features", note=lambda _: None)
    assert "change each time" in about["reason"]
    assert not list(tmp_path.rglob("*.safetensors"))
    random.remove()
    numbers = np.random.default_rng(0)
    load = media.load_image

    def shaken(path: Path, options: Any) -> Image.Image:
        pixels = np.asarray(load(path, options)).astype(int)
        return Image.fromarray((pixels + numbers.integers(0, 60, pixels.shape)).clip(0, 255).astype(np.uint8))

    monkeypatch.setattr(media, "load_image", shaken)
    about = kept(model, collator, rows, tmp_path / "features", note=lambda _: None)
    assert "change each time" in about["reason"]
    assert collator.features is None


def test_a_cut_at_the_wrong_place_is_seen(tiny, tmp_path, monkeypatch):
    model, collator, rows = tiny
    cut = Encoder.cut
    monkeypatch.setattr(Encoder, "cut", lambda *given: cut(*given)[::-1])
    about = kept(model, collator, [rows[0], rows[1]], tmp_path / "features", note=lambda _: None)
    assert about["used"] is False
    assert not list(tmp_path.rglob("*.safetensors"))


def test_auto_keeps_what_pays_and_has_room(tiny, tmp_path, monkeypatch):
    model, collator, rows = tiny
    said: list[str] = []

    def auto(uses: float, name: str, wanted: str = "auto") -> dict[str, Any]:
        return kept(model, collator, rows, tmp_path / name, wanted, uses, said.append)

    assert "looked at 1.0 times" in auto(1.0, "seldom")["reason"]
    assert not (tmp_path / "seldom").exists()
    assert auto(2.0, "often")["used"]
    assert auto(1.0, "often")["used"]  # all of it is there
    next((tmp_path / "often").rglob("*.safetensors")).unlink()
    assert auto(1.0, "often")["used"] or auto(1.0, "often")["reason"]
    assert auto(9.0, "off", "off") == {"used": False, "reason": "train.cache_vision_features=off"}
    assert collator.features is None
    assert not said
    monkeypatch.setattr(vision_cache, "free_bytes", lambda _: 10_000)
    assert "are free there, of which a share of 0.25" in auto(9.0, "full")["reason"]
    assert "train.cache_vision_features=auto" in said[0]
    with pytest.raises(StorageError, match=r"vision features take about .* KiB, and 9.8 KiB are free there: make room"):
        kept(model, collator, rows * 9, tmp_path / "full", "on")


def test_no_pictures_no_features(tiny, tmp_path):
    model, collator, rows = tiny
    assert kept(model, collator, [rows[4]], tmp_path, "auto")["reason"] == "The data show no pictures."


def test_many_write_and_remove_at_once(tmp_path):
    """What is read is always whole: one of the values that were written, or nothing."""
    store = StoredFeatures(tmp_path / "tower", "looks")
    record = {"pixel_values": torch.zeros(64, 64)}
    stop, found = threading.Event(), set()

    def write(value: float) -> None:
        while not stop.is_set():
            store.write("abcdef", {name: tensor + value for name, tensor in record.items()})

    def remove() -> None:
        while not stop.is_set():
            shutil.rmtree(tmp_path / "tower", ignore_errors=True)

    with ThreadPoolExecutor(3) as pool:
        work = [pool.submit(write, 1.0), pool.submit(write, 2.0), pool.submit(remove)]
        for _ in range(300):
            if (read := store.read("abcdef")) is not None:
                found.add(tuple(read["pixel_values"].unique().tolist()))
        stop.set()
        assert [done.result() for done in work] == [None] * 3
    assert found <= {(1.0,), (2.0,)}
    assert found
