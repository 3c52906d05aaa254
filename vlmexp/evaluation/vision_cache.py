"""A frozen vision tower looks at every picture once, for all epochs, evaluations and runs."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from vlmexp import distributed
from vlmexp.collator.batch import Collator
from vlmexp.collator.features import Record, StoredFeatures
from vlmexp.collator.identity import looks_identity
from vlmexp.collator.lengths import Fitted
from vlmexp.collator.media import media_key
from vlmexp.data.example import Example
from vlmexp.evaluation.shared_prefix import on_device
from vlmexp.files import digest
from vlmexp.models.encoders import Encoder, Form, OtherForm
from vlmexp.storage import StorageError, free_bytes, size, writing

FOLDER = "vision_features"  # below paths.data
OPTION = "train.cache_vision_features"
WORTH_USES = 2.0  # so often a picture is looked at where `auto` keeps its features
MOST_OF_FREE = 0.25  # of the room on the disk, for `auto`
_TOGETHER, _TOKENS = 16, 8192  # sets of media that are encoded at a time, and their tokens
# By how much of their size features may differ between a batch and a picture alone, whose sums run in another order.
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-8}
_ROUGH = 5e-2  # in other precisions
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pictures:
    """Sets of media as examples show them: an example for each, and how many tokens it is."""

    examples: list[Example]
    tokens: list[int]

    def __add__(self, other: Pictures) -> Pictures:
        return Pictures(self.examples + other.examples, self.tokens + other.tokens)


def pictures_of(fitted: Fitted, keys: np.ndarray) -> Pictures:
    """The sets of media of a split.

    Args:
        keys: [examples] equal for those that show the same media.
    """
    first = np.unique(keys, return_index=True)[1].tolist()
    shown = [index for index in first if media_key(fitted[index])]
    return Pictures([fitted[index] for index in shown], fitted.media_lengths[shown].tolist())


class Tower:
    """What encodes pictures for a collator, and the features of it that are on the disk.

    Args:
        encoder: of the model.
        collator: whose pixels it gets.
        root: the folder in which every tower has its own.
        precision: of the autocast that the model runs in; None: it runs in its own precision.

    Raises:
        OtherForm: something of it is trained; or its features cannot be kept, which shows on the examples `tried`.
    """

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        collator: Collator,
        root: Path,
        precision: torch.dtype | None,
        tried: Sequence[Example],
    ) -> None:
        self._model, self._encoder, self._precision = model, encoder, precision
        self._plain = dataclasses.replace(collator, features=None)
        with self._computing():
            weights = encoder.weights(self._inputs(tried))
        _require_frozen(next((name for name, weight in weights.items() if weight.requires_grad), None))
        identity = digest([encoder.identity(weights), str(precision), str(model.dtype)])
        self.store = StoredFeatures(root / identity[:32], looks_identity(collator))
        self._forms: dict[str, Form] = {}

    def missing(self, pictures: Pictures) -> Pictures:
        """Those that are not on the disk."""
        rows = zip(pictures.examples, pictures.tokens, strict=True)
        left = [(example, tokens) for example, tokens in rows if not self.store.has(self._key(example))]
        return Pictures([example for example, _ in left], [tokens for _, tokens in left])

    def encode(self, examples: Sequence[Example]) -> list[Record]:
        """The features of each example's media.

        Raises:
            OtherForm: they are not what the collator's tokens stand for.
        """
        inputs = self._inputs(examples)
        with torch.no_grad(), self._computing():
            encoded = self._encoder.encode(inputs)
        records: list[Record] = [{} for _ in examples]
        for name, (features, form) in encoded.items():
            if self._forms.setdefault(name, form) != form:
                raise OtherForm("The form of the tower's output changes.")
            for record, part in zip(records, self._encoder.cut(features, name, inputs["input_ids"]), strict=True):
                if len(part):
                    record[name] = part
        return records

    def keep(self, examples: Sequence[Example]) -> int:
        """Write the features of examples; how many bytes they are. Raises StorageError and OtherForm."""
        records = self.encode(examples)
        with writing(self.store.folder, f"or set {OPTION}=off"):
            for example, record in zip(examples, records, strict=True):
                self.store.write(self._key(example), record)
        return sum(value.nbytes for record in records for value in record.values())

    def accept(self) -> None:
        """Have the model take features where it takes pixels."""
        self._encoder.accept(self._forms)

    def check(self, tried: Sequence[Example]) -> None:
        """Compare kept features with those of every picture alone in training mode, and what the model makes of both.

        Raises:
            OtherForm: they differ.
        """
        kept = [self.store.read(self._key(example)) or {} for example in tried]
        self._model.train()
        for example, record in zip(tried, kept, strict=True):
            (alone,) = self.encode([example])
            if alone.keys() != record.keys() or any(_differ(record[name], alone[name]) for name in alone):
                raise OtherForm("Features of a picture alone are not those of it in a batch, or change each time.")
        self._model.eval()
        self.accept()
        given = dataclasses.replace(self._plain, features=self.store).prompts(tried)
        seen = self._plain.prompts(tried)
        if any(name not in given or not torch.equal(given[name], seen[name]) for name in seen if "pixel" not in name):
            raise OtherForm("The tokens of a picture depend on more than its size.")
        with torch.no_grad(), self._computing():
            if _differ(self._logits(given), self._logits(seen)):
                raise OtherForm("The model answers differently to features than to pixels.")

    def _logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        inner = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
        last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}
        inputs = {name: on_device(value, self._model) for name, value in batch.items()}
        logits: torch.Tensor = self._model(**inputs, use_cache=False, **last).logits[:, -1]
        return logits

    def _inputs(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        return {name: on_device(value, self._model) for name, value in self._plain.prompts(examples).items()}

    def _computing(self) -> contextlib.AbstractContextManager[Any]:
        if self._precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self._model.device.type, self._precision)

    def _key(self, example: Example) -> str:
        return self.store.key(example, self._plain.media)


def use_stored_features(
    model: Any,
    encoder: Callable[[], Encoder],
    collators: Sequence[Collator],
    pictures: Pictures,
    uses: float,
    wanted: str,
    root: Path,
    precision: torch.dtype | None,
    note: Callable[[str], None],
    on_batch: Callable[[], None],
) -> dict[str, Any]:
    """Give collators the features of pictures in the place of their pixels, if the tower is frozen and it pays.

    What is not on the disk is computed first. Before the first of many is written, features on the disk and the model
    are compared on a few pictures.

    Args:
        encoder: makes the model's; may raise OtherForm.
        collators: that make pixels as the first one does; the others go without.
        uses: how often each picture is looked at.
        wanted: auto | on | off
        root, precision: as of Tower.
        note: told of what was wanted and is not possible.
        on_batch: called behind every batch of pictures.

    Returns:
        what was decided, for run.json.

    Raises:
        StorageError: there is no room for what is wanted.
    """
    for collator in collators:
        collator.features = None
    if wanted == "off":
        return {"used": False, "reason": f"{OPTION}=off"}
    try:
        with _as_before(model):
            ready = partial(_ready, model, encoder, collators[0], pictures, uses, wanted, root, precision)
            tower, described, missing = _on_all_ranks(ready)
            _on_all_ranks(partial(_fill, tower, missing, on_batch))
    except (OtherForm, StorageError) as error:
        if wanted == "on" and isinstance(error, StorageError):
            raise
        reason = str(error)
        if wanted == "on" or isinstance(error, StorageError):
            note(f"{OPTION}={wanted}: the vision tower looks at every picture at every step. {reason}")
        return {"used": False, "reason": reason}
    for collator in collators:
        if looks_identity(collator) == tower.store.looks:
            collator.features = dataclasses.replace(tower.store, rows=OrderedDict())
    return {"used": True, **described}


def _ready(
    model: Any,
    encoder: Callable[[], Encoder],
    collator: Collator,
    pictures: Pictures,
    uses: float,
    wanted: str,
    root: Path,
    precision: torch.dtype | None,
) -> tuple[Tower, dict[str, Any], Pictures]:
    """The tower after its check, what is said of it, and what is missing; raises OtherForm and StorageError."""
    if not pictures.examples:
        raise OtherForm("The data show no pictures.")
    found = encoder()
    _require_frozen(found.trained())
    seldom = OtherForm(f"Every picture is looked at {uses:.1f} times, and not all features are on the disk.")
    is_worth_it = wanted == "on" or uses >= WORTH_USES
    if not is_worth_it and not root.exists():
        raise seldom
    groups = _varied(pictures.examples)
    tower = Tower(model, found, collator, root, precision, groups[0])
    if not is_worth_it and not tower.store.folder.exists():
        raise seldom
    counted = {id(example): tokens for example, tokens in zip(pictures.examples, pictures.tokens, strict=True)}
    kept = sum(tower.keep(group) for group in groups)
    a_token = kept / max(1, sum(counted[id(example)] for group in groups for example in group))
    try:
        for group in groups:
            tower.check(group)
    except OtherForm:
        shutil.rmtree(tower.store.folder, ignore_errors=True)
        raise
    missing = tower.missing(pictures)
    if not is_worth_it and missing.examples:
        raise seldom
    needed = int(a_token * sum(missing.tokens))
    _require_room(root, needed, MOST_OF_FREE if wanted == "auto" else 1.0)
    if missing.examples:
        log.info(
            f"Vision features of {len(missing.examples):,} pictures are computed once and kept: "
            f"{sum(missing.tokens):,} tokens of {a_token:,.0f} bytes, about {size(needed)} in {tower.store.folder}, "
            "which may be removed at any time."
        )
    about = {"pictures": len(pictures.examples), "computed": len(missing.examples), "bytes": needed}
    return tower, {**about, "folder": str(tower.store.folder)}, missing


def _require_frozen(trained: str | None) -> None:
    if trained is not None:
        raise OtherForm(f"What features are made of is trained: {trained}.")


def _require_room(root: Path, needed: int, share: float) -> None:
    """Raise a StorageError if features take more than a share of what is free."""
    free = free_bytes(root)
    if free is not None and needed > share * free:
        limit = "" if share == 1 else f", of which a share of {share:g} may be used"
        raise StorageError(
            f"{root}: vision features take about {size(needed)}, and {size(free)} are free there{limit}: make room, "
            f"set paths.data to another place, or {OPTION}=off."
        )


def _fill(tower: Tower, missing: Pictures, on_batch: Callable[[], None]) -> None:
    """Compute what is missing, the ranks in turn; raises OtherForm and StorageError."""
    batches = list(_batches(missing))[distributed.rank() :: distributed.world_size()]
    count = sum(map(len, batches))
    with tqdm(total=count, desc="vision features", unit=" pictures", leave=None, disable=not batches) as bar:
        for batch in batches:
            tower.keep(batch)
            on_batch()
            bar.update(len(batch))


def _on_all_ranks(work: Callable[[], T]) -> T:
    """What the work gives; what one rank raises, all raise."""
    failure, result = None, list[T]()
    try:
        result.append(work())
    except (OtherForm, StorageError) as error:
        failure = error
    for found in distributed.gathered(failure):
        if found is not None:
            raise found
    return result[0]


def _batches(pictures: Pictures) -> Iterator[list[Example]]:
    """Examples of like length, so many that they fit; videos, which some models take of one length only, alone."""
    rows = sorted(zip(pictures.tokens, range(len(pictures.tokens)), strict=True))
    batch = list[Example]()
    for tokens, index in rows:
        example = pictures.examples[index]
        is_full = len(batch) == _TOGETHER or (len(batch) + 1) * tokens > _TOKENS
        if batch and (is_full or example.videos or batch[-1].videos):
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def _varied(examples: Sequence[Example]) -> list[list[Example]]:
    """A few examples to try with: images, several of them in a row, and videos, which no batch mixes with images."""
    still = [example for example in examples if not example.videos]
    moving = [example for example in examples if example.videos]
    several = [example for example in still if len(example.images) > 1]
    first = still[:2] + [example for example in several[:1] if example not in still[:2]]
    return [group for group in (first, moving[:1]) if group]


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether tensors are not the same but for the order of sums."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return True
    one, other = one.cpu(), other.cpu()
    apart = torch.linalg.vector_norm((one - other).float()) / torch.linalg.vector_norm(other.float()).clamp(min=1e-12)
    return not float(apart) <= _TOLERANCES.get(one.dtype, _ROUGH)


@contextlib.contextmanager
def _as_before(model: Any) -> Iterator[None]:
    """Within it the model is in evaluation mode; random states and its mode are as before afterwards."""
    was_training = model.training
    devices = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices=devices):
            model.eval()
            yield
    finally:
        model.train(was_training)
