"""What a run knows of its model, on the model cards in `model/` and `deployment_model/`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vlmexp import __version__
from vlmexp.confidential import redacted
from vlmexp.config import Config
from vlmexp.evaluation.suite import BASE, FINETUNED
from vlmexp.files import read_json, write_text
from vlmexp.models.card import Facts, model_card
from vlmexp.models.export import is_on_hub, public_id
from vlmexp.parts import model_source
from vlmexp.runs import Run

GROUPS = ("train", "peft", "collator")  # what a reader of the card needs to train the same again


def write_cards(config: Config, run: Run) -> None:
    """Write README.md into both folders, with the scores of the evaluations that the run has made by now."""
    repository, pushed = config.export.push_to_hub, config.export.push
    for folder, what in (("model", "adapter"), ("deployment_model", "merged")):
        where = repository if repository is not None and pushed == what else folder
        card = model_card(facts(config, run, folder), merged=what == "merged", where=where)
        write_text(run.path(folder, "README.md"), redacted(card))


def facts(config: Config, run: Run, folder: str) -> Facts:
    """What the card of a folder says."""
    record, source, dataset = run.record, model_source(config), config.dataset
    exported, data, trained = record["export"], record["data"], record["stages"].get("train", {})
    base = public_id(source)
    names = {"base": BASE, "fine-tuned": FINETUNED}
    files = {name: run.path("evaluation", f"{file}_evaluation.json") for name, file in names.items()}
    options: dict[str, Any] = {group: value for group, value in asdict(config).items() if group in GROUPS}
    return Facts(
        title=f"{base.removeprefix('vlmexp:').rpartition('/')[2]} on {dataset.name}",
        adapter=config.peft.get("config_class"),
        base=base,
        base_on_hub=is_on_hub(source),
        revision=exported["base_revision"],
        dataset=dataset.name,
        dataset_on_hub=dataset.options.get("path") if dataset.source == "hub" else None,
        data={
            "name": dataset.name,
            "version": dataset.version,
            "fingerprint": f"`{data['fingerprint']}`",
            **{f"{split} examples": f"{count:,}" for split, count in data["counts"].items()},
        },
        training={
            "steps": trained.get("steps"),
            "epochs": trained.get("epochs"),
            "examples": trained.get("examples"),
            "last training loss": trained.get("loss"),
            "last validation loss": trained.get("eval_loss"),
            "trainable parameters": record.get("model", {}).get("trainable_parameters"),
            "parameters": record.get("model", {}).get("parameters"),
            "dtype": exported["dtype"],
            "tied embeddings": exported["tied_embeddings"],
            "seed": config.seed,
        },
        options=options,
        prompt=exported["prompt"],
        loading=exported["loading"][folder],
        max_new_tokens=exported["max_new_tokens"],
        dtype=exported["dtype"],
        version=__version__,
        trust_remote_code=config.model.trust_remote_code,
        scores={name: read_json(path) for name, path in files.items() if path.exists()},
    )
