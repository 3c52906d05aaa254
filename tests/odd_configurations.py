"""Odd configurations by the hundred through the real command line; no part of the suite (see tests/README.md).

    python -m tests.odd_configurations --count 400 --seed 1 --report odd.jsonl
    python -m tests.odd_configurations --only 'seed=nan' '--cfg' ...
    python -m tests.odd_configurations --count 400 --to-the-end

One process imports the libraries and forks a child for each command line, which calls the entry in an empty folder.
Without `--to-the-end` a child ends where data and weights would be read: that is "accepted". With it the accepted ones
train on a few squares, and what fails then was found late.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shlex
import signal
import sys
import tempfile
import time
import typing
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmexp.command_line import FOLDERS
from vlmexp.config import OPEN_LEAVES, Config, PeftExtras, TrainExtras

ACCEPTED = 77
SLOW_S = 10.0
LIMIT_S = 240
VALUES = (
    "nan", "inf", "-inf", "-1", "0", "1e400", "1e-400", "''", "null", "[]", "{}", "true", "x", "1.5", "9" * 30,
    "x" * 5000, "\uff11\uff12", "1_000", "0x10", "'1e-4 '", "'nan'", "[1,1]", "{a: 1}", "-0.0", "4294967296", "' '",
    "\uff11e-4",
)  # fmt: skip
PLACES = (
    "/proc/x", "/proc/self/fd/x", "/sys/x/y", "/dev/null", "/dev/null/x", "emptydir/file", "emptydir/file/x",
    "'\"~/x\"'", "x" * 300, "x/" * 3000, "' '", "null", "[]", "{}", "'${nothing}'", "'a\tb'",
    "emptydir/../emptydir/file",
)  # fmt: skip
TRAIN = (
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "num_train_epochs",
    "max_steps", "warmup_steps", "label_smoothing_factor", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "logging_steps", "eval_steps", "save_steps", "save_total_limit", "eval_delay",
    "dataloader_num_workers", "dataloader_prefetch_factor", "neftune_noise_alpha", "optim", "lr_scheduler_type",
    "lr_scheduler_kwargs", "optim_args", "torch_empty_cache_steps", "tf32", "bf16", "fp16", "torch_compile",
    "torch_compile_mode", "average_tokens_across_devices", "log_level", "logging_first_step", "save_only_model",
    "metric_for_best_model", "greater_is_better", "load_best_model_at_end", "eval_strategy", "save_strategy",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "full_determinism", "use_cpu", "eval_on_start",
    "logging_strategy", "train_sampling_strategy", "dataloader_persistent_workers", "dataloader_drop_last",
)  # fmt: skip
PEFT = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_rslora", "use_dora", "modules_to_save",
    "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "init_lora_weights", "exclude_modules",
    "task_type", "inference_mode", "fan_in_fan_out", "lora_bias", "target_parameters", "layer_replication",
)  # fmt: skip
GENERATION = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "num_beams", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "do_sample", "early_stopping", "min_new_tokens", "stop_strings", "bad_words_ids",
    "suppress_tokens", "sequence_bias", "max_time", "epsilon_cutoff", "eta_cutoff", "guidance_scale", "use_cache",
    "encoder_repetition_penalty", "cache_implementation", "renormalize_logits", "exponential_decay_length_penalty",
)  # fmt: skip
BY_HAND = (
    "model.model_class=Qwen2VLForConditionalGenerationn", "model.processor_class=Qwen2VLProcesor",
    "model.model_class=Trainer", "model.model_class=BertModel", "model.processor_class=BertTokenizer",
    "model.import_path=transformer", "model.import_path=os", "model.device_map=cuda:0", "model.device_map=gpu",
    "model.device_map=cuda", "model.device_map=meta", "model.attn_implementation=flash", "model.revision=x y",
    "model.processor_kwargs.max_pixel=1000", "model.processor_kwargs.max_pixels=0",
    "model.processor_kwargs.max_pixels=-1", "model.processor_kwargs.max_pixels=nan",
    "model.processor_kwargs.use_fats=true", "model.processor_kwargs.do_resize=maybe",
    "model.model_kwargs.atn_implementation=sdpa", "model.model_kwargs.low_cpu_mem=true",
    "model.model_kwargs.offload_foldr=x", "model.model_kwargs.dytpe=float32", "model.model_kwargs.varient=fp16",
    "model.model_kwargs.dtype=float32", "model.model_kwargs.weights_only=false",
    "model.model_kwargs.use_safetensors=false", "collator.template_options.enable_thinkin=true",
    "model.export_writer=nowhere.write", "model.export_writer=write", "export.writer=os.nothing",
    "model.modules.vision=(", "model.modules.projector=[", "model.end_of_turn=''", "model.end_of_turn=nosuchtoken",
    "train.bf16=true train.fp16=true", "train.tf32=true", "train.use_cpu=true", "train.optim=adamw", "~model",
    "~model.id", "~model.dtype", "~peft", "~peft.r", "~peft.config_class", "~train", "~train.learning_rate",
    "~dataset", "~dataset.source", "~dataset.name", "~dataset.columns", "~dataset.columns.answer", "~dataset.splits",
    "~dataset.options", "~collator", "~collator.messages", "~evaluation", "~seed", "~stage", "~paths", "~paths.data",
    "~tracking", "~export", "~hydra", "~seed=3", "~nothing", "~dataset.metrics", "~train.eval_steps",
    "dataset.metrics=[]", "dataset.metrics=[bleu,bleu]", "dataset.metrics=['']", "dataset.metrics=bleu",
    "evaluation.metrics=[]", "evaluation.metrics=[bleu,bleu]", "evaluation.metrics=[[bleu]]",
    "evaluation.metrics=[os.path]", "evaluation.metrics=[os.getcwd]", "evaluation.metrics=[null]",
    "run=emptydir", "run=emptydir stage=train", "run=emptydir stage=eval_finetuned", "run=.", "run=/", "run=null",
    "run=~", "run=[a,b]", "hydra.run.dir=emptydir/file", "hydra.run.dir=' '", "hydra.run.dir=/proc/x",
    "--config-dir nowhere", "--config-dir=nowhere", "--config-dir emptydir", "--config-dir emptydir/file",
    "--config-name other", "--config-name=config.yml", "--config-name ''", "--config-path nowhere", "-cn other",
    "-cd nowhere", "-cp nowhere", "-cp", "--config-dir", "--cfg", "--cfg jobb", "--cfg job --package nothing",
    "--cfg job --package peft.nothing", "--package peft", "--cfg job --resolve --package ''", "--info nothing",
    "--info", "--multi-run peft.r=1,2", "--multirunn", "-mm", "-x", "--x", "--confg job", "--resolve", "--",
    "-", "-m", "-m peft.r=", "-m peft.r=,", "-m peft.r=1,1", "-m peft.r=8,,16", "-m 'model=glob(x*)'",
    "-m 'model=glob(*)' 'peft.r=choice()'", "-m 'peft.r=range(5,1)'", "-m 'peft.r=range(1,1)'", "-m seed=0,0",
    "-m 'peft.r=choice(8,8)'", "-m 'peft.r=interval(1,2)'", "-m 'dataset=glob(zz*)'", "-m peft.r=0,8",
    "-m train.learning_rate=nan,1e-4", "-m model=tiny,tinyy", "-m stage=compare,train", "-m 'peft.r=choice(8'",
    "-m hydra.sweep.dir=", "-m hydra.sweep.subdir=x peft.r=1,2", "-m hydra/launcher=nowhere peft.r=1,2",
    "-m hydra/sweeper=nothing peft.r=1,2", "'peft.r=range(1,4)'", "'model=glob(q*)'", "'seed=sort(3,1)'",
    "_dummy_", "__main__", "python -m vlmexp", "hydra", "hydra.=1", ".=1", "..=1", "a..b=1", "=", "==", "~", "~=",
    "+", "++", "++=1", "+=1", "@=1", "model@=tiny", "model@x=tiny", "+model@y=qwen2vl", "/model=tiny", "model/=tiny",
    "model/x=tiny", "model=tiny/", "model=../model/tiny", "model=tiny.yaml", "model=''", "model=null", "model=[]",
    "model=[tiny,qwen2vl]", "model={}", "model=TINY", "model='tiny '", "peft=lora,dora", "peft=''", "+model=tiny",
    "+peft=lora", "+peft=nothing", "+stage=train", "++stage=nothing", "stage=os.path", "stage=json.dumps",
    "stage=nope.go", "stage=os.getcwd", "stage=builtins.print", "stage=os.nothing", "stage=.", "stage=a.", "stage=.a",
    "stage=..", "stage=train.", "stage=os.path.join", "stage=vlmexp", "stage=TRAIN", "stage='train '", "stage=eval",
    "stage=eval_base,train", "stage=this.s", "stage=antigravity.geohash", "stage=vlmexp.training.stage.Run",
    "stage='vlmexp.training.stage.tra in'", "stage=123", "stage=[train]", "stage=null", "stage=''",
    "train.learning_rate=\u22121e-4", "peft.r\u00a0=8", "peft.r=8\u00a0", "\u2013m peft.r=8,16",
    "\u2014multirun peft.r=8,16", "\u2014cfg job", "model.id=\u201ctiny\u201d", "peft.r=\u20188\u2019",
    "model.id='\"tiny'", "'model.id=\"tiny'", "\"model.id='tiny\"", "'model.id=a\nb'", "'seed=1\n'", "'se\ned=1'",
    "seed\uff1d3", "seed=\uff13", "peft.r=\uff18", "\uff4deed=3", "s\u0435ed=3", "seed=1\u200b", "\ufeffseed=1",
    "seed\u200b=1", "'collator.system_prompt=a, b'", "'collator.system_prompt=a: b'", "'seed=1 2'", "seed 1",
    "'seed =1'", "'seed= 1'", "'seed=1;peft.r=2'", "peft.r:8", "peft.r==8", "--seed=1", "--seed 1", "-seed=1",
    "--peft.r=8", "--stage train", "seed=${nothing}", "seed='${seed}'", "'seed=${oc.env:NOTHING_THERE}'",
    "'seed=${peft.r'", "'seed=${now:%Y}'", "'seed=${unknown:x}'", "'model.id=${model.id}'", "'seed=${train}'",
    "'paths.data=${paths.outputs}'", "'dataset.name=../x'", "dataset.name=.", "dataset.name=a/b", "dataset.name=''",
    "dataset.version=''", "dataset.version=../..", "dataset.source=nothing", "dataset.source=os.path.join",
    "dataset.source=a.b", "dataset.options.trian=x.jsonl", "dataset.options.train=nowhere.jsonl",
    "dataset.options.train=''", "dataset.options.train=[]", "dataset.options.train=emptydir", "dataset.options=x",
    "dataset.options.train=1", "dataset.splits.train=null", "dataset.splits.tset=x", "dataset.max_examples.train=0",
    "dataset.max_examples.trian=3", "dataset.max_examples=3", "dataset.columns.image=''", "dataset.columns={}",
    "dataset.columns.image=1", "dataset.required=[nothing]", "dataset.required=[]", "dataset.required=[answer,answer]",
    "dataset.metadata=['']", "dataset.metadata=[a,a]", "dataset.metadata=[nosuchcolumn]",
    "dataset.columns.question=quury", "stage=eval_base evaluation.split=validation dataset.validation_fraction=0",
    "train.greater_is_better=true", "'dataset.prompt=[\"{question\"]'", "model.model_kwargs.gguf_file=missing.gguf",
    "model.media=[image,image]", "model.media=[]",
    "peft.train_parts=[language,language]", "peft.target_modules=[]", "peft.target_modules=''",
    "peft.target_modules=[nothing_here]", "peft.target_modules='('", "peft.config_class=''",
    "peft.config_class=PeftConfig", "peft.config_class=lora", "peft.quantization={}",
    "peft.quantization={load_in_4bit: true, bnb_4bit_quant: nf4}", "peft.quantization=true",
    "peft.quantization={load_in_4bit: yes, load_in_8bit: yes}", "evaluation.choices=[]", "evaluation.choices=[a,a]",
    "evaluation.answers=rank evaluation.choices=[a,a]", "evaluation.answers=rank evaluation.choices=[]",
    "evaluation.generation.temprature=0.5", "evaluation.generation.do_sample=true evaluation.generation.top_k=-5",
    "evaluation.generation.do_sample=true evaluation.generation.temperature=nan",
    "evaluation.generation.do_sample=true evaluation.generation.temperature=-1",
    "evaluation.generation.do_sample=true evaluation.generation.top_p=nan",
    "evaluation.generation.num_beams=100000", "evaluation.generation.repetition_penalty=0",
    "collator.messages=[]", "collator.messages=x", "collator.messages.0.role=usr", "collator.messages.9.role=user",
    "collator.messages.0.content=[]", "collator.messages.0.content.0.type=imge", "collator.system_prompt=null",
    "collator.processor.max_pixels=3", "collator.image_processing.max_size=0.5", "tracking.report_to=wandbb",
    "tracking.project=''", "tracking.name=''", "tracking.mode=''", "tracking=nothing", "tracking.predictions=1e3",
    "export.push_to_hub=''", "export.push_to_hub=a/b/c", "preview.ids=['']", "stage=preview preview.ids=[]",
    "stage=preview preview.output=''", "stage=preview preview.rows=0", "stage=compare compare.metric=''",
    "stage=compare compare.runs=[]", "stage=compare compare.runs=['']", "stage=compare compare.runs=[nowhere]",
    "stage=compare compare.output=''", "stage=compare compare.html=''", "stage=compare compare.runs=[emptydir]",
    "stage=compare compare.diff=[emptydir,emptydir]", "stage=compare compare.paired=[]", "stage=status",
    "stage=status sweep=nowhere", "stage=status sweep=emptydir", "stage=resume", "stage=resume sweep=emptydir",
    "stage=status sweep=", "stage=export", "stage=export run=emptydir", "stage=eval_finetuned", "threads=0",
    "threads=100000", "seed=4294967295", "hydra.verbose=nothing", "hydra/job_logging=nothing", "hydra.job.chdir=true",
    "hydra.output_subdir=''", "hydra.mode=MULTIRUN", "hydra.nothing=1", "+hydra.nothing=1", "hydra.job.num=x",
    "hydra.searchpath=[nowhere]", "hydra.searchpath=[file://nowhere]", "hydra.searchpath=nowhere",
    "hydra.searchpath=[pkg://nothing]", "hydra.run.dir='${nothing}'", "hydra.job.name=''", "experiment=''",
    "experiment=nothing", "+experiment=nothing", "recipe/run@train=nothing", "sweeps=1", "schema=x", "schema.x=1",
)  # fmt: skip


def schema_options(kind: type = Config, prefix: str = "") -> Iterator[str]:
    """Every option of the schema that holds a value, by its dotted name."""
    types = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        name = f"{prefix}{item.name}"
        if dataclasses.is_dataclass(types[item.name]):
            yield from schema_options(typing.cast(type, types[item.name]), f"{name}.")
        elif name not in OPEN_LEAVES:
            yield name
    if kind is Config:
        yield from (f"train.{item.name}" for item in dataclasses.fields(TrainExtras))
        yield from (f"peft.{item.name}" for item in dataclasses.fields(PeftExtras))


def generated() -> list[str]:
    """Every option with every odd value, misspelt, taken away, or swept; every folder at an odd place."""
    groups = (("train", TRAIN), ("peft", PEFT), ("evaluation.generation", GENERATION))
    names = [*schema_options(), *(f"{group}.{name}" for group, known in groups for name in known)]
    names = [name for name in names if name not in ("run", "stage")]
    odd = [f"{name}={value}" for name in names for value in VALUES]
    odd += [f"{prefix}{name[:-2]}{name[-1]}=1" for name in names for prefix in ("", "+", "++")]
    groups_of = sorted({name.rpartition(".")[0] for name in names} - {""})
    odd += [f"~{name}" for name in (*names, *groups_of)] + [f"{name}={{}}" for name in groups_of]
    odd += [f"-m {name}=1,{value}" for name in names for value in ("nan", "-1", "x", "1")]
    return odd + [f"{option}={place}" for option in (*FOLDERS, "hydra.output_subdir") for place in PLACES]


class Place:
    """A folder with a small data set, and one with nothing in it."""

    def __init__(self, root: Path) -> None:
        from PIL import Image

        self.root, self.rows = root, root / "rows.jsonl"
        colors = ("red", "green", "blue", "black")
        for number, color in enumerate(colors):
            Image.new("RGB", (64, 64), color).save(root / f"{number}.png")
        self.rows.write_text(
            "".join(
                json.dumps({"image": f"{i % 4}.png", "question": f"what color is it? ({i})", "answer": colors[i % 4]})
                + "\n"
                for i in range(24)
            )
        )
        self.base = [
            "stage=train", "dataset=files", f"dataset.options.train={self.rows}", f"dataset.options.test={self.rows}",
            f"paths.data={root / 'data'}", "train.max_steps=2", "dataset.on_duplicates=report",
        ]  # fmt: skip

    def arguments(self, line: str) -> list[str]:
        """The command's own, before them those of the base which they leave as they are."""
        try:
            is_of_shell = line.startswith(("'", '"', "-")) or " " in line
            given = shlex.split(line) if is_of_shell else [f"{line[:-3]}=" if line.endswith("=''") else line]
        except ValueError:
            given = [line]
        if any(text.startswith("run=") or "config-" in text for text in given):
            return given
        named = {text.lstrip("+~").partition("=")[0] for text in given}
        alone = [text for text in self.base if text.partition("=")[0] not in named]
        return [*alone, *given]


def call(arguments: Sequence[str], place: Place, to_the_end: bool) -> dict[str, Any]:
    """What one command line came to, in a child of this process."""
    folder = Path(tempfile.mkdtemp(dir=place.root))
    (folder / "emptydir").mkdir()
    (folder / "emptydir" / "file").touch()
    before, begun = set(folder.rglob("*")), time.monotonic()
    child = os.fork()
    if not child:
        _be_the_command(folder, arguments, to_the_end)
    waited, status = 0, 0
    while not waited and time.monotonic() - begun < LIMIT_S:
        waited, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not waited:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    told = (folder.parent / f"{folder.name}.err").read_text(errors="replace")
    out = (folder.parent / f"{folder.name}.out").read_text(errors="replace")
    written = sorted(str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before)
    code = os.waitstatus_to_exitcode(status) if waited else None
    return {
        "code": code, "seconds": round(time.monotonic() - begun, 2), "written": written[:5], "stderr": told[-3000:],
        "stdout": out[-300:],
    }  # fmt: skip


def _be_the_command(folder: Path, arguments: Sequence[str], to_the_end: bool) -> None:
    os.chdir(folder)
    for number, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}.{ending}", os.O_WRONLY | os.O_CREAT), number)
    sys.argv[:] = ["vlmexp", *arguments]
    code = 0
    try:
        from vlmexp import main

        if not to_the_end:
            _end_before_data()
        main.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_before_data() -> None:
    from vlmexp.data import stage
    from vlmexp.launch import snapshot
    from vlmexp.models import load

    def accept(*_: Any, **__: Any) -> None:
        sys.stderr.flush()
        os._exit(ACCEPTED)

    originals = {stage.prepared_data, load.load_model}
    for module in list(sys.modules.values()):
        for name in ("prepared_data", "load_model"):
            if module.__name__.startswith("vlmexp") and getattr(module, name, None) in originals:
                setattr(module, name, accept)
    snapshot.take_snapshot = accept  # the first that a sweep does when its points are good


def verdict(found: dict[str, Any]) -> str:
    """`good`, or what is wrong with how it ended."""
    said = [line for line in found["stderr"].splitlines() if line.strip() and "points/s]" not in line]
    if "Traceback (most" in found["stderr"] + found["stdout"]:
        return "traceback"
    if found["code"] is None:
        return "hangs"
    if found["code"] in (ACCEPTED, 0):
        return "accepted"
    if found["code"] != 2:
        return "failed late"
    if found["written"]:
        return "wrote"
    if found["seconds"] > SLOW_S:
        return "slow"
    return "good" if len(said) == 1 and said[0].startswith("vlmexp: ") else "not one sentence"


def main() -> None:
    """Run them, print a line for each that is not `good`, and how many there were of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="generated ones, drawn at random; those by hand besides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="these command lines instead, each as one text")
    parser.add_argument("--lines", type=Path, help="a file with a command line in each line, instead")
    parser.add_argument("--skip-by-hand", action="store_true")
    parser.add_argument("--matching", default="", help="only those that hold this text")
    parser.add_argument("--to-the-end", action="store_true", help="let accepted ones train")
    parser.add_argument("--report", type=Path, help="a line of JSON for each")
    options = parser.parse_args()
    every = [line for line in generated() if options.matching in line]
    drawn = random.Random(options.seed).sample(every, min(options.count, len(every)))
    by_hand = [] if options.skip_by_hand else [line for line in BY_HAND if options.matching in line]
    lines = options.only if options.only is not None else [*by_hand, *drawn]
    if options.lines:
        lines = options.lines.read_text().splitlines()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"
    _import_all()
    count: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as root:
        place = Place(Path(root))
        for line in lines:
            found = call(place.arguments(line), place, options.to_the_end)
            kind = verdict(found)
            count[kind] += 1
            if options.report:
                with options.report.open("a") as file:
                    file.write(json.dumps({"line": line, "verdict": kind, **found}) + "\n")
            if kind != "good" or options.only is not None:
                print(f"{kind:<17}{found['seconds']:>6} s  {line[:120]!r}\n    {found['stderr'][:400]!r}", flush=True)
    print(dict(count))


def _import_all() -> None:
    import vlmexp.evaluation.stage
    import vlmexp.launch.commands
    import vlmexp.main
    import vlmexp.pipeline
    import vlmexp.preview.stage
    import vlmexp.training.stage  # noqa: F401


if __name__ == "__main__":
    main()
