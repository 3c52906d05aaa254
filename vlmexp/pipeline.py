"""stage=pipeline: download, eval_base, train with its export, eval_finetuned in one run directory."""

from __future__ import annotations

from typing import Any

from vlmexp.config import NEEDS_TRAIN, Config
from vlmexp.data.stage import check_source, download
from vlmexp.evaluation.answers import check_decoding
from vlmexp.evaluation.stage import score_base, score_finetuned
from vlmexp.evaluation.suite import BASE, FINETUNED, print_suite, suite_result
from vlmexp.evaluation.trained import find_training_run
from vlmexp.export.stage import check_export, export_model, publish
from vlmexp.files import read_json
from vlmexp.models.load import check_model
from vlmexp.parts import build_collator, model_source
from vlmexp.predict.stage import check_predict
from vlmexp.report import print_next, print_paths, print_scores
from vlmexp.runs import Run
from vlmexp.tracking.opening import tracked
from vlmexp.training.stage import check_adapter, check_steps, check_training, train_model


def check_options(config: Config) -> None:
    """What the libraries say of a config before a directory is made for its run; reads no weights and no data.

    Raises:
        UserError: a class, an option or the checkpoint is refused; there is no training run to evaluate.
    """
    if config.stage == "eval_finetuned":
        find_training_run(config)
        return
    if config.stage == "predict":
        check_predict(config)
        return
    if config.stage in NEEDS_TRAIN:
        check_training(config)
        check_export(config)
    processor = check_model(model_source(config), lambda _: None, weights=config.stage != "preview")
    build_collator(config, processor)
    check_source(config)
    if config.stage in NEEDS_TRAIN:
        check_adapter(config)
    if config.stage != "preview":
        check_decoding(config, processor)


def pipeline(config: Config, run: Run) -> dict[str, Any]:
    """All four stages in a row, then what was gained. A stage that this run has finished is not repeated."""
    check_training(config)
    check_export(config)
    processor = check_model(model_source(config), run.note_fallback)  # a wrong id shows before the data are made
    check_decoding(config, processor)
    download(config, run)
    check_steps(config, run)
    with tracked(config, run):
        score_base(config, run)
        train_model(config, run)
        export_model(config, run)
        score_finetuned(config, run)
    publish(config, run)
    files = {name: run.path("evaluation", f"{name}_evaluation.json") for name in (BASE, FINETUNED)}
    base, finetuned = (read_json(path) for path in files.values())
    about = "all of it" if base["sample"] == "all" else f"a {base['sample']} of {base['population']:,}"
    about += f" but {base['refused']} that the processor refuses" if base["refused"] else ""
    title = f"{config.model.id} on {config.dataset.name}: {base['n']:,} questions of the {base['split']} split, {about}"
    print_scores({"base": base, "fine-tuned": finetuned}, title)
    if config.evaluation.suite:
        print_suite(config, run)
    print_paths(
        {
            "run": run.directory,
            "adapter": run.path("model"),
            "merged model": run.path("deployment_model"),
            "evaluations": run.path("evaluation"),
            "metrics": run.path("metrics.jsonl"),
        }
    )
    print_next(run.directory)
    main = finetuned["main_metric"]
    metrics = {**finetuned["metrics"], **suite_result(config, run, FINETUNED)}
    return {"metric": finetuned["metrics"][main], "base_metric": base["metrics"][main], **metrics}
