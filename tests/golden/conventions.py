"""The table of conf/dataset/README.md, made from the data sets themselves.

python -m tests.golden.conventions > conf/dataset/README.md
"""

from __future__ import annotations

from omegaconf import OmegaConf

from tests.golden.__main__ import BENCHMARKS, PURPOSES
from vlmexp.config import Dataset
from vlmexp.main import CONFIG_DIR

OF = {benchmark.dataset: name for name, benchmark in BENCHMARKS.items()}
WITHOUT_GOLDEN_ROWS = ("aokvqa", "aokvqa_direct", "coco_captions", "flickr30k", "msrvtt_qa", "videomme")
DIFFERS = {
    "vqav2": ("one answer", "vqav2", "signs beyond ASCII"),
    **dict.fromkeys(("textvqa", "okvqa", "vizwiz"), ("one answer", "signs beyond ASCII")),
    "chartqa": ("signs beyond ASCII", "no answer"),
    **dict.fromkeys(("docvqa", "infovqa"), ("signs beyond ASCII",)),
    "mmmu": ("read at random",),
}
HEAD = """\
# Benchmarks, and how they are asked and scored

`python -m vlmexp model=qwen2vl dataset=NAME stage=eval_base`. Images stand before the prompt, or where a question names
them. `collator.system_prompt=TEXT` goes before an instruction, `collator.messages` before the whole prompt, and
`evaluation.metrics`, `evaluation.max_new_tokens` before the metrics and the limit. Prompts and rules are those of
lmms-eval 0.7, and so are limits where it sets one (not for `textvqa`, `okvqa`, `vizwiz`, `seedbench`, `mmstar` and
`refcoco`). Golden rows that it has scored are in `tests/golden/benchmarks`; `python -m tests.golden FOLDER` compares
others. A question, a hint or choices that are empty leave their piece of the prompt out. This page is made from the
YAML files by `python -m tests.golden.conventions`.

| `dataset=` | split | prompt | metrics | tokens | differs on purpose |
|---|---|---|---|---|---|
"""


def prompt_of(dataset: Dataset) -> str:
    """The pieces of a prompt with the instruction in its place."""
    text = "".join(dataset.prompt).replace("{system_prompt}", dataset.instruction)
    if dataset.open_instruction:
        text += f" (without choices: {dataset.open_instruction})"
    return "`" + text.strip("\n").replace("\n", "⏎").replace("|", "\\|") + "`"


def read(name: str) -> Dataset:
    """The group `dataset` of a choice, without what is composed around it."""
    merged = OmegaConf.merge(OmegaConf.structured(Dataset), OmegaConf.load(CONFIG_DIR / "dataset" / f"{name}.yaml"))
    merged.options = {}
    return OmegaConf.to_object(merged)  # type: ignore[return-value]


def page() -> str:
    """The whole page."""
    rows = []
    for name in sorted([*OF, *WITHOUT_GOLDEN_ROWS]):
        dataset = read(name)
        differs = ", ".join(DIFFERS.get(name, ())) or ("no golden rows" if name in WITHOUT_GOLDEN_ROWS else "nothing")
        metrics = ", ".join(dataset.metrics)
        rows.append(
            f"| `{name}` | {dataset.splits['test']} | {prompt_of(dataset)} | {metrics} | {dataset.max_new_tokens} | "
            f"{differs} |\n"
        )
    reasons = [f"- **{name}:** {reason}.\n" for name, (reason, _) in PURPOSES.items()]
    return f"{HEAD}{''.join(rows)}\n## What differs on purpose\n\n{''.join(reasons)}"


if __name__ == "__main__":
    print(page(), end="")
