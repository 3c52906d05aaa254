"""A run directory from somebody else: what is taken from it, and what waits for the user's word."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vlmexp import command_line, programs, trust
from vlmexp.config import Config
from vlmexp.errors import UserError
from vlmexp.files import write_json
from vlmexp.main import CONFIG_DIR, main
from vlmexp.provenance import git_state

# One for each field that names code, a file to be written, a program or Hydra's own; and the ways to write an option.
TRAPS = [
    "stage=evil.go",
    "stage='evil.go'",
    "dataset.source=evil.go",
    "dataset.metrics=[vqa_accuracy,evil.go]",
    "evaluation.metrics=[evil.go]",
    "export.writer=evil.go",
    "model.export_writer=evil.go",
    "model.import_path=evil",
    "model.model_class=evil.Model",
    "model.processor_class=evil.Processor",
    "model.trust_remote_code=true",
    "++model.trust_remote_code=true",
    "model.trust_remote_code=${oc.decode:'true'}",
    "model.attn_implementation=evil/kernel",
    "model.model_kwargs.use_safetensors=false",
    "model.model_kwargs={weights_only: false}",
    "model.model_kwargs.use_kernels=true",
    "model.processor_kwargs.tokenizer_file=/evil",
    "peft.megatron_core=evil",
    "+peft.megatron_config={a: 1}",
    "peft.auto_mapping={parent_library: evil}",
    "peft.revision=${dataset.name}",
    "evaluation.generation.custom_generate=evil/code",
    "train.deepspeed=evil.json",
    "train.report_to=evil",
    "hydra.searchpath=[file:///evil]",
    "+hydra.job.env_set={PATH: /evil}",
    "hydra.callbacks.evil._target_=evil.Callback",
    "+hydra.callbacks={evil: {_target_: evil.Callback}}",
    "hydra/launcher=slurm",
    "hydra/job_logging=evil",
    "hydra.output_subdir=../../evil",
    "hydra.run.dir.x=1",
    "recipe/train=evil",
    "model=evil",
    "model=../../evil",
    "dataset=/evil/data",
    "model@dataset=tiny",
    "experiment=[pretrain_tiny,../evil]",
    "model={id: evil}",
    "~model.import_path",
    "train.metric_for_best_model=../evil/accuracy",
    "evaluation.suite=[../evil]",
    "suite=../evil",
    "members={evil: {source: evil.rows}}",
    "evil=1",
    "+evil.code=1",
    "evil",
    "peft.r=[",
    "tracking.name=${oc.env:HOME}",
    "tracking.name='run of ${oc.env:HOME}'",
    "dataset.options={train: '${oc.env:HOME}/x'}",
    "collator.messages=[{role: '${oc.decode:user}'}]",
    "dataset.name=../../evil",
    "preview.output=~/.bashrc",
    "compare.html=/evil",
    "export.push_to_hub=you/yours",
]
ORDINARY = [
    "stage=train", "seed=3", "model=qwen2vl", "peft=dora", "experiment=pretrain_tiny", "tracking=wandb",
    "tracking.name='my run'", "model.id=/models/mine", "model.revision=abc123",
    "model.processor_kwargs.max_pixels=1000",
    "model.processor_kwargs.size={shortest_edge: 3, longest_edge: 4}", "model.end_of_turn='<|im_end|>'",
    "model.trust_remote_code=false", "dataset=files", "dataset.options.train='/data/a=b, c.jsonl'",
    "dataset.source=hub",
    "dataset.columns={image: path, question: q, answer: qa.answers}", "dataset.metrics=[anls,exact_match]",
    "dataset.splits={train: 'train[:10]'}", "+dataset.max_examples.train=5",
    "collator.messages.0.content.1.text='Q: {question}'", "collator.system_prompt='Be brief: {x} ${tracking.name}'",
    "peft.r=32", "peft.lora_alpha=${peft.r}", "peft.target_modules='.*\\.(q|v)_proj'", "peft.use_rslora=true",
    "peft.quantization={load_in_4bit: true, bnb_4bit_quant_type: nf4}", "peft.train_parts=[language]",
    "train.learning_rate=1e-4", "++train.warmup_steps=10", "train.optim=adamw_torch",
    "train.lr_scheduler_kwargs={a: 1}",
    "train.metric_for_best_model=vqa_accuracy", "train.metric_for_best_model=textvqa/vqa_accuracy", "suite=ocr",
    "evaluation.suite=[textvqa,pope]", "evaluation.generation={do_sample: true, top_p: 0.9}",
    "evaluation.choices=['yes, sir',no]", "paths.data=/scratch/data", "run=outputs/other", "export.push_to_hub=null",
]  # fmt: skip


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A run directory whose run.json can be written, and a module in the working directory that leaves a mark."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text(
        "from pathlib import Path\n\nPath('ran').touch()\n\n\ndef go(*_):\n    return {}\n"
    )

    def write(*overrides: str, **values) -> Path:
        record = {"id": "d", "stage": "train", "status": "preempted", "key": "", "overrides": list(overrides)}
        write_json(tmp_path / "D" / "run.json", record | {"attempts": [], "stages": {}, "result": {}} | values)
        return tmp_path / "D"

    return write


def told(capsys, *arguments: str) -> str:
    """What the command line says of an error that the user can put right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vlmexp", *arguments])
        patch.setattr("vlmexp.main.terminal.outlast_the_pipe", lambda: None)
        patch.setattr("vlmexp.main.terminal.end_with_the_pipe", lambda: None)
        with pytest.raises(SystemExit) as ended:
            main()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert said.startswith("vlmexp: "), said
    assert said.count("\n") == 1, said
    return said


def test_what_can_run_code_waits_for_the_users_word():
    assert [text for text in TRAPS if not trust.untrusted([text], CONFIG_DIR)] == []


def test_what_is_data_is_taken():
    assert trust.untrusted(ORDINARY, CONFIG_DIR) == []


def test_every_option_is_on_the_list_or_waits():
    """A new option waits for the user's word until it is put on the list."""
    values = dataclasses.asdict(Config())
    names = [
        f"{group}.{name}" if isinstance(value, dict) else group
        for group, value in values.items()
        for name in (value if isinstance(value, dict) else [group])
    ]
    assert len(names) > 100
    assert [n for n in names if trust.untrusted_options({n: None})] == ["trust_run", "model.import_path"]
    assert trust.untrusted_options({}) == []


@pytest.mark.parametrize(
    "stage", ["", "train", "eval_base", "export", "eval_finetuned", "preview", "download", "compare"]
)
def test_every_stage_refuses_a_run_with_traps(stage, stored, capsys, tmp_path):
    inherited = [text for text in TRAPS if not text.startswith(("stage", "hydra.run.dir"))]
    directory = stored(*inherited, stage="evil.go")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    said = told(capsys, *([f"stage={stage}"] if stage else []), f"run={directory}")
    for text in [*inherited, *([] if stage else ["stage=evil.go"])]:
        assert text in said
    assert "trust_run=true" in said
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("trap", ["run=${oc.env:HOME}", "run@model=evil", "++run='${oc.env:HOME}'", "~run"])
def test_the_run_that_it_looked_at_is_an_option_too(trap, stored, capsys):
    assert trap in told(capsys, f"run={stored(trap)}")


def test_its_own_word_does_not_count(stored, capsys):
    for word in ("trust_run=true", "++trust_run=true"):
        assert "model.import_path=evil" in told(capsys, f"run={stored(word, 'model.import_path=evil')}")


def test_the_users_word_takes_all_and_lists_it(stored, capsys):
    directory = stored("model.import_path=evil", "peft.r=3", "hydra.searchpath=[file:///mine]", stage="evil.go")
    arguments = command_line.inherit_from_run([f"run={directory}", "trust_run=true"], CONFIG_DIR)
    assert arguments[:4] == [
        "model.import_path=evil", "peft.r=3", "hydra.searchpath=[file:///mine]", "stage=evil.go",
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert "trust_run=true" in said
    assert "stage=evil.go; model.import_path=evil; hydra.searchpath=[file:///mine]" in said
    assert "peft.r" not in said


def test_what_is_given_anew_is_the_users_own(stored, capsys):
    directory = stored("evaluation.metrics=[evil.go]", "model=mine", "seed=3")
    given = [f"run={directory}", "evaluation.metrics=[mine.own]", "model=tiny"]
    assert "seed=3" in command_line.inherit_from_run(given, CONFIG_DIR)
    given = [f"run={directory}", "evaluation.metrics=[anls]", "hydra.searchpath=[file:///mine]"]
    assert "model=mine" in command_line.inherit_from_run(given, CONFIG_DIR)
    assert capsys.readouterr().err == ""


def test_an_ordinary_run_is_continued_without_a_word(stored, capsys):
    arguments = command_line.inherit_from_run([f"run={stored(*ORDINARY)}"], CONFIG_DIR)
    assert set(ORDINARY) - {"stage=train", "run=outputs/other"} <= set(arguments)
    assert capsys.readouterr().err == ""


def test_links_lead_nowhere_else(stored, tmp_path):
    directory = stored("seed=3")
    logs = directory / "wandb" / "offline-run-20261127_173447-x1" / "logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to("/home/somebody/.cache/wandb/logs/core.log")  # as W&B makes them
    (directory / "wandb" / "latest-run").symlink_to(logs.parent.name)
    arguments = [f"run={directory}", "stage=train"]
    command_line.inherit_from_run(arguments, CONFIG_DIR)
    (directory / "train.log").symlink_to(tmp_path / ".bashrc")
    with pytest.raises(UserError, match=r"train\.log -> "):
        command_line.inherit_from_run(arguments, CONFIG_DIR)


@pytest.mark.parametrize(
    "values",
    [
        {"overrides": "stage=evil.go"}, {"overrides": [{"stage": "evil.go"}]}, {"stage": ["evil.go"]}, {"stage": ""},
        {"stages": {"train": "done"}}, {"attempts": {}}, {"result": []}, {"heartbeat": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_of_another_shape_is_a_sentence(values, stored, capsys):
    assert "run.json is damaged (" in told(capsys, f"run={stored(**values)}")


def test_a_dotenv_file_of_a_run_directory_is_not_read(stored, capsys, monkeypatch):
    directory = stored("seed=3")
    (directory / "model").mkdir()
    (directory / "model" / ".env").write_text("VLMEXP_PROBE=evil\n")
    monkeypatch.chdir(directory / "model")
    command_line.read_dotenv()
    assert "VLMEXP_PROBE" not in os.environ
    assert "is not read" in capsys.readouterr().err


def test_programs_are_those_of_the_users_path(tmp_path, monkeypatch):
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool").write_text(f"#!/bin/sh\necho {name}\n")
        (tmp_path / name / "tool").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join(["", ".", "theirs", str(tmp_path / "mine")]))
    with programs.of_the_user():
        monkeypatch.setenv("PATH", str(tmp_path / "theirs"))
        assert programs.program("tool") == str(tmp_path / "mine" / "tool")
        with programs.users_path():
            said = subprocess.run([programs.program("tool")], capture_output=True, text=True, check=True).stdout
        assert said == "mine\n"
        assert os.environ["PATH"] == str(tmp_path / "theirs")
    assert programs.program("tool") == str(tmp_path / "theirs" / "tool")
    monkeypatch.setenv("PATH", "theirs")
    with pytest.raises(FileNotFoundError, match="no tool"):
        programs.program("tool")


def test_git_starts_nothing_of_a_repositorys(tmp_path, monkeypatch):
    if (git_state(ROOT) or {}).get("sha") is None:
        pytest.skip("there is no git, or the tests do not lie in a checkout")
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    trap.chmod(0o755)
    repository = tmp_path / "repository"
    repository.mkdir()

    def git(*arguments: str) -> None:
        command = ["git", "-C", str(repository), "-c", "user.name=x", "-c", "user.email=x@y", *arguments]
        subprocess.run(command, check=True, capture_output=True)

    git("init")
    (repository / "file").write_text("one\n")
    (repository / ".gitattributes").write_text("file diff=trap filter=trap\n")
    git("add", ".")
    git("commit", "-m", "x")
    (repository / "file").write_text("two\n")
    for name in ("core.fsmonitor", "diff.external", "diff.trap.command", "diff.trap.textconv", "core.pager"):
        git("config", name, str(trap))
    (tmp_path / "ran").unlink(missing_ok=True)
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", str(trap))
    state = git_state(repository)
    assert state is not None
    assert "+two" in state["diff"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_run_with_its_programs_in_its_own_environment(cli, tmp_path):
    """`hydra.job.env_set` of the user's own reaches the stage, and names no program of ours."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text("#!/bin/sh\ntouch ran\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    (tmp_path / "probe.py").write_text(
        "import os\n\n\ndef stage(config, run):\n    print(os.environ['PATH'])\n    return {}\n"
    )
    done = cli(
        f"+hydra.job.env_set={{PATH: {tmp_path / 'bin'}}}", "stage=probe.stage",
        PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "bin")
    assert not (tmp_path / "ran").exists()
    assert json.loads(next(tmp_path.glob("outputs/*/*/run.json")).read_text())["status"] == "done"
