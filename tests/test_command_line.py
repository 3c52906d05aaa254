"""What a user who makes a mistake gets to read, and what the shell costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, cli_environment, only_run
from vlmexp.files import read_json

MISTAKES = {
    "peft.rr=3": ["peft.rr=3", "LoraConfig", "did you mean 'r'?"],
    "+peft.rr=3": ["peft.rr=3", "did you mean 'r'?"],
    "+trian.x=1": ["trian", "did you mean 'train'?"],
    "trian.x=1": ["trian", "did you mean 'train'?"],
    "model=qwen2v": ["model=qwen2v", "did you mean 'qwen2vl'?", "tiny"],
    "stage=trian": ["'trian'", "did you mean 'train'?", "pipeline"],
    "stage=nowhere.train": ["stage=nowhere.train", "no module 'nowhere'"],
    "stage=vlmexp.pipeline.pipelin": ["has no function 'pipelin'"],
    "train.learning_rat=1": ["did you mean 'learning_rate'?"],
    "train.learning_rate=fast": ["train.learning_rate='fast'", "float"],
    "train.output_dir=x": ["train.output_dir", "hydra.run.dir"],
    "train.logging_steps=1.5": ["train.logging_steps=1.5", "whole number"],
    "train.hub_token=secret": ["train.hub_token", "HF_TOKEN"],
    "train.learning_rate=-1": ["train.learning_rate=-1", "at least 0"],
    "train.per_device_train_batch_size=0": ["per_device_train_batch_size=0", "at least 1"],
    "train.gradient_audit=wran": ["'wran'", "did you mean 'warn'?"],
    "train.tokens_per_batch=0": ["train.tokens_per_batch=0", "at least 1"],
    "dataset.options.streaming=true": ["dataset.options.streaming=True", "not streamed", "paths.data"],
    "train.memory_preflight=maybe": ["train.memory_preflight", "'maybe'"],
    "train.fit=atuo": ["'atuo'", "did you mean 'auto'?"],
    "train.greater_is_better=true": ["train.greater_is_better=True", "train.metric_for_best_model"],
    f"train.metric_for_best_model={'x' * 5000}": ["xxx\u2026xxx", "does not exist"],
    "train.metric_for_best_model=vqa_acc": ["'vqa_acc'", "did you mean 'vqa_accuracy'?", "loss"],
    "compare.runs=outputs": ["compare.runs takes a list: write compare.runs=[A,B]"],
    "train.early_stopping_patience=0": ["train.early_stopping_patience=0", "at least 1"],
    "train.vision_learning_rate=0": ["train.vision_learning_rate=0", "peft.train_parts"],
    "peft.r=0": ["peft.r=0", "at least 1"],
    "peft.lora_dropout=1.5": ["peft.lora_dropout=1.5", "less than 1"],
    "peft.train_parts=[lang]": ["'lang'", "did you mean 'language'?"],
    "peft.train_parts=[]": ["peft.train_parts is empty"],
    "seed=-1": ["seed=-1", "at least 0"],
    "tracking.mode=offlin": ["'offlin'", "did you mean 'offline'?"],
    "model.media=[sound]": ["model.media='sound'", "image, video"],
    "peft=null": ["peft=null", "--help"],
    "train.push_to_hub=true": ["train.push_to_hub", "export.push_to_hub"],
    "train.hub_model_id=me/it": ["train.hub_model_id", "export.push_to_hub"],
    "export.push_to_hub=it": ["export.push_to_hub='it'", "ORG/NAME"],
    "export.push_to_hub=me/-it": ["export.push_to_hub='me/-it'", "ORG/NAME"],
    "export.push=all": ["export.push='all'", "merged, adapter"],
    "export.parity_examples=-1": ["export.parity_examples=-1", "at least 0"],
    "train.enable_jit_checkpoint=true": ["train.enable_jit_checkpoint", "SIGTERM"],
    "train.fsdp=full_shard": ["train.fsdp=full_shard", "not sharded"],
    "train.train_sampling_strategy=fifo": ["'fifo'", "group_by_length"],
    "train.num_train_epochs=0": ["trains nothing", "train.max_steps"],
    "evaluation.generation.num_beam=2": ["evaluation.generation.num_beam=2", "did you mean 'num_beams'?"],
    "evaluation.generation.max_length=9": ["evaluation.generation.max_length", "evaluation.max_new_tokens"],
    "evaluation.generation.top_p=1.5": ["evaluation.generation.top_p=1.5", "at least 0 and at most 1"],
    "evaluation.generation.penalty_alpha=0.6": ["evaluation.generation.penalty_alpha=0.6", "code of the Hub"],
    "evaluation.generation.guidance_scale=0": ["evaluation.generation.guidance_scale=0", "where there are images"],
    "evaluation.generation.suppress_tokens=' '": ["evaluation.generation.suppress_tokens=' '", "a list of token ids"],
    "evaluation.generation.eos_token_id=1": ["evaluation.generation.eos_token_id", "model.end_of_turn"],
    "stage=export": ["stage=export", "run=DIRECTORY"],
    "peft.r=abc": ["peft.r='abc'", "int"],
    "hydra.launcher.array_parallelism=2": ["no option 'array_parallelism'", "hydra/launcher=slurm_local"],
    f"hydra.run.dir={__file__}": [f"{__file__} is a file", "another folder"],
    "peft.config_class=LoroConfig": ["'LoroConfig'", "did you mean 'LoraConfig'?"],
    "seed=abc": ["seed", "'abc'"],
    "seed=": ["seed"],
    "=3": ["'=3'", "option=value"],
    "foo": ["foo"],
    "peft.r=[": ["'['"],
    "modle=tiny": ["modle", "did you mean 'model'?"],
    "model.dtype=bf16": ["model.dtype='bf16'", "bfloat16"],
    "model.id=vlmexp:huge": ["vlmexp:huge", "vlmexp:tiny"],
    "experiment=pretrain": ["experiment=pretrain", "did you mean 'pretrain_tiny'?"],
    "evaluation.batch_size=0": ["evaluation.batch_size=0", "at least 1"],
    "evaluation.split=tset": ["'tset'", "did you mean 'test'?"],
    "evaluation.blind=shufle": ["'shufle'", "did you mean 'shuffle'?"],
    "evaluation.answers=rnk": ["'rnk'", "did you mean 'rank'?"],
    "dataset.metadata=[prediction]": ["dataset.metadata=[prediction]", "rename the column"],
    "evaluation.choices=[a,b]": ["evaluation.choices=['a', 'b']", "evaluation.answers=rank"],
    "evaluation.metrics=[cider,tests.evaluation.odd_metrics.cider]": ["both give a value named 'cider'"],
    "evaluation.metrics=[tests.evaluation.odd_metrics.fails]": ["odd_metrics.fails fails on", "division by zero"],
    "evaluation.metrics=[vqa_acc]": ["'vqa_acc'", "did you mean 'vqa_accuracy'?"],
    "dataset.columns.question=null": ["dataset.columns.question"],
    "dataset.options.foo=3": ["dataset.options.foo=3", "easyvqa"],
    "collator.overlong=cut": ["collator.overlong='cut'", "shorten_text"],
    "collator.messages.0.content.0.text='{sytem_prompt}'": ["{sytem_prompt}", "did you mean 'system_prompt'?"],
    "collator.messages.1.content.0.text=Red": ["'Red'", "has no {answer}"],
    "run=": ["run= is empty"],
    "collator.messages.0.content.1.text='{answer}'": ["{answer} is no field"],
    "run=/nowhere": ["run=/nowhere", "run.json"],
    "~peft": ["peft"],
    "peft.r=8,16": ["peft.r=8,16", "-m", "peft.r=[8,16]"],
    "dataset=files": ["dataset.options.train has no default"],
    "compare.format=xml": ["compare.format='xml'", "table, md, csv, json"],
    "compare.evaluation=tuned": ["compare.evaluation='tuned'", "did you mean 'finetuned'?"],
    "compare.diff=[a]": ["compare.diff names 1", "compare.diff=[A,B]"],
    "image=a.png": ["image=a.png is for stage=predict", "stage is pipeline"],
    "question=Is it red, or blue?": ["question=Is it red, or blue? is for stage=predict"],
    "predict.weights=mergd": ["'mergd'", "did you mean 'merged'?"],
    "predict.max_examples=0": ["predict.max_examples=0", "at least 1"],
    "dataset.submission=evalia": ["'evalia'", "did you mean 'evalai'?"],
    "preview.split=trian": ["preview.split='trian'", "did you mean 'train'?"],
    "preview.examples=0": ["preview.examples=0", "at least 1"],
    "compare.examples=-1": ["compare.examples=-1", "at least 0"],
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_mistake_gets_one_clear_sentence(argument, call, tmp_path):
    code, said = call(argument)
    assert code == 2
    assert len(said) == 1
    assert said[0].startswith("vlmexp: ")
    for part in MISTAKES[argument]:
        assert part in said[0]
    assert not list(tmp_path.iterdir())


def test_a_column_that_the_data_have_not(call):
    code, said = call("dataset.columns.image=picture")
    assert code == 2
    assert "'picture'" in said[-1]
    assert "answer, answer_type, image" in said[-1]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("id: [", ["no valid YAML", "bad.yaml"]),
        ("idd: x", ["model.idd", "did you mean 'id'?"]),
        ("seed: x", ["model.seed"]),
    ],
)
def test_a_mistake_in_ones_own_file(content, parts, cli, tmp_path):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "bad.yaml").write_text(content)
    done = cli(f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "model=bad")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


def test_a_run_is_continued_with_its_own_search_path(cli, tmp_path):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("id: vlmexp:tiny")
    (tmp_path / "probe.py").write_text("def stage(config, run):\n    return {'metric': len(run.record['attempts'])}\n")
    path = f"{ROOT}{os.pathsep}{tmp_path}"
    first = cli(f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "model=mine", "stage=probe.stage", PYTHONPATH=path)
    assert first.returncode == 0, first.stderr
    again = cli(f"run={only_run(tmp_path)}", "trust_run=true", PYTHONPATH=path)
    assert again.returncode == 0, again.stderr
    assert "stage=probe.stage; model=mine; hydra.searchpath=" in again.stderr
    assert read_json(only_run(tmp_path) / "run.json")["result"]["metric"] == 2


def test_an_option_of_full_fine_tuning_is_refused(cli):
    done = cli("peft=none", "peft.r=3")
    assert done.returncode == 2
    assert "peft.r" in done.stderr
    assert "choose peft=lora" in done.stderr


UNASKABLE = {
    "image=a.png": ['image=a.png has no question: add question="What is it?"'],
    "question=What?": ["question=What? is about nothing", "image=FILE"],
    "image=a.png video=a.mp4 question=?": ["image=a.png and video=a.mp4 are questions of different kinds"],
    "image=a.png predict.split=test question=?": ["image=a.png and predict.split=test are questions of different"],
    "image=[] question=?": ["image=[] names no file"],
    "image=gone.png question=?": ["image=gone.png: there is no such file"],
    "image=. question=?": ["image=. has no image in it"],
    "image=a.png dataset.columns.question=null dataset.required=[answer] question=?": ["leave the question out"],
    "predict.max_examples=3": ["predict.max_examples=3 is for predict.split"],
    "predict.weights=merged predict.split=test": ["predict.weights=merged is what a training run has made"],
}


@pytest.mark.parametrize("arguments", UNASKABLE)
def test_what_cannot_be_asked_makes_no_run(arguments, call, tmp_path):
    code, said = call("stage=predict", *arguments.split())
    assert code == 2
    assert len(said) == 1
    for part in UNASKABLE[arguments]:
        assert part in said[0]
    assert not (tmp_path / "outputs").exists()


def test_a_mistake_leaves_no_run_directory(cli, tmp_path):
    cli("peft.rr=3")
    assert not (tmp_path / "outputs").exists()


def test_help_names_every_choice(cli):
    done = cli("--help")
    assert done.returncode == 0
    for word in ("eval_finetuned", "qwen2vl_7b", "easyvqa", "dora", "run="):
        assert word in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--cfg", "job"], ["peft.rr=3"], ["model=qwen2v"], ["stage=compare"], ["stage=status"]],
    ids=" ".join,
)
def test_the_shell_is_free_of_torch(arguments, tmp_path, data_dir):
    script = (
        "import sys\nfrom vlmexp.main import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'numpy', 'wandb'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=tmp_path,
        env=cli_environment(data_dir),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_secret_is_no_option(cli, tmp_path):
    done = cli("tracking.entity=hf_0123456789", HF_TOKEN="hf_0123456789")
    assert done.returncode == 2
    assert "tracking.entity: its value holds that of HF_TOKEN" in done.stderr
    assert "hf_0123456789" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_dotenv_file_is_read_and_not_written_anywhere(cli, tmp_path):
    (tmp_path / ".env").write_text("WANDB_API_KEY=not-a-real-key-but-secret\nVLMEXP_PROBE=seen\n")
    (tmp_path / "probe.py").write_text(
        "import os\ndef stage(config, run):\n    print('probe', os.environ['VLMEXP_PROBE'])\n    return {}\n"
    )
    done = cli("stage=probe.stage", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert "probe seen" in done.stdout, done.stderr
    for path in only_run(tmp_path).rglob("*"):
        if path.is_file():
            assert "not-a-real-key" not in path.read_text(errors="replace"), path


def test_a_failed_run_says_where_its_traceback_is(cli, tmp_path):
    (tmp_path / "probe.py").write_text("def stage(config, run):\n    raise RuntimeError('out of luck')\n")
    done = cli("stage=probe.stage", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert done.returncode == 1
    assert "RuntimeError: out of luck" in done.stderr
    assert "Traceback" not in done.stderr
    log = only_run(tmp_path) / "train.log"
    assert str(log) in done.stderr
    assert "in stage" in log.read_text()


# Lower rooms must not reach into higher ones; a part never reaches for a stage or for the run.
LAYERS = [
    {"errors", "files", "signatures", "provenance", "interruption", "distributed", "storage", "quoting", "terminal"}
    | {"slurm", "standstill", "programs", "trust", "confidential"},
    {"screen", "bounds"},
    {"config"},
    {"checks"},
    {"runs", "report", "tracking", "suites"},
    {"data", "models"},
    {"collator"},
    {"parts"},
    {"evaluation"},
    {"export"},
    {"training"},
    {"predict"},
    {"pipeline"},
    {"comparison"},
    {"preview"},
    {"command_line", "mistyped", "main", "__main__"},
    {"launch"},
]
STAGE_FILES = {
    "data/stage.py",
    "training/arguments.py",
    "training/data.py",
    "training/stage.py",
    "training/callbacks.py",
    "training/continuing.py",
    "training/cuts.py",
    "training/rewinding.py",
    "evaluation/stage.py",
    "evaluation/answers.py",
    "evaluation/probes.py",
    "evaluation/suite.py",
    "evaluation/trained.py",
    "export/stage.py",
    "export/cards.py",
    "comparison/stage.py",
    "preview/stage.py",
    "predict/asking.py",
    "predict/questions.py",
    "predict/stage.py",
    "predict/weights.py",
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vlmexp"):
            names = [node.module] if node.module != "vlmexp" else [f"vlmexp.{alias.name}" for alias in node.names]
            found |= {name.split(".")[1] for name in names if "." in name}
    return found - {"__version__"}


@pytest.mark.parametrize("path", sorted((ROOT / "vlmexp").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    level = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    name = path.relative_to(ROOT / "vlmexp")
    room = name.parts[0].removesuffix(".py")
    if room == "__init__":
        return
    assert all(level[other] <= level[room] for other in imports_of(path))
    is_part = level["runs"] < level[room] < level["launch"] and len(name.parts) > 1 and str(name) not in STAGE_FILES
    if is_part:
        assert not imports_of(path) & {"config", "runs"}, "a part takes plain arguments"
