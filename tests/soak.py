"""Disturbs trainings for as long as one asks, and compares what they come to with an undisturbed one, bit for bit.

    python -m tests.soak --hours 8 --seed 1

A chain is a run from its data to its evaluation, in as many lives as it takes: each is disturbed at a random moment,
half of them while something is being written, and the next one goes on. Lives are forked from this process, which has
imported everything: a start costs a second instead of ten. The undisturbed runs are made by the real command line and
by torchrun. Ctrl-C gives the report so far. It exits with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

from tests.conftest import cli_environment
from vlmexp.files import read_json, read_jsonl

JOB = [
    "threads=1", "dataset=files", "dataset.splits.validation=null", "dataset.validation_fraction=0.2",
    "dataset.columns={image: picture, question: query, answer: response}", "peft.r=4", "peft.lora_dropout=0.1",
    "train.per_device_train_batch_size=4", "train.gradient_accumulation_steps=1", "train.max_steps=8",
    "train.logging_steps=1", "train.eval_steps=2", "train.save_steps=2", "train.save_total_limit=2",
    "train.memory_preflight=false", "train.load_best_model_at_end=true", "train.eval_generation_examples=4",
    "evaluation.batch_size=4", "export.parity_examples=2",
]  # fmt: skip
CHAINS = {
    "pipeline": ["pipeline"],
    "stages": ["download", "eval_base", "train", "export", "eval_finetuned"],
}
SHARES = {"pipeline": 1.0, "download": 0.05, "eval_base": 0.4, "train": 0.6, "export": 0.4, "eval_finetuned": 0.4}
TIMED = (
    "samples_per_s",
    "tokens_per_s",
    "mfu",
    "data_wait",
    "memory_gib",
)  # of a line of metrics, all but what is computed
COMPARED = ("model/*.safetensors", "deployment_model/*.safetensors", "evaluation/*.jsonl", "evaluation/*.json")
COLORS = ("red", "green", "blue", "yellow", "black", "gray", "teal", "brown")
MOST_LIVES = 14  # disturbed ones of a chain; then it is left alone
SLOW = 0.3  # of all disturbed lives
PATIENCE_S = 120.0  # a life that takes longer hangs
ROOM = "1g"


def draw_data(folder: Path) -> list[str]:
    """Coloured squares with questions, and the options that name them."""
    folder.mkdir(parents=True)
    options = []
    for split, count in (("train", 60), ("test", 16)):
        rows = []
        for index in range(count):
            picture = Image.new("RGB", (48, 48), COLORS[index % len(COLORS)])
            picture.putpixel((index % 48, 3 if split == "test" else 1), (9, 9, 9))  # no two show the same
            picture.save(folder / f"{split}-{index}.png")
            answer = COLORS[index % len(COLORS)]
            query = f"what color is it? ({index})"
            rows.append({"picture": f"{split}-{index}.png", "query": query, "response": answer})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        options.append(f"dataset.options.{split}={folder / split}.jsonl")
    return options


class Disk:
    """A file system in memory that can be filled; a folder where none can be mounted, which takes root."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.can_fill = self._mount(ROOM) == 0

    def _mount(self, size: str) -> int:
        chosen = f"{'remount,' if self.folder.is_mount() else ''}size={size}"
        command = ["mount", "-t", "tmpfs", "-o", chosen, "tmpfs", str(self.folder)]
        return subprocess.run(command, capture_output=True).returncode

    def leave(self, room: int) -> None:
        """Have so many bytes free."""
        usage = shutil.disk_usage(self.folder)
        self._mount(str(usage.used + room))

    def grow(self) -> None:
        if self.can_fill:
            self._mount(ROOM)

    def close(self) -> None:
        if self.can_fill:
            subprocess.run(["umount", "--lazy", self.folder], capture_output=True)


@dataclass
class Life:
    """The processes of one attempt."""

    pid: int
    said: Path
    started: float = field(default_factory=time.monotonic)
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self) -> int | None:
        """Its exit code; None if it hangs, and then it is ended."""
        while self.poll() is None and time.monotonic() - self.started < PATIENCE_S:
            time.sleep(0.01)
        if self.code is None:
            self.end()
            return None
        return self.code

    def processes(self) -> list[int]:
        """The first process and all below it."""
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
        found = [self.pid]
        for pid in found:
            found += parents.get(pid, [])
        return found

    def signal(self, number: int, pids: list[int] | None = None) -> None:
        for pid in self.processes() if pids is None else pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> None:
        """Kill all of it."""
        if self.poll() is None:
            self.signal(signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def warm() -> None:
    """Import all that a run needs; nothing here starts a thread, so that a fork is a process as any other."""
    import vlmexp.data.stage
    import vlmexp.evaluation.stage
    import vlmexp.export.stage
    import vlmexp.main
    import vlmexp.pipeline
    import vlmexp.training.stage  # noqa: F401


def begin(arguments: list[str], ranks: int, said: Path, altered: Callable[[], None] | None) -> Life:
    """Start `vlmexp ARGUMENTS` on so many processes, in a session of its own.

    Args:
        altered: changes what the processes see of the machine.
    """
    pid = os.fork()
    if not pid:
        _live(arguments, ranks, said, altered)
    return Life(pid, said)


def _live(arguments: list[str], ranks: int, said: Path, altered: Callable[[], None] | None) -> NoReturn:
    os.setsid()
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(out, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if ranks == 1:
        _work(arguments, altered)
    _launch(arguments, ranks, altered)


def _work(arguments: list[str], altered: Callable[[], None] | None) -> NoReturn:
    from vlmexp import main

    code = 1
    try:
        if altered:
            altered()
        sys.argv = ["vlmexp", *arguments]
        main.main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _launch(arguments: list[str], ranks: int, altered: Callable[[], None] | None) -> NoReturn:
    """As torchrun does: the first process to fail, and a signal to this one, end all of them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    pids, codes = [], list[int]()
    for rank in range(ranks):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        pid = os.fork()
        if not pid:
            _work(arguments, altered)
        pids.append(pid)

    def end(number: int, *_: Any) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, end)
    while len(codes) < ranks:
        pid, status = os.wait()
        pids.remove(pid)
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1]:
            end(signal.SIGTERM)
            signal.signal(signal.SIGALRM, lambda *_: end(signal.SIGKILL))
            signal.alarm(30)
    os._exit(next((code % 256 for code in codes if code), 0))


@dataclass
class Soak:
    """All chains of one call, and what came of them."""

    disk: Disk
    options: list[str]
    random: random.Random
    references: dict[int, Path]
    calm_s: float = 10.0  # an undisturbed life
    hit: Counter[tuple[str, str]] = field(default_factory=Counter)  # disturbance, how the life ended
    at: Counter[str] = field(default_factory=Counter)  # the stage that was hit
    chains: Counter[str] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)
    writing: int = 0  # disturbed lives that were writing something

    @property
    def kills(self) -> int:
        return sum(count for (kind, code), count in self.hit.items() if KILLING[kind] and code != "0")

    def chain(self, kind: str, ranks: int, only: list[str]) -> None:
        """One run from its data to its evaluation, disturbed again and again, then compared."""
        number = sum(self.chains.values())
        folder, lives = self.disk.folder / f"chain-{number}", 0
        folder.mkdir()
        for stage in CHAINS[kind]:
            while True:
                lives += 1
                disturbance = self.random.choice(only) if lives <= MOST_LIVES else "none"
                ended, said = self.life(folder, stage, ranks, disturbance)
                if ended == 0:
                    break
                if ended is None or lives > MOST_LIVES + 4 or (disturbance == "none" and ended):
                    self.losses.append(f"{stage} of chain {number} ended with {ended} ({disturbance}): {said[-600:]}")
                    break
        self.chains[f"{kind}, {ranks} process{'es' if ranks > 1 else ''}"] += 1
        lost = differences(self.references[ranks], folder, kind)
        self.losses += [f"chain {number} ({kind}, {ranks}): {text}" for text in lost]
        if not lost:
            shutil.rmtree(folder)
        done = f"chain {number} ({kind}, {ranks}): {lives} lives, {self.kills} kills so far"
        print(f"{done}, lost: {lost or 0}", flush=True)

    def life(self, folder: Path, stage: str, ranks: int, disturbance: str) -> tuple[int | None, str]:
        """Start an attempt, disturb it, and wait for its end; its exit code and what it said."""
        run = folder / (stage if stage in ("download", "eval_base", "eval_finetuned") else "run")
        if stage == "eval_finetuned":
            arguments = [f"stage={stage}", f"run={folder / 'run'}", f"hydra.run.dir={run}"]
        elif (run / "run.json").exists():
            arguments = [f"stage={stage}", f"run={run}"]
        else:
            arguments = [f"stage={stage}", *JOB, *self.options, f"paths.data={folder / 'data'}", f"hydra.run.dir={run}"]
        if self.random.random() < 0.3 and stage in ("train", "pipeline"):
            arguments.append("train.dataloader_num_workers=1")
        said = folder / "said"
        said.unlink(missing_ok=True)
        life = begin(arguments, ranks, said, self._altered(disturbance))
        was_hit = False
        try:
            if disturbance != "none":
                self._wait_for_moment(life, folder, SHARES[stage] * self.calm_s)
                if was_hit := life.poll() is None:
                    self.at[_stage_now(run, stage)] += 1
                    DISTURBANCES[disturbance](self, life, run)
            code = life.wait()
        finally:
            life.end()
            self.disk.grow()
        text = said.read_text(errors="replace")
        if was_hit:
            self.hit[disturbance, "hung" if code is None else str(code)] += 1
        if "Traceback (most recent call last)" in text:
            self.losses.append(f"a traceback in {stage} after {disturbance}: {text[-600:]}")
        return code, text

    def _altered(self, disturbance: str) -> Callable[[], None] | None:
        """What the processes see of the machine; a slow disk in many lives, as it is hit in the midst of writing."""
        share, is_slow = self.random.random(), self.random.random() < SLOW
        if disturbance == "clock":
            return jumping_clock(share)
        return slow_disk(share) if disturbance == "slow" or (is_slow and disturbance != "none") else None

    def _wait_for_moment(self, life: Life, folder: Path, within_s: float) -> None:
        """Wait for a random time, and every other time then for something that is being written."""
        until = life.started + self.random.uniform(0, within_s)
        while life.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        if self.random.random() < 0.5:
            while life.poll() is None and not _is_writing(folder) and time.monotonic() < until + 3:
                time.sleep(0.003)
            self.writing += life.poll() is None
            time.sleep(self.random.uniform(0, 0.02))


def _is_writing(folder: Path) -> bool:
    """Whether something lies there under a temporary name, or a checkpoint without its list."""
    for parent, folders, files in os.walk(folder):
        if any(name.endswith(".partial") for name in (*folders, *files)):
            return True
        with contextlib.suppress(OSError):
            if "files.json" in files and Path(parent, "files.json").stat().st_size < 8:
                return True
    return False


def _stage_now(run: Path, stage: str) -> str:
    with contextlib.suppress(OSError, ValueError):
        stages = read_json(run / "run.json")["stages"]
        return next((name for name, entry in stages.items() if entry["status"] == "running"), "between stages")
    return f"start of {stage}"


def kill(soak: Soak, life: Life, run: Path) -> None:
    life.signal(signal.SIGKILL)


def kill_one(soak: Soak, life: Life, run: Path) -> None:
    """A process below the first one, be it a rank or a worker; the first where there are no others."""
    pids = life.processes()
    life.signal(signal.SIGKILL, [soak.random.choice(pids[1:] or pids)])


def terminate(soak: Soak, life: Life, run: Path) -> None:
    """As a user, a launcher or SLURM does: one process, or all of them."""
    pids = life.processes()
    life.signal(signal.SIGTERM, soak.random.choice([[soak.random.choice(pids)], pids, pids[:1]]))


def preempt(soak: Soak, life: Life, run: Path) -> None:
    """The signal with which submitit announces a preemption."""
    life.signal(signal.SIGUSR2, life.processes()[:1])


def fill(soak: Soak, life: Life, run: Path) -> None:
    soak.disk.leave(soak.random.choice([0, 4096, 60_000, 400_000, 2_000_000]))


def stall(soak: Soak, life: Life, run: Path) -> None:
    """Some processes stand still as on a disk that hangs; then all are killed."""
    pids = life.processes()
    some = soak.random.sample(pids, soak.random.randint(1, len(pids)))
    life.signal(signal.SIGSTOP, some)
    time.sleep(soak.random.uniform(0.05, 1))
    life.signal(signal.SIGCONT, some)
    time.sleep(soak.random.uniform(0, 0.5))
    life.signal(signal.SIGKILL)


def cut_power(soak: Soak, life: Life, run: Path) -> None:
    """Kill it, and take from the newest checkpoint, from the journals and the metrics what a power loss might.

    The metrics of a training that is done have reached the disk with its last checkpoint.
    """
    is_training = _stage_now(run, "train") == "train"
    life.signal(signal.SIGKILL)
    life.wait()
    checkpoints = sorted(run.glob("checkpoints/checkpoint-*"), key=lambda path: path.stat().st_mtime)
    files = [path for path in checkpoints[-1].iterdir() if path.is_file()] if checkpoints else []
    files = soak.random.sample(files, min(len(files), soak.random.randint(0, 2)))
    metrics = [run / "metrics.jsonl"] if is_training else []
    for path in [*files, *run.glob("evaluation/*.partial-rank*.jsonl"), *metrics]:
        if path.exists() and path.stat().st_size:
            size = path.stat().st_size
            keep = soak.random.choice([0, 1, size // 2, size - 1])
            os.truncate(path, keep)
            if soak.random.random() < 0.4:
                os.truncate(path, size)  # the rest reads as zeros


DISTURBANCES: dict[str, Callable[[Soak, Life, Path], None]] = {
    "kill": kill,
    "kill one": kill_one,
    "power": cut_power,
    "term": terminate,
    "preempt": preempt,
    "full": fill,
    "stall": stall,
    "slow": kill,
    "clock": kill,
}
KILLING = {name: name not in ("term", "preempt", "full") for name in DISTURBANCES}


def slow_disk(share: float) -> Callable[[], None]:
    """Whatever waits for the disk waits for up to 0.2 s more."""

    def alter() -> None:
        sync = os.fsync
        os.fsync = lambda number: (time.sleep(0.2 * share), sync(number))[1]

    return alter


def jumping_clock(share: float) -> Callable[[], None]:
    """The time of day is days off, and jumps back and forth; what Python's own modules in C ask for stays."""

    def alter() -> None:
        import datetime

        import vlmexp.runs

        now, offset = time.time, (share - 0.5) * 4e6
        time.time = lambda: now() + (offset if int(now() * 2) % 2 else -offset)

        class Shifted(datetime.datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> Any:
                return datetime.datetime.fromtimestamp(time.time(), tz)

        vlmexp.runs.datetime = Shifted  # type: ignore[misc]

    return alter


def differences(reference: Path, folder: Path, kind: str) -> list[str]:
    """What a chain has otherwise than the undisturbed run."""
    lost = []
    for pattern in COMPARED:
        wanted = {path.relative_to(reference): path.read_bytes() for path in sorted(reference.glob(pattern))}
        for name, content in wanted.items():
            place = folder / "run" / name
            if kind == "stages" and name.parts[0] == "evaluation":
                place = folder / ("eval_base" if name.name.startswith("base") else "eval_finetuned") / name
            if not place.exists():
                lost.append(f"{name} is not there")
            elif place.read_bytes() != content:
                lost.append(f"{name} differs")
    lines = [
        [{name: value for name, value in row.items() if name not in TIMED} for row in read_jsonl(run / "metrics.jsonl")]
        for run in (reference, folder / "run")
    ]
    if lines[0] != lines[1]:
        lost.append("metrics.jsonl differs")
    for path in folder.rglob("run.json"):
        if (status := read_json(path)["status"]) != "done":
            lost.append(f"{path.parent.name} is {status}")
    lost += [f"{path.name} is left" for path in folder.rglob(".*.partial")]
    return lost


def make_reference(folder: Path, ranks: int, options: list[str], data: Path) -> None:
    """An undisturbed pipeline, by the real command line or by torchrun."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    job = ["stage=pipeline", *JOB, *options, f"paths.data={data}", f"hydra.run.dir={folder}"]
    command = [sys.executable, *launcher, "-m", "vlmexp", *job]
    done = subprocess.run(command, env=cli_environment(data), cwd=folder.parent, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"The undisturbed run failed: {done.stderr[-2000:]}")


@contextlib.contextmanager
def workplace(seed: int) -> Iterator[tuple[Path, Disk]]:
    folder = Path(tempfile.mkdtemp(prefix=f"soak-{seed}-"))
    disk = Disk(folder / "disk")
    try:
        yield folder, disk
    finally:
        disk.close()
        shutil.rmtree(folder, ignore_errors=True)


def report(soak: Soak, hours: float) -> str:
    """What was done and what was lost."""
    kinds = [
        f"  {kind:<10} {sum(n for (k, _), n in soak.hit.items() if k == kind):>5}   "
        + ", ".join(f"{n} ended with {code}" for (k, code), n in sorted(soak.hit.items()) if k == kind)
        for kind in DISTURBANCES
        if any(k == kind for k, _ in soak.hit)
    ]
    where = ", ".join(f"{stage} {count}" for stage, count in soak.at.most_common())
    done = ", ".join(f"{count} of {kind}" for kind, count in sorted(soak.chains.items()))
    return "\n".join(
        [
            f"{hours:.2f} hours, {sum(soak.hit.values())} disturbed lives, {soak.kills} kills "
            f"({soak.writing} of the lives hit while they wrote)",
            *kinds,
            f"hit in: {where}",
            f"chains: {done}",
            f"lost: {len(soak.losses)}",
            *(f"  {text}" for text in soak.losses),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--kills", type=int, help="stop after so many, at the end of a chain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=CHAINS, default=list(CHAINS))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=DISTURBANCES, default=list(DISTURBANCES))
    given = parser.parse_args()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    began = time.monotonic()
    with workplace(given.seed) as (folder, disk):
        options = draw_data(folder / "squares")
        references = {ranks: folder / f"reference-{ranks}" for ranks in given.processes}
        for ranks, place in references.items():
            make_reference(place, ranks, options, folder / "reference-data")
        warm()
        soak = Soak(disk, options, random.Random(given.seed), references)
        only = [name for name in given.only if name != "full" or disk.can_fill]
        if len(only) < len(given.only):
            print("Nothing can be mounted here, which takes root: disks do not fill up.")
        try:
            calm = time.monotonic()
            soak.chain("pipeline", given.processes[0], ["none"])
            soak.calm_s = time.monotonic() - calm
            while time.monotonic() - began < given.hours * 3600 and (given.kills is None or soak.kills < given.kills):
                soak.chain(soak.random.choice(given.stages), soak.random.choice(given.processes), only)
        except KeyboardInterrupt:
            print("Interrupted.")
        print(report(soak, (time.monotonic() - began) / 3600))
        return int(bool(soak.losses))


if __name__ == "__main__":
    sys.exit(main())
