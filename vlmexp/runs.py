"""The run directory: who made it, how it stands, what it gave. Nothing else is needed to resume, evaluate or compare.

.hydra/               Hydra's record of the command
config.resolved.yaml  the whole configuration
run.json              identity, status, attempts, stages, result, versions
metrics.jsonl         one line for each logged step
train.log             everything that was logged, tracebacks included
checkpoints/  model/  deployment_model/  evaluation/
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vlmexp import __version__, distributed, provenance
from vlmexp.confidential import redacted, redacted_values
from vlmexp.config import Config
from vlmexp.errors import UserError, without_advice
from vlmexp.files import (
    DamagedFile,
    append_text,
    digest,
    json_line,
    read_json,
    readable_rows,
    through_json,
    write_json,
    write_text,
)
from vlmexp.interruption import Interruption, Preempted, is_in_queue
from vlmexp.standstill import shared_folders, where_it_stands
from vlmexp.storage import storage_error
from vlmexp.terminal import LogFormat
from vlmexp.tracking.tracker import Tracker

HEARTBEAT_S = 30.0
_RESERVE = 2**16  # bytes
LOST_AFTER_S = 10 * HEARTBEAT_S  # a run that says it is running and has been silent for so long has no process any more
# Each does what the ones before it do, or builds on it: the outcome of a run is that of the furthest it was used for.
STAGE_ORDER = ("preview", "download", "eval_base", "train", "export", "eval_finetuned", "pipeline")
# Groups and options that may change without changing a result: what a run does beside it, and how fast, with how much
# memory and how talkatively it is made. `run=` takes them anew, and runs that differ in nothing else are alike.
_GROUPS_BESIDE = (
    "stage", "run", "trust_run", "tracking", "export", "preview", "compare", "paths", "threads", "members",
)  # fmt: skip
NOT_IN_KEY = (
    *_GROUPS_BESIDE,
    "dataset.on_bad_sample", "dataset.max_bad_share",  # whether there is a result, but not which
    "dataset.decode_memory_mib", "dataset.decode_timeout_s", "dataset.max_file_gib",  # the same
    "dataset.submission", "dataset.submission_id",  # how answers are written that are there anyway
    # As vlmexp.data.options says, which this file may not import.
    *(f"dataset.options.{option}" for option in (
        "download", "questions_url", "images_url", "cache_dir", "cache_folder", "num_proc", "num_workers", "workers",
        "timeout", "retries", "token", "verbose",
    )),
    "evaluation.batch_size", "evaluation.invariance_examples",
    "evaluation.suite",  # it adds results and changes none
    "train.gradient_audit", "train.memory_preflight", "train.fit", "train.profile", "train.cache_vision_features",
    "train.on_divergence", "train.most_rewinds",  # what becomes of a training that failed; run.json tells what has
    "train.per_device_eval_batch_size", "train.eval_accumulation_steps", "train.eval_use_gather_object",
    "train.eval_do_concat_batches",
    "train.activation_checkpointing", "train.gradient_checkpointing", "train.torch_empty_cache_steps",
    "train.dataloader_num_workers", "train.dataloader_pin_memory", "train.dataloader_persistent_workers",
    "train.dataloader_prefetch_factor", "train.dataloader_multiprocessing_context",
    "train.save_total_limit", "train.save_on_each_node",
    "train.logging_strategy", "train.logging_steps", "train.logging_first_step", "train.logging_nan_inf_filter",
    "train.log_level", "train.log_level_replica", "train.log_on_each_node", "train.disable_tqdm",
    "train.include_num_input_tokens_seen", "train.skip_memory_metrics", "train.debug",
    "train.project", "train.trackio_space_id", "train.trackio_bucket_id", "train.trackio_static_space_id",
    "train.ddp_backend", "train.ddp_bucket_cap_mb", "train.ddp_find_unused_parameters", "train.ddp_timeout",
    "train.do_train", "train.do_eval", "train.do_predict",
)  # fmt: skip
# What the values of run.json are that its readers rely on.
_SHAPE = {
    "id": str, "stage": str, "status": str, "key": str, "created": str, "overrides": list, "attempts": list,
    "stages": dict, "fallbacks": list, "data": dict, "model": dict, "tracking": dict, "result": dict,
    "suite": dict,
}  # fmt: skip
log = logging.getLogger("vlmexp")


def config_key(config: dict[str, Any]) -> str:
    """Hash of everything in a resolved config that affects a result."""
    return digest(affecting_results(config))[:16]


def affecting_results(config: dict[str, Any], path: str = "") -> dict[str, Any]:
    """A resolved config, or the part of one at a dotted path, without what is in NOT_IN_KEY."""
    options = {name: (f"{path}.{name}" if path else str(name), value) for name, value in config.items()}
    return {
        name: affecting_results(value, option) if isinstance(value, dict) else value
        for name, (option, value) in options.items()
        if option not in NOT_IN_KEY
    }


def differences(
    old: Any, new: Any, path: str = "", ignored: Collection[str] = NOT_IN_KEY
) -> dict[str, tuple[Any, Any]]:
    """Dotted option -> (old value, new value) for every leaf that differs between two resolved configs.

    Args:
        ignored: groups and options that are not compared.
    """
    if path in ignored:
        return {}
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for name in sorted(old.keys() | new.keys(), key=str):
            found |= differences(old.get(name), new.get(name), f"{path}.{name}" if path else str(name), ignored)
        return found
    return {} if old == new else {path: (old, new)}


def read_config(directory: Path) -> dict[str, Any]:
    """The resolved configuration of a run directory; raises DamagedFile."""
    path = directory / "config.resolved.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            raise ValueError("it is cut short")
        config = OmegaConf.to_container(OmegaConf.create(text))
        if not isinstance(config, dict):
            raise ValueError("it holds no options")
    except (OSError, ValueError, AssertionError, YAMLError, OmegaConfBaseException) as error:
        raise DamagedFile(f"{path} is damaged ({' '.join(str(error).split())}): restore it from a copy.") from None
    return {str(name): value for name, value in config.items()}


def require_run(directory: Path, root: Path) -> dict[str, Any]:
    """The run.json of a run directory; a UserError that lists the newest runs if there is none."""
    if not (directory / "run.json").exists():
        newest = [str(path) for path, _ in list(finished_runs(root, unfinished=True))[:5]]
        have = f" The newest runs are: {', '.join(newest)}." if newest else f" There are no runs under {root}/ yet."
        raise UserError(f"run={directory} is not a run directory (it has no run.json).{have}")
    record = read_record(directory)
    if not record.get("stage"):
        raise DamagedFile(f"{directory / 'run.json'} is damaged (it names no stage): restore it from a copy.")
    return record


def read_record(directory: Path) -> dict[str, Any]:
    """The run.json of a run directory; raises DamagedFile for one whose values are not what they have to be."""
    record = read_json(directory / "run.json")
    if (unfit := _misshapen(record)) is not None:
        raise DamagedFile(f"{directory / 'run.json'} is damaged ({unfit}): restore it from a copy.")
    return {"overrides": [], "stages": {}, "status": "broken", **record}


def _misshapen(record: Any) -> str | None:
    """What of a run.json is not what it has to be for others to read it."""
    if not isinstance(record, dict):
        return "it is no object"
    for name, kind in _SHAPE.items():
        if not isinstance(record.get(name, kind()), kind):
            return f"{name} is {record[name]!r}"
    try:
        datetime.fromisoformat(record.get("heartbeat", now()))
    except (TypeError, ValueError):
        return f"heartbeat is {record['heartbeat']!r}"
    if not all(isinstance(text, str) for text in record.get("overrides", [])):
        return "overrides are not all texts"
    if not all(isinstance(e, dict) and isinstance(e.get("status"), str) for e in record.get("stages", {}).values()):
        return "stages are not all of the form {status: ...}"
    return None


def refuse_other_config(directory: Path, config: dict[str, Any]) -> None:
    """Raise a UserError if the directory belongs to a run with another configuration."""
    record = directory / "run.json"
    if not record.exists() or read_json(record).get("key") == config_key(config):
        return
    changed = differences(read_config(directory), config)
    if not changed:  # the key of an earlier version, which counted other options
        return
    raise UserError(
        f"{directory} belongs to a run with another configuration: {_listed(changed, 'there', 'here')}. "
        "Continue it with its own values, or leave out run= to start a new run."
    )


def refuse_other_ranks(config: dict[str, Any]) -> None:
    """Raise a UserError on all ranks unless they have the same stage and configuration; all ranks must ask."""
    first, *others = distributed.gathered(config)
    for rank, other in enumerate(others, start=1):
        changed = differences(first, other, ignored=_GROUPS_BESIDE)  # they share batches: these are to be equal, too
        if first["stage"] != other["stage"]:
            changed["stage"] = first["stage"], other["stage"]
        if changed:
            listing = _listed(changed, "on rank 0", f"on rank {rank}")
            raise UserError(f"The ranks of this job differ: {listing}. Start all of them with the same command line.")


def _listed(changed: dict[str, tuple[Any, Any]], old_place: str, new_place: str) -> str:
    """What `differences` found, in words."""
    listing = "; ".join(
        f"{option} is {old!r} {old_place} and {new!r} {new_place}" for option, (old, new) in list(changed.items())[:6]
    )
    return f"{listing} and {len(changed) - 6} more" if len(changed) > 6 else listing


def finished_runs(root: Path, unfinished: bool = False) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Run directories under `root` with their run.json, the newest first."""
    found = []
    for parent, folders, files in os.walk(root):
        if "run.json" in files:
            folders.clear()  # a run holds no runs, and its folders may be renamed under our eyes
            with contextlib.suppress(ValueError, OSError):
                found.append((Path(parent), read_record(Path(parent))))
    found.sort(key=lambda item: item[1].get("created", ""), reverse=True)
    for directory, record in found:
        if unfinished or record.get("status") == "done":
            yield directory, record


def where_it_is(directory: Path, record: dict[str, Any], config: Config) -> str:
    """A digest of all that a run has come to so far, and of the data that it has made or loaded."""
    folders = shared_folders(Path(config.paths.data).expanduser(), config.dataset.options)
    return where_it_stands(directory, record["stages"], folders)


def now() -> str:
    """The time in UTC, as run.json writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Run:
    """An open run directory. Only the main process writes.

    `record` is the content of run.json; every change goes through `update`, which replaces the file at once.
    `interruption` knows whether the run was told to stop; `tracker` is what vlmexp.tracking has open for the run.
    `decides` says whether the outcome of this attempt is that of the run: a stage that is done again in a finished run
    changes neither its status nor its result.
    `whole` is the run itself, and of a part of it (vlmexp.suites) the run that has it; `name` tells parts apart.
    """

    name = ""

    def __init__(
        self, directory: Path, record: dict[str, Any], is_main: bool, interruption: Interruption, decides: bool
    ) -> None:
        self.directory = directory
        self.decides = decides
        self.record = record
        self.is_main = is_main
        self.interruption = interruption
        self.tracker = Tracker()
        self.whole = self
        self._lock = threading.RLock()

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: Path, config: Config, overrides: list[str]) -> Iterator[Run]:
        """Create or continue the run in `directory`; on leaving the block its status is done, failed or preempted.

        Raises:
            UserError: the directory belongs to another configuration, or another process is working in it, or the
                ranks of the job differ.
        """
        is_main = distributed.rank() == 0
        values = dataclasses.asdict(config)
        refuse_other_ranks(values)
        directory = directory.resolve()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = _lock(directory) if is_main else None
        except OSError as error:
            other = UserError(f"The run directory {directory} cannot be written: {error.strerror}.")
            raise storage_error(error, directory) or other from None
        refuse_other_config(directory, values)
        path = directory / "run.json"
        record = read_json(path) if path.exists() else _new_record(directory, values, is_main)
        goes_further = _goes_further(config.stage, record["stage"])
        decides = goes_further or config.stage == record["stage"]
        if decides:
            record |= {"stage": config.stage, "status": "running", "key": config_key(values), "overrides": overrides}
            record.pop("error", None)
        record.setdefault("overrides", overrides)
        record["stages"] = without_running(record["stages"])
        began = {"began_at": where_it_is(directory, record, config)} if is_main and is_in_queue() else {}
        record["attempts"].append({"stage": config.stage, "overrides": overrides, **_attempt(), **began})
        log_name = "train.log" if is_main else f"train-rank{distributed.rank()}.log"
        with Interruption.listening() as interruption, _log_to(directory / log_name, to_terminal=is_main):
            if interruption.signal is not None:  # it came while modules were imported
                record["attempts"][-1]["told_at_once"] = True
            run = cls(directory, record, is_main, interruption, decides)
            stop = threading.Event()
            beat = threading.Thread(target=run._beat, args=(stop,), daemon=True)
            try:
                if is_main:
                    write_text(
                        directory / "config.resolved.yaml", redacted(OmegaConf.to_yaml(OmegaConf.create(values)))
                    )
                    run.path(".reserve").write_bytes(b"\0" * _RESERVE)
                run.update()
                beat.start()
                interruption.check()
                yield run
                run._finish("done")
            except BaseException as raised:
                interruption.hold()
                reason = interruption.reason(raised)
                if run._outcome(reason) == "preempted":
                    run._finish("preempted")
                    if not isinstance(reason, Preempted | KeyboardInterrupt):
                        reason = Preempted(interruption.signal or signal.SIGTERM)
                    distributed.announce_stop(getattr(reason, "signal", signal.SIGINT))
                    if reason is not raised:
                        raise reason from raised
                    raise
                on_disk = storage_error(raised, directory)
                told = on_disk or reason
                run._release_reserve()
                log.debug(without_advice("".join(traceback.format_exception(raised))))
                run._finish("failed", error=without_advice(f"{type(told).__name__}: {told}"))
                if told is not raised:
                    raise told from raised
                raise
            finally:
                stop.set()
                if beat.is_alive():
                    beat.join()
                if lock is not None:
                    lock.close()

    def path(self, *parts: str) -> Path:
        return self.directory.joinpath(*parts)

    @contextlib.contextmanager
    def about(self) -> Iterator[None]:
        """What is wrong in the block is said of the run; a part of a run names itself."""
        yield

    def update(self, **values: Any) -> None:
        """Merge `values` into run.json."""
        with self._lock:
            self.record |= values
            self.record["heartbeat"] = now()
            if self.is_main:
                write_json(self.path("run.json"), redacted_values(self.record))

    def conclude(self, result: dict[str, Any]) -> None:
        """Keep what the run came to.

        Raises:
            UserError: it is no dictionary that JSON can hold, or its main metric is no number.
        """
        stage = self.record["attempts"][-1]["stage"]
        if not isinstance(result, dict):
            raise UserError(
                f"stage={stage} returned {result!r}: a stage returns a dictionary with what it came to, such as "
                '{"metric": 0.5}, or an empty one.'
            )
        try:
            plain = through_json(result)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"stage={stage} returned what run.json cannot hold: {error}.") from None
        if not isinstance(plain.get("metric"), int | float | None):
            raise UserError(f"stage={stage} returned metric={plain['metric']!r}, which is no number.")
        if self.decides:
            self.update(result=plain)

    def note_fallback(self, text: str) -> None:
        """Warn once that something other than what was asked for is done, and keep it in run.json."""
        if text not in self.record["fallbacks"]:
            log.warning(text)
            self.update(fallbacks=[*self.record["fallbacks"], text])

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Record start, end and seconds of a stage; what the block puts into the yielded dict is kept as its result."""
        self.interruption.check()
        started = time.monotonic()
        entry: dict[str, Any] = {"status": "running", "started": now()}
        self.update(stages={**self.record["stages"], name: entry})
        result: dict[str, Any] = {}
        try:
            yield result
        except BaseException as error:
            entry |= {"status": self._outcome(error), "seconds": round(time.monotonic() - started, 3)}
            with contextlib.suppress(OSError):  # of a full disk, which how the run ended may still fit on
                self.update(stages={**self.record["stages"], name: entry})
            raise
        entry = {**entry, "status": "done", "seconds": round(time.monotonic() - started, 3), **result}
        self.update(stages={**self.record["stages"], name: entry})
        distributed.barrier()  # what rank 0 has written is there for all ranks

    def stage_result(self, name: str) -> dict[str, Any] | None:
        """What a finished stage of this run recorded."""
        entry = self.record["stages"].get(name)
        return entry if entry and entry["status"] == "done" else None

    def log_metrics(self, values: dict[str, Any], settled: bool = True) -> None:
        """Append one line to metrics.jsonl.

        Args:
            settled: have the disk keep it, with all lines before it.
        """
        if self.is_main:
            append_text(self.path("metrics.jsonl"), json_line(values), settled)

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that are about to be repeated from a checkpoint, and those that are damaged."""
        if self.is_main:
            path = self.path("metrics.jsonl")
            rows, damaged = readable_rows(path)
            if damaged:
                self.note_fallback(f"{path}: lines that are damaged and left out: {damaged}.")
            kept = (row for row in rows if isinstance(row.get("step"), int) and row["step"] <= step)
            write_text(path, "".join(map(json_line, kept)))

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # a full disk must not end the run from a side thread
                self.update()

    def _release_reserve(self) -> None:
        """Free what was set aside, so that a full disk still takes the end of the log and how the run ended."""
        if self.is_main:
            with contextlib.suppress(OSError):
                self.path(".reserve").unlink(missing_ok=True)

    def _outcome(self, error: BaseException) -> str:
        """What the status of something that ended with this error is."""
        if isinstance(error, Preempted | KeyboardInterrupt):
            return "preempted"
        is_consequence = self.interruption.broke_in and storage_error(error, self.directory) is None
        return "preempted" if is_consequence else "failed"

    def _finish(self, status: str, **values: Any) -> None:
        self._release_reserve()
        attempts = [*self.record["attempts"][:-1], self.record["attempts"][-1] | {"ended": now(), "status": status}]
        outcome = {"status": status, **values} if self.decides else {}
        with contextlib.suppress(OSError) if status == "failed" else contextlib.nullcontext():
            self.update(attempts=attempts, **outcome)


def without_running(stages: dict[str, Any]) -> dict[str, Any]:
    """The stages of earlier attempts: one that says it is running was killed."""
    return {
        name: entry | {"status": "lost"} if entry["status"] == "running" else entry for name, entry in stages.items()
    }


def _goes_further(stage: str, than: str) -> bool:
    known = stage in STAGE_ORDER and than in STAGE_ORDER
    return known and STAGE_ORDER.index(stage) > STAGE_ORDER.index(than)


def _new_record(directory: Path, config: dict[str, Any], is_main: bool) -> dict[str, Any]:
    return {
        "id": f"{directory.name}-{secrets.token_hex(3)}",
        "key": config_key(config),
        "vlmexp": __version__,
        "stage": config["stage"],
        "status": "running",
        "created": now(),
        "attempts": [],
        "stages": {},
        "result": {},
        "fallbacks": [],
        "git": provenance.record_git(directory) if is_main else None,
        "packages": provenance.package_versions(),
        "hardware": provenance.hardware(),
    }


def _attempt() -> dict[str, Any]:
    return {
        "started": now(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job_id": os.environ.get("SUBMITIT_LOCAL_JOB_ID") or os.environ.get("SLURM_JOB_ID"),
        "command": " ".join(sys.argv),
    }


def _lock(directory: Path) -> IO[str]:
    """Hold the directory until the process ends, however it ends."""
    file = (directory / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(
            f"Another process is working in {directory}. Wait for it, or start a run of your own."
        ) from None
    return file


class _LogFile(logging.FileHandler):
    """A log file whose disk may fill up: that ends no run, and is said once instead of a traceback for each record."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            print(f"vlmexp: {self.baseFilename} cannot be written any more: {error.strerror}.", file=sys.stderr)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written before cannot be written now
            super().close()


@contextlib.contextmanager
def _log_to(path: Path, to_terminal: bool) -> Iterator[None]:
    """Send all log records to a file, and those from INFO on of vlmexp (WARNING of others) to the terminal.

    Without `to_terminal` nothing that the block prints gets there either.
    """
    to_file = _LogFile(path, delay=True)
    to_file.setFormatter(LogFormat("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(LogFormat("%(message)s"))
    # Python's own warnings are for developers of the libraries: they go to the file only.
    least = {"vlmexp": logging.INFO, "py": logging.ERROR}
    terminal.addFilter(lambda record: record.levelno >= least.get(record.name.partition(".")[0], logging.WARNING))
    logging.captureWarnings(True)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers, root.level = [to_file, *([terminal] if to_terminal else [])], logging.INFO
    log.setLevel(logging.DEBUG)
    try:
        with Path(os.devnull).open("w") as nowhere:
            out, err = (sys.stdout, sys.stderr) if to_terminal else (nowhere, nowhere)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                yield
    finally:
        logging.captureWarnings(False)
        root.handlers, root.level = before
        to_file.close()
