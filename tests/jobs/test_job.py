"""Whole jobs as a user types them, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT, cli_environment, only_run
from vlmexp.files import read_json, read_jsonl

pytestmark = pytest.mark.slow

NO_NETWORK = """
import socket

def refuse(self, address, *rest):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        raise AssertionError(f"a network call to {address}")
    return connect(self, address, *rest)

connect, socket.socket.connect = socket.socket.connect, refuse
socket.getaddrinfo = lambda *a, **k: (_ for _ in ()).throw(AssertionError(f"a look-up of {a}"))
"""

DEPLOYED = """
import json, sys
from pathlib import Path
from PIL import Image
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

torch.set_num_threads(1)
folder, data, out = map(Path, sys.argv[1:])
model, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
answers = []
for row in json.loads(data.read_text()):
    content = [
        {"type": "image"},
        {"type": "text", "text": row["question"] + "\\nAnswer briefly."},
    ]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[prompt], images=[Image.open(row["image"])], return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1]:]
    answers.append(processor.batch_decode(tokens, skip_special_tokens=True)[0].strip())
assert not [name for name in sys.modules if name.startswith("vlmexp")]
out.write_text(json.dumps(answers))
"""

SHORT = [
    "threads=1", "train.per_device_train_batch_size=16", "train.max_steps=4", "train.eval_steps=2",
    "dataset.max_examples={train: 200, validation: 40, test: 60}", "evaluation.batch_size=60",
]  # fmt: skip


def test_the_main_job(cli, tmp_path, data_dir):
    """`python -m vlmexp`: no network, a table, what was gained, and a merged model that needs nothing of ours."""
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = cli(PYTHONPATH=path, HF_HUB_OFFLINE="0", OMP_NUM_THREADS="", timeout=1500)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    record = read_json(run / "run.json")
    assert record["status"] == "done"
    assert record["fallbacks"] == []
    assert record["data"]["share_images"] is True
    assert record["data"]["splits"]["train"]["dropped"] == 0
    base, tuned = (read_json(run / "evaluation" / f"{n}_vlm_model_evaluation.json") for n in ("base", "finetuned"))
    assert base["n"] == tuned["n"] == 9_673
    assert base["metrics"]["vqa_accuracy"] < 0.20
    assert tuned["metrics"]["vqa_accuracy"] >= 0.96
    for kind in ("yes/no", "open"):
        assert tuned["by"]["answer_type"][kind]["metrics"]["vqa_accuracy"] >= 0.94
    assert tuned["blind"]["n"] == 1000
    assert tuned["blind"]["metrics"]["vqa_accuracy"] < tuned["metrics"]["vqa_accuracy"] - 0.1, "the model does not look"
    assert tuned["blind"]["by"]["answer_type"]["open"]["metrics"]["vqa_accuracy"] < 0.5
    for part in ("VQA accuracy", "fine-tuned", "gain", "9,673", "all of it", "deployment_model", "metrics.jsonl"):
        assert part in done.stdout
    for part in ("evaluate base: 100%", "train: 100%", "evaluate fine-tuned: 100%"):
        assert part in done.stderr, done.stderr[-3000:]

    folder = Path(record["data"]["folder"])
    rows = read_jsonl(run / "evaluation" / "finetuned_vlm_model_predictions.jsonl")[::48][:200]
    asked = [{"question": row["question"], "image": str(folder / row["images"][0])} for row in rows]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    (tmp_path / "deployed.py").write_text(DEPLOYED)
    arguments = [str(run / "deployment_model"), str(tmp_path / "asked.json"), str(tmp_path / "answers.json")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "deployed.py", *arguments], cwd=tmp_path, env=environment, check=True)
    assert len(rows) == 200
    assert read_json(tmp_path / "answers.json") == [row["prediction"] for row in rows]


def test_stages_one_by_one_from_another_folder(cli, tmp_path):
    """Each stage on its own; eval_finetuned finds the training run by itself."""
    assert "prepared data" in cli("stage=download").stdout
    for stage in ("eval_base", "train", "eval_finetuned"):
        done = cli(f"stage={stage}", *SHORT, timeout=200)
        assert done.returncode == 0, done.stderr
    runs = {read_json(path)["stage"]: path.parent for path in tmp_path.glob("outputs/*/*/run.json")}
    assert runs.keys() == {"download", "eval_base", "train", "eval_finetuned"}
    assert (runs["eval_base"] / "evaluation" / "base_vlm_model_evaluation.json").exists()
    result = read_json(runs["eval_finetuned"] / "evaluation" / "finetuned_vlm_model_evaluation.json")
    assert result["n"] == 60
    trained_by = read_json(runs["eval_finetuned"] / "run.json")["stages"]["eval_finetuned"]["trained_by"]
    assert trained_by == str(runs["train"].resolve())

    # The same by name, with the training run's own options and another sample.
    done = cli("stage=eval_finetuned", f"run={runs['train']}", "evaluation.max_examples=30", timeout=200)
    assert done.returncode == 0, done.stderr
    newest = max(tmp_path.glob("outputs/*/*/run.json"), key=lambda path: read_json(path)["created"])
    written = read_json(newest.parent / "evaluation" / "finetuned_vlm_model_evaluation.json")
    assert (written["n"], written["sample"]) == (30, "random sample with seed 0")
    assert not (runs["train"] / "evaluation").exists()

    # Its own options are part of it.
    refused = cli("stage=eval_finetuned", f"run={runs['train']}", "peft.r=5")
    assert refused.returncode == 2
    assert "peft.r is 16 there and 5 here" in refused.stderr


def test_eval_finetuned_without_a_training_run(cli):
    done = cli("stage=eval_finetuned", *SHORT)
    assert done.returncode == 2
    assert "no finished training run of vlmexp:tiny on easyvqa" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_runs_of_the_same_second_get_two_directories(tmp_path, data_dir):
    (tmp_path / "probe.py").write_text("def stage(config, run):\n    return {}\n")
    environment = cli_environment(data_dir)
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    command = [sys.executable, "-m", "vlmexp", "stage=probe.stage"]
    both = [subprocess.Popen(command, cwd=tmp_path, env=environment) for _ in range(4)]
    assert [process.wait(60) for process in both] == [0] * 4
    assert len(list(tmp_path.glob("outputs/*/*/run.json"))) == 4


def test_a_sweep_without_a_cluster(cli, tmp_path):
    (tmp_path / "probe.py").write_text(
        "def stage(config, run):\n    return {'metric': config.peft['r'] * config.train['learning_rate']}\n"
    )
    done = cli(
        "-m", "stage=probe.stage", "peft.r=4,8", "train.learning_rate=1e-4,1e-3",
        PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = sorted(read_json(path)["result"]["metric"] for path in tmp_path.glob("multirun/*/*/*/run.json"))
    assert results == pytest.approx([4e-4, 8e-4, 4e-3, 8e-3])


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_tracking_needs_no_key_and_asks_nothing(tracker, cli, tmp_path):
    done = cli("stage=train", f"tracking={tracker}", *SHORT, timeout=300)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    if tracker == "wandb":
        assert list(run.glob("wandb/offline-run-*/*.wandb"))
    else:
        assert list(run.glob("tensorboard/**/events.out.tfevents.*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]


def test_the_wheel_brings_its_config_and_its_model(tmp_path, data_dir):
    """Built, installed beside the dependencies of this environment, and run through the console script."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True, capture_output=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site_packages = tmp_path / "venv" / "lib" / version / "site-packages"
    mine = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages / "dependencies.pth").write_text("\n".join(mine))
    environment = {**cli_environment(data_dir), "PYTHONPATH": ""}
    script = tmp_path / "venv" / "bin" / "vlmexp"
    done = subprocess.run(
        [script, "stage=eval_base", *SHORT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "VQA accuracy" in done.stdout
    where = [python, "-c", "import vlmexp, vlmexp.main as m; print(vlmexp.__file__, m.CONFIG_DIR)"]
    paths = subprocess.run(
        where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert all(path.startswith(str(site_packages)) for path in paths)
