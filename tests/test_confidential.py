"""Secrets: refused as options however they get there, and in nothing that is written."""

from __future__ import annotations

import base64
import os
import sys
import urllib.parse
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vlmexp.confidential import kind_of, known, redacted
from vlmexp.main import main

TOKEN = "hf_PLANTEDplantedPLANTED0123"
KEY = "3f786850e387550fdab836ed7e6dc881de23001b"  # 40 letters of hex, as W&B's keys and git's commits are
PASSWORD = "pa55/w:rd+plant"


def holds(data: bytes, secret: str) -> bool:
    """Whether bytes hold a secret: as it is, in an address, or in base64 wherever it begins."""
    shifted = [base64.b64encode(b"x" * before + secret.encode()).decode()[4:-4] for before in range(3)]
    forms = [secret, urllib.parse.quote(secret, safe=""), urllib.parse.quote(secret), *shifted]
    return any(form.encode() in data for form in forms)


def planted_in(folder: Path, *but: str) -> list[str]:
    """The files below a folder that hold one of the secrets."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in but]
    assert files
    return [str(path) for path in files if any(holds(path.read_bytes(), secret) for secret in (TOKEN, KEY, PASSWORD))]


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A working directory and an environment with secrets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{urllib.parse.quote(PASSWORD, safe='')}@proxy:3128")
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(f"id: vlmexp:tiny\nrevision: {TOKEN}\n")
    (tmp_path / "conf" / "model" / "read.yaml").write_text("id: vlmexp:tiny\nend_of_turn: x${oc.env:WANDB_API_KEY}\n")
    return tmp_path


SEARCHED = "hydra.searchpath=[file://conf]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["tracking.name=${oc.env:HF_TOKEN}"],
        ["tracking.name='run of ${oc.env:HF_TOKEN}, again'"],
        ["tracking.project=${tracking.name}", "tracking.name=${oc.env:WANDB_API_KEY}"],
        ["dataset=files", "dataset.options.train=[a.jsonl,'${oc.env:HF_TOKEN}']"],
        ["evaluation.choices=[yes,'${oc.env:DB_PASSWORD}']"],
        ["collator.messages.0.content.1.text='{question} ${oc.env:HF_TOKEN}'"],
        ["dataset.columns={image: image, question: '${oc.env:HF_TOKEN}', answer: answer}"],
        ["model.model_kwargs={hf_neverInAnyEnvironment12: 1}"],
        ["+hydra.job.env_set.WANDB_API_KEY='${oc.env:WANDB_API_KEY}'"],
        ["+hydra.job.env_set={PROBE: '${oc.env:HF_TOKEN}'}"],
        ["+hydra.job.env_set.OTHER_API_KEY=0123456789abcdef0123456789abcdef01234567"],
        ["hydra.run.dir='runs/${oc.env:HF_TOKEN}'"],
        ["hydra.job.name=${oc.env:HF_TOKEN}"],
        [f"tracking.entity={KEY}"],
        [f"tracking.entity={base64.b64encode(TOKEN.encode()).decode().rstrip('=')}"],
        ["model.revision=hf_neverInAnyEnvironment12"],
        ["tracking.entity=sk-proj-neverInAnyEnv1ronment"],
        ["dataset=vqav2", "dataset.options.questions_url='https://me:secret99@host/x'"],
        ["+dataset.options.storage_options.secret=not-in-the-env1ronment"],
        [SEARCHED, "model=mine"],
        [SEARCHED, "model=read"],
        ["--config-dir=conf", "model=mine"],
        ["--config-dir", "conf", "model=read"],
        ["-m", "seed=0,1", "tracking.name=${oc.env:HF_TOKEN}"],
        ["-m", "seed=0,1", "hydra/launcher=slurm", "hydra.launcher.setup=['export X=${oc.env:HF_TOKEN}']"],
        ["-m", "seed=0,1", "hydra/launcher=slurm", "hydra.launcher.setup=['export MY_API_KEY=never1nAnyEnvironment']"],
        ["-m", "seed=0,1", SEARCHED, "model=mine"],
        ["-m", "tracking.name=plain,'${oc.env:HF_TOKEN}'"],
        ["-m", SEARCHED, "model=tiny,read"],
        ["-m", "hydra/sweeper=optuna", "tracking.name=choice(a,'${oc.env:HF_TOKEN}')"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_secret_is_refused_before_anything_is_written(arguments, planted, capsys, monkeypatch):
    before = [path for path in planted.rglob("*") if path.is_file()]
    monkeypatch.setattr(sys, "argv", ["vlmexp", *arguments])
    monkeypatch.setattr("vlmexp.main.terminal.outlast_the_pipe", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main()
    out, said = capsys.readouterr()
    assert ended.value.code == 2, said
    assert "options are kept with the run" in said, said
    assert not any(holds((out + said).encode(), secret) for secret in (TOKEN, KEY, PASSWORD, "secret99"))
    assert [path for path in planted.rglob("*") if path.is_file()] == before


def test_what_is_no_secret_is_no_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "falsefalse")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/ssh-agent.123")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("API_KEY", "short")
    assert not {"TOKENIZERS_PARALLELISM", "SSH_AUTH_SOCK", "HF_TOKEN_PATH", "API_KEY"} & known().keys()
    for text in (
        "model.revision=0123456789abcdef0123456789abcdef01234567", "http://localhost:8080/a@b", "EOS_TOKEN = <eos>",
        "image_token: <image>", "disk-1234567890123456789", "sk-learn-is-no-key-of-anything", "export HF_TOKEN=$MINE",
        "HF_TOKEN is read from the environment", "10:30:12,345 INFO a@b",
    ):  # fmt: skip
        assert kind_of(text) is None, text
        assert redacted(text) == text


def test_secrets_leave_a_text_in_every_form(monkeypatch):
    monkeypatch.setenv("MY_KEY", secret := "ab+/cd==zz%\"q'x9\nnext")
    monkeypatch.setenv("DATABASE_URL", "postgres://me:hunter2x@db/x")
    encoded = base64.b64encode(f"me:{secret}".encode()).decode()
    assert redacted(f"<{secret}>") == "<<MY_KEY>>"
    assert redacted(f"{secret!r}") == "'<MY_KEY>'"
    assert redacted(urllib.parse.quote(secret, safe="")) == "<MY_KEY>"
    assert base64.b64encode(secret.encode()).decode()[4:-4] not in redacted(f"Basic {encoded}")
    assert redacted("to postgres://me:hunter2x@db/x") == "to postgres://me:<DATABASE_URL>@db/x"
    assert redacted("https://a:pw@b") == "https://a:<a password in a URL>@b"
    assert redacted("Bearer abcdefghij0123456789") == "Bearer <a bearer's token>"


def test_what_libraries_keep_in_files_is_a_secret(monkeypatch, tmp_path):
    (tmp_path / "token").write_text("hf_short12\n")
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password netrc-passw0rd\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert redacted("a hf_short12 and netrc-passw0rd") == "a <huggingface/token> and <netrc 0>"


PROBE = """
import logging, os, subprocess, sys, warnings

def stage(config, run):
    token, key, password = (os.environ[name] for name in ("HF_TOKEN", "WANDB_API_KEY", "DB_PASSWORD"))
    print("printed", token)
    print("printed", key, file=sys.stderr)
    logging.getLogger("library").warning("GET https://me:%s@hub/x?key=%s", password, key)
    warnings.warn(f"warned of {token!r}")
    run.note_fallback(f"fallback {token}")
    run.update(model={"id": key, token: [password, {"x": f"<{token}>"}]})
    if config.seed == 1:
        raise RuntimeError(f"401 with Authorization: Bearer {token} and {password}")
    return {"metric": 1.0, "note": token}
"""


@pytest.fixture
def probing(planted) -> dict[str, str]:
    (planted / "probe.py").write_text(PROBE)
    return {"PYTHONPATH": f"{ROOT}{os.pathsep}{planted}"}


def test_no_file_of_a_failed_run_holds_a_secret(probing, cli, planted):
    (planted / ".env").write_text(f"HF_TOKEN={TOKEN}\nDB_PASSWORD={PASSWORD}\n")
    done = cli("stage=probe.stage", "seed=1", **probing)
    assert done.returncode == 1, done.stderr
    assert not any(holds((done.stdout + done.stderr).encode(), secret) for secret in (TOKEN, KEY, PASSWORD))
    log = next(planted.glob("outputs/*/*/train.log")).read_text()
    assert "GET https://me:<DB_PASSWORD>@hub/x?key=<WANDB_API_KEY>" in log
    assert planted_in(planted / "outputs") == []


@pytest.mark.slow
def test_no_file_of_a_sweep_holds_a_secret(probing, cli, planted):
    done = cli(
        "-m", "stage=probe.stage", "seed=0,1", f"hydra.searchpath=[file://{planted / 'conf'}]", "hydra.sweep.dir=sweep",
        "hydra/launcher=slurm_local", **probing,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "point 1 failed" in done.stderr
    assert "revision: <HF_TOKEN>" in next(planted.glob("sweep/code/*/searchpath-0/model/mine.yaml")).read_text()
    assert not any(holds((done.stdout + done.stderr).encode(), secret) for secret in (TOKEN, KEY, PASSWORD))
    assert planted_in(planted / "sweep") == []
