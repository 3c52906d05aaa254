from __future__ import annotations

import os

# One thread: tiny tensors only lose to the synchronisation of more. Must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("WANDB_API_KEY", None)

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hydra
import pytest
from absl import logging as absl_logging
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from vlmexp import main
from vlmexp.checks import checked
from vlmexp.config import Config
from vlmexp.data.example import Example
from vlmexp.main import CONFIG_DIR

ROOT = Path(__file__).parent.parent
# absl's handler, which rouge-score brings, closes the stream that it began with when Hydra configures logging, unless
# it is one of the process's own; under pytest it would be that in which all output is captured.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__
Cli = Callable[..., subprocess.CompletedProcess[str]]


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are cores: a good part of the slow tests is waiting for SLURM and for processes."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data sets, shared by all tests."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session", autouse=True)
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where vlmexp keeps what is the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def compose(tmp_path: Path, data_dir: Path) -> Callable[..., Config]:
    """Compose and check a config as the command line would."""

    def compose_config(*overrides: str) -> Config:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
            return checked(hydra.compose("config", [f"paths.data={data_dir}", f"paths.outputs={tmp_path}", *overrides]))

    return compose_config


@pytest.fixture
def cli(tmp_path: Path, data_dir: Path) -> Cli:
    """Run `python -m vlmexp ...` in a process of its own, in an empty working directory."""

    def run(
        *arguments: str, cwd: Path = tmp_path, timeout: float = 60, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vlmexp", *arguments],
            cwd=cwd,
            env=cli_environment(data_dir) | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def call(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str]]]:
    """Call the command line in this process, in an empty folder; its exit code and its lines on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLMEXP_DATA", str(data_dir))
    for name in ("prepare", "end_with_the_pipe", "outlast_the_pipe"):
        monkeypatch.setattr(f"vlmexp.terminal.{name}", lambda: None)

    def run(*arguments: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["vlmexp", *arguments])
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().err.splitlines()

    return run


def cli_environment(data_dir: Path) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path, "VLMEXP_DATA": str(data_dir), "COLUMNS": "160"}


def only_run(folder: Path) -> Path:
    """The one run directory below a folder."""
    # Not glob: it stumbles over a checkpoint that is renamed while a run is at work.
    runs = [Path(parent) for parent, _, files in os.walk(folder) if "run.json" in files]
    assert len(runs) == 1, runs
    return runs[0]


class Disk:
    """A file system in memory, of a size that can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, size: str, *options: str) -> None:
        """Mount it, or change its size or its options."""
        remount = ["remount"] if self.folder.is_mount() else []
        chosen = ",".join([*remount, f"size={size}", *options])
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", chosen, "tmpfs", self.folder], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here (it takes root): {done.stderr.strip()}")

    def fill(self) -> None:
        """Leave no byte of it."""
        with (self.folder / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\0" * 4096):
                pass


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    yield Disk(folder)
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def processor():
    from vlmexp.models.load import ModelSource, load_processor

    return load_processor(ModelSource("vlmexp:tiny"), pytest.fail)


@pytest.fixture
def model():
    from vlmexp.models.load import ModelSource, load_model

    return load_model(ModelSource("vlmexp:tiny"), pytest.fail)


@pytest.fixture
def make_collator(processor, compose):
    from vlmexp.parts import build_collator

    def make(*overrides: str, share_images: bool = False):
        return build_collator(compose(*overrides), processor, share_images)

    return make


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Path]:
    """Write an image of the given colour and size."""

    def write(color: str, size: tuple[int, int] = (64, 64)) -> Path:
        path = tmp_path / f"{color}-{size[0]}x{size[1]}.png"
        Image.new("RGB", size, color).save(path)
        return path

    return write


def example(question: str, answer: str | Sequence[str], *images: Path, id: str = "0") -> Example:
    answers = (answer,) if isinstance(answer, str) else tuple(answer)
    return Example(id=id, fields={"question": question}, answers=answers, images=images, metadata={})


@pytest.fixture
def vqa_files(tmp_path: Path) -> Path:
    """A small data set in a folder: train.jsonl and test.jsonl with coloured squares."""
    folder = tmp_path / "squares"
    folder.mkdir()
    colors = ["red", "green", "blue", "yellow", "black", "gray", "teal", "brown"]
    for name, count in (("train", 48), ("test", 16)):
        rows = []
        for index in range(count):
            color = colors[index % len(colors)]
            image = folder / f"{name}-{index // 2}.png"
            picture = Image.new("RGB", (64, 64), colors[(index // 2) % len(colors)])
            picture.putpixel((index // 2, int(name == "test")), (9, 9, 9))  # no two files show the same
            picture.save(image)
            rows.append({"picture": image.name, "query": f"what color is it? ({index})", "response": color})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
