"""stage=preview: what a training would be shown, from configuration, processor and data alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmexp.collator.batch import Collator
from vlmexp.config import Config
from vlmexp.data.prepare import Prepared
from vlmexp.data.stage import duplicates_in_words, load_split, look_alikes_in_words, prepared_data
from vlmexp.errors import UserError
from vlmexp.files import read_jsonl, write_text
from vlmexp.models.load import check_model
from vlmexp.parts import build_collator, model_source, note_texts, set_threads, shares_images
from vlmexp.preview.cards import make_cards
from vlmexp.preview.choice import grouped, positions, sample
from vlmexp.preview.page import build_page
from vlmexp.preview.summary import Preview
from vlmexp.preview.survey import take_survey
from vlmexp.preview.terminal import print_preview
from vlmexp.report import print_paths
from vlmexp.runs import Run
from vlmexp.screen import Screen

QUESTIONS = 6  # of an image that several share


def preview(config: Config, run: Run) -> dict[str, Any]:
    """Collate some examples as stage=train would and show them, on a page and in the terminal; no weights are read."""
    set_threads(config)
    with run.stage("preview") as result:
        processor = check_model(model_source(config), run.note_fallback, weights=False)
        prepared = prepared_data(config, run)
        collator = build_collator(config, processor)
        made = make_preview(config, prepared, collator)
        note_texts(collator, made.survey.found, config.preview.split, run.note_fallback)
        result |= {
            "split": config.preview.split,
            "counted": len(made.survey.lengths),
            "longest_tokens": max(made.survey.lengths),
            "too_long": len(made.too_long),
        }
        path = Path(config.preview.output).expanduser() if config.preview.output else run.path("preview.html")
        if run.is_main:
            try:
                write_text(path, build_page(made))
            except OSError as error:
                raise UserError(
                    f"preview.output={path} cannot be written: {error.strerror}; name another file."
                ) from None
    print_preview(Screen(highlight=False), made)
    for sentence in look_alikes_in_words(prepared):
        print(f"  {sentence}")
    print_paths({"preview": path})
    return {name: result[name] for name in ("counted", "longest_tokens", "too_long")}


def make_preview(config: Config, prepared: Prepared, collator: Collator) -> Preview:
    """Count rows of the split and collate the shown ones.

    Raises:
        UserError: preview.ids names a row that there is not, or media cannot be read and no row may be skipped.
    """
    options, skip_bad = config.preview, config.dataset.on_bad_sample == "skip"
    examples = load_split(config, prepared, options.split)
    media = examples.media_keys()
    # The training decides by its own split, whatever is shown here.
    has_train = options.split != "train" and prepared.manifest["counts"]["train"]
    trained = load_split(config, prepared, "train").media_keys() if has_train else media
    collator.share_images = shares_images(config, collator, trained, with_loss=True)
    keys = (media if collator.share_images else np.arange(len(examples))).tolist()
    chosen = positions(examples.ids(), options.ids, options.split)
    count = min(options.rows or len(examples), len(examples))
    rows = sorted(random.Random(config.seed).sample(range(len(examples)), count))
    survey = take_survey(collator, examples, rows, skip_bad)
    groups = grouped(chosen or sample(survey.rows, survey.longest, keys, options.examples, config.seed), keys)
    shown = [[examples[index] for index in group[:QUESTIONS]] for group in groups]
    cards = make_cards(collator, shown, config.collator.max_length, config.collator.overlong, skip_bad)
    more = {row[0].id: len(group) - len(row) for row, group in zip(shown, groups, strict=True)}
    for card in cards:
        card.more = more.get(card.questions[0].example.id, 0)
    bad = read_jsonl(prepared.folder / "bad.jsonl")
    return Preview(
        title=f"{config.model.id} on {config.dataset.name}, {options.split} split",
        facts={
            "processor": type(collator.processor).__name__,
            "prompt": prompt_in_words(config),
            "prepared data": str(prepared.folder),
            **_facts("in two splits", duplicates_in_words(prepared)),
            **_facts("look-alikes", look_alikes_in_words(prepared)),
        },
        population=len(examples),
        survey=survey,
        cards=cards,
        max_length=config.collator.max_length,
        overlong=config.collator.overlong,
        sharing=sharing(media.tolist()) if collator.share_images else "",
        errors=[*(row["error"] for row in bad if row["split"] == options.split), *survey.bad],
        choice="These are preview.ids." if chosen else "These are a random sample; the longest example comes last.",
    )


def prompt_in_words(config: Config) -> str:
    """Whose the prompt and its instruction are: the user's own words go before the data set's."""
    collator, dataset = config.collator, config.dataset
    if any(message.role == "conversation" for message in collator.messages):
        return "each row's own conversation"
    text = "".join(part.text or "" for message in collator.messages for part in message.content)
    told = "dataset.prompt" if "{prompt}" in text else "collator.messages"
    if "{system_prompt}" not in text.replace("{prompt}", "".join(dataset.prompt)):
        return told
    is_own = collator.system_prompt != dataset.instruction
    return f"{told}, with the instruction of {'collator.system_prompt' if is_own else 'dataset.instruction'}"


def _facts(name: str, sentences: Sequence[str]) -> dict[str, str]:
    return {name: " ".join(sentences)} if sentences else {}


def sharing(keys: Sequence[int]) -> str:
    """How the training packs questions, in a sentence."""
    media = len(set(keys))
    sets = f"{media:,} {'set' if media == 1 else 'sets'} of media"
    return (
        f"Images are shared: {len(keys):,} questions are about {sets}, {len(keys) / media:.1f} each. "
        "A row of a batch is one of these with its questions behind one prefix; each sees the prefix and itself."
    )
