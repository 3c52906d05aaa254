"""Models of the Hub: downloads, and every answer of the Hub in a sentence. The Hub is a server of our own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT, only_run
from tests.models.hub_server import COMMIT, TOKEN, TOKEN_WITHOUT_ACCESS, HubServer, serving
from tests.models.test_load_errors import shard
from vlmexp.files import read_json
from vlmexp.models.load import ASSETS

# Loads what each case names and prints a line of JSON for it; the environment decides which Hub that is.
CLIENT = """
import json, os, sys, torch
from vlmexp.errors import UserError
from vlmexp.models.load import ModelSource, check_model, commit, load_model
torch.set_num_threads(1)
for case in json.load(sys.stdin):
    os.environ.pop("HF_TOKEN", None)
    if token := case.pop("token", None):
        os.environ["HF_TOKEN"] = token
    source, notes = ModelSource(**case), []
    try:
        check_model(source, notes.append)
        model = load_model(source, notes.append)
        said = {"commit": commit(source), "sum": float(model.lm_head.weight.abs().sum()), "notes": notes}
    except UserError as error:
        said = {"error": str(error)}
    print("said", json.dumps(said), flush=True)
"""
MODEL, CUT = "org/model", "org/cut"
CASES = {
    "whole": {"id": MODEL},
    "by commit": {"id": MODEL, "revision": COMMIT},
    "sharded": {"id": "org/sharded"},
    "cut once": {"id": CUT},
    "cut forever": {"id": "org/cut-forever"},
    "no model": {"id": "org/nothing"},
    "no model for this token": {"id": "org/nothing", "token": TOKEN},
    "no revision": {"id": MODEL, "revision": "v9"},
    "gated": {"id": "org/gated"},
    "gated, no access": {"id": "org/gated", "token": TOKEN_WITHOUT_ACCESS},
    "gated, access": {"id": "org/gated", "token": TOKEN},
    "bad token": {"id": MODEL, "token": "hf_expired", "revision": "main"},
    "pickle": {"id": "org/pickle"},
    "no weights": {"id": "org/empty"},
    "no config": {"id": "org/bare"},
    "no id": {"id": "no such id"},
}


def ask(cases: list[dict], home: Path, **environment: str) -> list[dict]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-c", CLIENT],
        input=json.dumps(cases),
        env=kept | {"PYTHONPATH": path, "HF_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    said = [json.loads(line.removeprefix("said ")) for line in done.stdout.splitlines() if line.startswith("said ")]
    assert len(said) == len(cases), done.stderr
    return said


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub") / "org"
    for name in ("model", "cut", "cut-forever", "gated", "sharded", "pickle", "empty", "bare"):
        shutil.copytree(ASSETS / "tiny", root / name)
    for name in ("pickle", "empty"):
        (root / name / "model.safetensors").unlink()
    (root / "pickle" / "pytorch_model.bin").write_bytes(b"a pickle")
    (root / "bare" / "config.json").unlink()
    shard(root / "sharded")
    with serving(root.parent) as server:
        yield server


@pytest.fixture
def away() -> str:
    """An endpoint where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def answers(hub: HubServer, home: Path) -> dict[str, dict]:
    return dict(zip(CASES, ask(list(CASES.values()), home, HF_ENDPOINT=hub.endpoint), strict=True))


@pytest.mark.parametrize("case", ["whole", "by commit", "sharded", "cut once", "gated, access"])
def test_a_download_is_the_model(case, answers, model):
    assert answers[case] == {
        "commit": COMMIT,
        "sum": pytest.approx(model.lm_head.weight.detach().abs().sum().item()),
        "notes": [],
    }


def test_a_cut_download_is_resumed(answers, hub):
    gets = [line for line in hub.requests if line.startswith(f"GET /{CUT}/resolve/") and line.endswith(".safetensors")]
    assert len(gets) == 2


@pytest.mark.parametrize(
    ("case", "parts"),
    {
        "no model": ["model.id=org/nothing", "no such model", "needs HF_TOKEN", "./org/nothing"],
        "no model for this token": ["no such model", "your HF_TOKEN has no access"],
        "no revision": ["model.revision=v9", "org/model", "no such branch, tag or commit"],
        "gated": ["org/gated is gated", "accept its licence at http://", "/org/gated", "set HF_TOKEN"],
        "gated, no access": ["org/gated is gated", "the account of your HF_TOKEN has no access"],
        "bad token": ["refuses your HF_TOKEN"],
        "pickle": ["org/pickle", "pickled weights only", "use_safetensors=false"],
        "no weights": ["org/empty has no weights", "model.safetensors"],
        "no config": ["org/bare has no config.json"],
        "no id": ["model.id=no such id is neither a Hub id (ORG/NAME) nor a local folder"],
        "cut forever": ["org/cut-forever", "cannot be reached"],
    }.items(),
)
def test_an_answer_of_the_hub_is_a_sentence(case, parts, answers):
    for part in parts:
        assert part in answers[case]["error"]
    assert "\n" not in answers[case]["error"]


def test_offline_the_cache_is_used(answers, hub, home):
    cases = [{"id": MODEL}, {"id": "org/sharded"}, {"id": "org/other"}, {"id": "org/cut-forever"}]
    whole, sharded, other, cut = ask(cases, home, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1")
    assert whole["commit"] == sharded["commit"] == COMMIT
    assert "org/other is not in the cache" in other["error"]
    assert "HF_HUB_OFFLINE=1" in other["error"]
    assert "org/cut-forever is not in the cache" in cut["error"]


@pytest.mark.parametrize("endpoint", ["away", "down"])
def test_a_hub_that_does_not_answer_is_not_needed(endpoint, answers, hub, home, away):
    hub.is_down = endpoint == "down"
    try:
        (whole,) = ask([{"id": MODEL}], home, HF_ENDPOINT=away if endpoint == "away" else hub.endpoint)
    finally:
        hub.is_down = False
    assert whole["commit"] == COMMIT
    assert whole["notes"] == [f"The Hub cannot be reached: {MODEL} is taken from the cache as it is there."]


@pytest.mark.slow
def test_a_hub_that_is_down_or_away(hub, away, tmp_path):
    """The libraries try for 23 s, so both are asked at once."""
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(ask, [{"id": f"org/{name}"}], tmp_path, HF_ENDPOINT=endpoint)
                for name, endpoint in (("other", away), ("down", hub.endpoint))]  # fmt: skip
        other, down = (job.result()[0]["error"] for job in jobs)
    assert f"org/other is not (wholly) in the cache ({tmp_path}" in other
    assert f"{away} cannot be reached" in other
    assert f"{hub.endpoint} answers 503 to model.id=org/down" in down


def test_a_wrong_id_shows_before_the_data_are_made(hub, cli, tmp_path):
    done = cli(
        "model=auto", "model.id=org/nothing", f"paths.data={tmp_path / 'data'}",
        HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "hf"),
    )  # fmt: skip
    assert done.returncode == 2
    assert "model.id=org/nothing" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_a_run_records_the_commit(hub, cli, tmp_path, vqa_files):
    done = cli(
        "model=auto", f"model.id={MODEL}", "stage=train",
        "dataset=files", f"dataset.options.train={vqa_files}/train.jsonl",
        "dataset.columns={image: picture, question: query, answer: response}", "train=smoke", "train.max_steps=1",
        "train.bf16=false", "train.eval_strategy=no", "train.save_strategy=no",
        HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "hf"), timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = read_json(only_run(tmp_path) / "run.json")["model"]
    assert model["id"] == MODEL
    assert model["commit"] == COMMIT
