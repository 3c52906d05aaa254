"""The model card: README.md beside an adapter or a merged model, as the Hugging Face Hub reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from vlmexp.models.load import EMBEDDED
from vlmexp.report import LABELS, is_share, shown_score, told_answers

QUESTION = "What is in the picture?"


@dataclass(frozen=True)
class Facts:
    """All that a card says, as plain values.

    Attributes:
        title: the first line.
        adapter: the PEFT configuration class; None where all weights were trained.
        base, base_on_hub: the base model's public name, and whether it is an id of the Hub.
        revision: of the base model.
        dataset, dataset_on_hub: its name, and its id on the Hub.
        data, training: name -> value, as they are shown.
        options: group -> options, shown as YAML.
        scores: name of an evaluation -> the content of its *_evaluation.json.
        prompt: text, images and add_special_tokens, see run.json.
        loading: see vlmexp.models.export.loading.
        max_new_tokens: of an answer.
        dtype: that the base model was loaded in.
        version: of vlmexp.
    """

    title: str
    adapter: str | None
    base: str
    base_on_hub: bool
    revision: str | None
    dataset: str
    dataset_on_hub: str | None
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    options: Mapping[str, Any]
    prompt: Mapping[str, Any]
    loading: Mapping[str, Any]
    max_new_tokens: int
    dtype: str
    version: str
    trust_remote_code: bool = False
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def model_card(facts: Facts, merged: bool, where: str) -> str:
    """The card of the merged model, or of what was trained (the adapter, or all weights).

    Args:
        where: what the card's code loads: an id of the Hub or the folder's name.
    """
    is_adapter = facts.adapter is not None and not merged
    kind = (
        "the adapter" if is_adapter else "the whole model, the adapter merged into it" if facts.adapter else "the model"
    )
    options = yaml.safe_dump(_public(facts.options), sort_keys=False)
    sections = [
        f"---\n{_front_matter(facts, is_adapter)}\n---",
        f"# {facts.title}",
        f"`{facts.base}`{f' at revision `{facts.revision}`' if facts.revision else ''}, fine-tuned on the data set "
        f"`{facts.dataset}` with vlmexp {facts.version}. This is {kind}.",
        f"## Use\n\n{_needs(facts, is_adapter)}\n\n```python\n{usage(facts, is_adapter, where)}```",
        *([f"## Scores\n\n{_scores(facts.scores)}"] if facts.scores else []),
        f"## Data\n\n{_table(facts.data)}",
        f"## Training\n\n{_table(facts.training)}\n\n```yaml\n{options}```",
    ]
    return "\n\n".join(sections) + "\n"


def usage(facts: Facts, is_adapter: bool, where: str) -> str:
    """A program that loads the model and asks it about the image `photo.jpg`."""
    load, prompt = facts.loading, facts.prompt
    imports = [f"from {load['import_path']} import {load['model_class']}, {load['processor_class']}"]
    imports.append("from transformers import GenerationConfig")
    if load["image_backend"]:
        imports.append("from transformers import AutoImageProcessor")
    if prompt["images"]:
        imports.append("from PIL import Image")
    if is_adapter:
        imports.append("from peft import PeftModel")
        if facts.base.startswith(EMBEDDED):
            imports.append("from vlmexp.models.load import ModelSource")
    if load["register"]:
        imports.append(f"import {load['register']}  # makes the Auto classes know the model")
    remote = ", trust_remote_code=True" if facts.trust_remote_code else ""
    loaded = "base" if is_adapter else "model"
    greedy = f"{loaded}.generation_config = GenerationConfig(eos_token_id={loaded}.generation_config.eos_token_id)"
    lines = [*sorted(imports, key=lambda line: (line.startswith("from"), line)), ""]
    if is_adapter:
        base = f'ModelSource("{facts.base}").location' if facts.base.startswith(EMBEDDED) else f'"{facts.base}"'
        revision = f', revision="{facts.revision}"' if facts.revision else ""
        lines.append(f'base = {load["model_class"]}.from_pretrained({base}{revision}, dtype="{facts.dtype}"{remote})')
        lines.append(f"{greedy}  # as it was evaluated")
        lines.append(f'model = PeftModel.from_pretrained(base, "{where}").eval()')
    else:
        lines.append(f'model = {load["model_class"]}.from_pretrained("{where}", dtype="auto"{remote}).eval()')
        lines.append(f"{greedy}  # as it was evaluated")
    lines.append(f'processor = {load["processor_class"]}.from_pretrained("{where}"{remote})')
    if load["image_backend"]:
        backend = f'backend="{load["image_backend"]}"'
        lines.append(f'processor.image_processor = AutoImageProcessor.from_pretrained("{where}", {backend})')
    images = ', images=[Image.open("photo.jpg").convert("RGB")]' if prompt["images"] else ""
    if prompt.get("videos"):
        images += ", videos=[frames], do_sample_frames=False"
        lines += ["", "frames = ...  # a clip's frames as uint8 [frames, height, width, 3], chosen as in training"]
    special = "" if prompt["add_special_tokens"] else ", add_special_tokens=False"
    lines += [
        "",
        f"prompt = {prompt['text']!r}",
        f'prompt = prompt.replace("{{question}}", "{QUESTION}")',
        f'inputs = processor(text=[prompt]{images}, return_tensors="pt"{special})',
        "inputs = inputs.to(model.device, model.dtype)",
        f"tokens = model.generate(**inputs, max_new_tokens={facts.max_new_tokens}, do_sample=False)",
        'answer = processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)',
        "print(answer.strip())",
    ]
    return "\n".join(lines) + "\n"


def _needs(facts: Facts, is_adapter: bool) -> str:
    packages = ["transformers", *(["peft"] if is_adapter else [])]
    ours = facts.loading["register"] or (is_adapter and facts.base.startswith(EMBEDDED))
    needed = [*packages, *(["vlmexp"] if ours else [])]
    because = ", as transformers has no class for this model" if facts.loading["register"] else ""
    return f"It needs {', '.join(needed)}{because}."


def _front_matter(facts: Facts, is_adapter: bool) -> str:
    data = ModelCardData(
        base_model=facts.base if facts.base_on_hub else None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["vlmexp", *(["lora"] if facts.adapter == "LoraConfig" else [])],
        datasets=[facts.dataset_on_hub] if facts.dataset_on_hub else None,
        model_name=facts.title,
        eval_results=_eval_results(facts) or None,
    )
    if facts.base_on_hub:
        data["base_model_relation"] = "adapter" if is_adapter else "finetune"
    if "model_name" in data.__dict__ and not data.eval_results:
        data.pop("model_name")
    return str(data.to_yaml())


def _eval_results(facts: Facts) -> list[EvalResult]:
    """For the Hub's leaderboards: only scores on a data set that is there."""
    if facts.dataset_on_hub is None or "fine-tuned" not in facts.scores:
        return []
    result = facts.scores["fine-tuned"]
    return [
        EvalResult(
            task_type="image-text-to-text", dataset_type=facts.dataset_on_hub, dataset_name=facts.dataset,
            dataset_split=result["split"], metric_type=metric, metric_name=LABELS.get(metric, metric),
            metric_value=round(value, 4),
        )
        for metric, value in result["metrics"].items()
        if value is not None
    ]  # fmt: skip


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [["", *scores], ["---", *["---:"] * len(scores)]]
    for metric in dict.fromkeys(metric for result in scores.values() for metric in result["metrics"]):
        values = [result["metrics"].get(metric) for result in scores.values()]
        share = is_share(metric, values)
        rows.append([LABELS.get(metric, metric), *(shown_score(value, share) for value in values)])
    rows.append(["questions", *(f"{r['n']:,} of {r['population']:,}, {r['split']} split" for r in scores.values())])
    return "\n".join([_rows(rows), *(f"\n{line}." for line in told_answers(scores))])


def _table(values: Mapping[str, Any]) -> str:
    return _rows(
        [["", ""], ["---", "---"], *([name, str(value)] for name, value in values.items() if value is not None)]
    )


def _rows(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _public(value: Any) -> Any:
    """The value with the last part in the place of every path that belongs to one machine."""
    if isinstance(value, Mapping):
        return {name: _public(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    if isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute()):
        return Path(value).name
    return value
