"""From questions to answers: in the way the config asks for, on all ranks, and none of them twice."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import ProcessorMixin

from vlmexp import distributed
from vlmexp.collator.answer_lengths import answer_lengths
from vlmexp.collator.batch import Collator
from vlmexp.collator.lengths import KEEPING_ALL, Fitted, fit
from vlmexp.collator.media import media_key
from vlmexp.config import Config
from vlmexp.data.example import Example
from vlmexp.data.prepare import Prepared
from vlmexp.data.stage import load_split
from vlmexp.errors import UserError
from vlmexp.evaluation.decoding import check_generation
from vlmexp.evaluation.generate import Reply, generate_answers
from vlmexp.evaluation.journal import Answer, Journal, take_up
from vlmexp.evaluation.limits import Limit, limit_of
from vlmexp.evaluation.prefix_check import Sharing, find_sharing
from vlmexp.evaluation.ranking import Ranking, rank_answers
from vlmexp.files import digest
from vlmexp.parts import note_texts, reasons_not_to_share, refused_share, shares_images, tries_sharing
from vlmexp.provenance import package_versions
from vlmexp.runs import Run, affecting_results

ANSWERS_DEPEND_ON = ("model", "dataset", "collator", "peft", "evaluation", "seed")  # groups of options
SOFTWARE = ("vlmexp", "torch", "torchvision", "transformers", "tokenizers", "peft", "pillow")
PREDICTIONS = "predictions"  # what the file of the answers is called while they come
KEPT_CHOICES = 5  # of a ranking, beside each prediction
log = logging.getLogger("vlmexp")


@dataclass(frozen=True)
class Choices:
    """What is ranked: the same texts for every question, or, if None, those of its row.

    Attributes:
        source: where they come from, for the result.
        of: how many there were, of which `texts` are the most common.
    """

    texts: list[str] | None
    source: str
    of: int | None = None

    def options(self, example: Example) -> Sequence[str]:
        """The candidates for an example's answer."""
        options = example.choices if self.texts is None else self.texts
        if not options:
            raise UserError(f"{example.place('choices')}: there is nothing to rank. Set evaluation.choices.")
        return options


def find_choices(config: Config, prepared: Prepared) -> Choices | None:
    """The candidates that `evaluation.answers=rank` ranks; None if answers are generated."""
    evaluation = config.evaluation
    if evaluation.answers == "generate":
        return None
    if evaluation.choices is not None:
        return Choices(evaluation.choices, "evaluation.choices", len(evaluation.choices))
    if config.dataset.columns.get("choices"):
        return Choices(None, f"the column {config.dataset.columns['choices']}")
    if not prepared.manifest["counts"]["train"]:
        raise UserError(
            "evaluation.answers=rank takes its candidates from the train split, and there is none: set "
            "evaluation.choices=[A,B], or dataset.columns.choices to a column that holds them."
        )
    counts = Counter(example.answer for example in load_split(config, prepared, "train") if example.answer)
    texts = [text for text, _ in counts.most_common(evaluation.max_choices)]
    return Choices(texts, "the answers of the train split", len(counts))


@dataclass
class Asker:
    """Asks one model. What it has answered is on disk at once, and is not asked again by another attempt.

    Attributes:
        max_new_tokens: the longest answer.
        name: of the evaluation, with which its files begin.
        identity: a hash of all that the answers depend on.
        folder: of the run, in which they are while they come.
        generated, taken_from_disk: answers that this attempt and that earlier ones made.
    """

    config: Config
    run: Run
    model: Any
    collator: Collator
    choices: Choices | None
    max_new_tokens: int
    name: str
    identity: str
    folder: str = "evaluation"
    generated: int = 0
    taken_from_disk: int = 0
    _found: list[Sharing] = field(default_factory=list)

    def ask(
        self,
        kind: str,
        examples: Sequence[Example],
        lengths: Sequence[int],
        description: str,
        one_by_one: bool = False,
    ) -> list[Answer]:
        """The answers to all examples, on every rank; the ranks take the batches in turn.

        Questions about one image share it where that is exact, unless they are asked `one_by_one`.

        Args:
            kind: what the file is called; it tells apart the answers to a question that is asked more than once.
            lengths: tokens of each prompt.
        """
        folder, stem, rank = self.run.path(self.folder), f"{self.name}_{kind}", distributed.rank()
        found = take_up(folder, stem, self.identity, self.run.note_fallback) if self.run.is_main else None
        known: dict[str, Answer] = distributed.gathered(found)[0]
        journal, own = Journal(folder, stem, self.identity, rank), dict[str, Answer]()
        ids = [example.id for example in examples]

        def keep(answers: Mapping[int, Reply | Ranking]) -> None:
            new = {ids[index]: _answer(value) for index, value in answers.items()}
            journal.append(new)
            own.update(new)
            self.run.interruption.check()

        asked: dict[str, Any] = {
            "model": self.model,
            "collator": self.collator,
            "examples": examples,
            "lengths": lengths,
            "batch_size": 1 if one_by_one else self.config.evaluation.batch_size,
            "description": description,
            "rank": rank,
            "ranks": distributed.world_size(),
            "skip": {index for index, id in enumerate(ids) if id in known},
            "on_batch": keep,
        }
        if asked["skip"]:
            log.info(f"{description}: {len(asked['skip']):,} of {len(ids):,} answers are on disk already.")
        with self.run.interruption.deferred():  # told to stop, it finishes a batch
            if self.choices is None:
                self._generate(asked, one_by_one)
            else:
                self._rank(asked, one_by_one, self.choices)
        self.generated += len(ids) - len(asked["skip"])
        self.taken_from_disk += len(asked["skip"])
        for answers in distributed.gathered(own):
            known |= answers
        return [known[id] for id in ids]

    def _generate(self, asked: Mapping[str, Any], one_by_one: bool) -> None:
        keys = [str(media_key(example) or index) for index, example in enumerate(asked["examples"])]
        options = self.config.evaluation.generation
        shared = not one_by_one and shares_images(self.config, self.collator, keys, with_loss=False)
        packs = not one_by_one and not options and self._may_pack()
        sharing = self._sharing(asked, keys) if shared or packs else Sharing("nobody wants it")
        shared = sharing.refused is None and (shared or sharing.packed)
        if shared and options:
            self.run.note_fallback(
                "evaluation.generation is set: every question reads its image anew, which takes longer."
            )
        generate_answers(
            **asked,
            max_new_tokens=self.max_new_tokens,
            options=options,
            share_images=shared,
            packed=sharing.packed,
            seed=self.config.seed,
            reasoning_tags=self.config.evaluation.reasoning_tags,
        )

    def _rank(self, asked: Mapping[str, Any], one_by_one: bool, choices: Choices) -> None:
        reasons = reasons_not_to_share(self.config, self.collator, with_loss=False)
        if self.config.collator.share_images == "never":
            reasons.append("collator.share_images is never")
        sharing = Sharing()
        if not reasons and not one_by_one:
            keys = [str(media_key(example) or index) for index, example in enumerate(asked["examples"])]
            sharing = self._sharing(asked, keys)
            reasons += filter(None, [sharing.refused])
        if reasons:
            self.run.note_fallback(
                "evaluation.answers=rank: every candidate is read behind a prompt of its own, which takes longer "
                f"({'; '.join(reasons)})."
            )
        rank_answers(
            **asked,
            choices=[choices.options(example) for example in asked["examples"]],
            per_token=self.config.evaluation.rank_per_token,
            share_prompts=not one_by_one and not reasons,
            packed=sharing.packed,
        )

    def _may_pack(self) -> bool:
        """Whether questions that share no image may be read without padding, as those that do."""
        options = self.config.collator
        wanted = options.share_images != "never" and options.packing != "never"
        return wanted and not reasons_not_to_share(self.config, self.collator, with_loss=False)

    def _sharing(self, asked: Mapping[str, Any], keys: Sequence[str]) -> Sharing:
        """How images are shared with this model, which is tried once."""
        if not self._found:
            packs, is_known = self.config.collator.packing != "never", not tries_sharing(self.config)
            longest = max(asked["lengths"], default=0) + self.max_new_tokens
            found = find_sharing(self.model, self.collator, asked["examples"], keys, packs, is_known, longest)
            self._found.append(found)
            self.run.update(sharing={"share_images": found.refused is None, **dataclasses.asdict(found)})
            if self._found[0].refused is not None:
                log.info("Every question is read for itself: behind a shared image, %s.", self._found[0].refused)
        return self._found[0]


def fitted_questions(config: Config, run: Run, collator: Collator, examples: Sequence[Example], what: str) -> Fitted:
    """The questions as they are asked: shortened to collator.max_length where that can be, and all of them.

    One that is left out would flatter a score, so here `drop` shortens, or asks what cannot be shortened. Only what
    the model's processor refuses is not asked.

    Args:
        what: how the questions are called, of which something is to be said.
    """
    overlong, limit = config.collator.overlong, config.collator.max_length
    keeping, share = KEEPING_ALL.get(overlong, overlong), refused_share(config)
    fitted = fit(collator, examples, limit, keeping, with_answer=False, refused_share=share)
    note_texts(collator, fitted.found, what, run.note_fallback)
    if fitted.refused:
        first = next(iter(fitted.refused.values()))
        run.note_fallback(f"{len(fitted.refused)} of {len(examples)} questions are not asked: {first}")
    if fitted.too_long:
        run.note_fallback(
            f"{len(fitted.too_long)} of {len(examples)} questions are asked as they are, although their images alone "
            f"take more than collator.max_length={limit} tokens."
        )
    return fitted


def answer_limit(config: Config, run: Run, prepared: Prepared, collator: Collator, split: str) -> Limit:
    """The longest answer that is generated: what is set, else what the accepted answers of `split` and train need.

    All of both splits count, so that a sample is answered as the whole is.
    """
    for option, tokens in (
        ("evaluation.max_new_tokens", config.evaluation.max_new_tokens),
        ("dataset.max_new_tokens", config.dataset.max_new_tokens),
    ):
        if tokens is not None:
            return Limit(tokens, option)
    splits = [name for name in dict.fromkeys([split, "train"]) if prepared.manifest["counts"].get(name)]
    lengths = [answer_lengths(collator, load_split(config, prepared, name)) for name in splits]
    limit = limit_of(np.concatenate(lengths), splits)
    if limit.note:
        run.note_fallback(limit.note)
    return dataclasses.replace(limit, tokens=max(limit.tokens, config.evaluation.generation.get("min_new_tokens") or 0))


def check_decoding(config: Config, processor: ProcessorMixin) -> None:
    """Refuse options of `evaluation.generation` that cannot be used, before any weights are read."""
    longest = config.evaluation.max_new_tokens or config.dataset.max_new_tokens
    tokenizer = processor.tokenizer  # type: ignore[attr-defined]
    check_generation(config.evaluation.generation, tokenizer, config.evaluation.batch_size, longest)


def cut_answers(answers: Sequence[Answer]) -> int:
    """How many answers came to the limit of their length without an end."""
    return sum(bool(answer.get("cut")) for answer in answers)


def identity_of(
    config: Config, model: Any, checkpoints: Sequence[str], data_fingerprint: str, max_new_tokens: int
) -> str:
    """A hash of all that an answer depends on.

    Args:
        checkpoints: fingerprints of the weights.
        max_new_tokens: the longest answer, which may be worked out.
    """
    values = affecting_results(dataclasses.asdict(config))
    versions = package_versions()
    return digest(
        {
            "config": {name: values[name] for name in ANSWERS_DEPEND_ON},
            "model": [type(model).__name__, str(model.dtype), model.device.type],
            "checkpoints": list(checkpoints),
            "data": data_fingerprint,
            "max_new_tokens": max_new_tokens,
            "software": {name: versions.get(name) for name in SOFTWARE},
        }
    )


def _answer(value: Reply | Ranking) -> Answer:
    """What is kept of an answer or of a ranking."""
    if isinstance(value, Reply):
        said = {"said": value.said} if value.said != value.text else {}
        return {"prediction": value.text, **said, **({"cut": True} if value.cut else {})}
    best = [{"answer": text, "log_likelihood": round(number, 6)} for text, number in value[:KEPT_CHOICES]]
    return {"prediction": value[0][0], "ranking": best}
