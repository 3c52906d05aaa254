"""The client of a sweep: submits points, waits for them and says what became of each."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Sequence

from vlmexp.errors import UserError
from vlmexp.interruption import interrupt, uninterrupted
from vlmexp.launch.point import RunPoint
from vlmexp.launch.queues import Queue, queue_of
from vlmexp.launch.sweep import Plan, Point, Standing, Sweep

# Parts of the reasons that squeue gives for a job that does not start before somebody does something about it.
_STUCK = (
    "held", "Held", "Hold", "BadConstraints", "DependencyNeverSatisfied", "InvalidAccount", "InvalidQOS", "NotAllowed",
    "PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "PerJob",
)  # fmt: skip
_SETTLING_LOOKS = 3  # a shared file system may show the end of a run a little after the queue does


class SweepFailed(UserError):
    """Some points did not reach their end; the text lists them all."""

    exit_code = 1


def current(sweep: Sweep, points: Sequence[Point] | None = None) -> list[Standing]:
    """How the points stand now."""
    plan = sweep.plan
    jobs, states = _look(sweep, _queue(sweep, plan), plan.kind)
    return sweep.standings(states, points, jobs)


def refuse_another_launcher(sweep: Sweep, kind: str) -> None:
    """Raise a UserError if points are under way in a queue of another kind, where nobody would look for them."""
    if not (sweep.directory / "launch.json").exists() or sweep.plan.kind == kind:
        return
    under_way = [standing for standing in current(sweep) if standing.status in ("pending", "running")]
    if under_way:
        jobs = [standing.job for standing in under_way if standing.job is not None]
        raise UserError(
            f"{sweep.directory} has {len(under_way)} points under way with another launcher: wait for them "
            f"(stage=resume {sweep.argument}), cancel them ({_queue(sweep, sweep.plan).cancel_command(jobs)}), "
            "or choose another hydra.sweep.dir."
        )


def run_points(sweep: Sweep, wanted: Sequence[Standing], plan: Plan, queued: Sequence[Point] = ()) -> list[Standing]:
    """Submit points and, with `wait`, stay until all of them have ended.

    Other clients of the sweep may do so at the same time: a point is left to the first that comes to it.

    Args:
        wanted: points that are not in the queue, as they stood when that was found out.
        queued: others, which are: those of a client that is gone or of one that is at work.

    Returns:
        how the points stand at the end; nothing without `wait`.

    Raises:
        UserError: the queue refuses them.
    """
    queue, settings = _queue(sweep, plan), plan.settings
    todo = list(wanted)
    watched = [*(standing.point for standing in wanted), *queued]
    if not settings["wait"] and plan.kind == "foreground":
        raise UserError("hydra.launcher.wait=false: these points run on the client's own terminal, so it has to stay.")
    shown: dict[int, str] = {}
    started, unsettled = time.monotonic(), 0
    try:
        signal.signal(signal.SIGTERM, interrupt)  # means to the client what Ctrl-C does
        while True:
            with sweep.locked() if todo else contextlib.nullcontext():
                jobs, states = _look(sweep, queue, plan.kind)
                todo = [standing for standing in todo if jobs.get(standing.point.point) == standing.job]
                if states is not None:
                    free = _places(queue, len(states), len(todo), settings["wait"])
                    with uninterrupted():  # a job that is submitted is recorded
                        submitted = _submit(sweep, [standing.point for standing in todo[:free]], queue, plan)
                        todo = todo[free:]
                    jobs |= submitted
                    states |= dict.fromkeys(submitted.values(), "PENDING")
            if states is not None:
                if not settings["wait"]:
                    print(_how_to_go_on(sweep, queue, _submitted(sweep, watched, todo)))
                    return []
                left = [standing.point for standing in todo]
                standings = sweep.standings(states, [point for point in watched if point not in left], jobs)
                at_work = bool(todo) or any(standing.status in ("pending", "running") for standing in standings)
                unsettled = 0 if at_work else unsettled + any(s.status in ("lost", "preempted") for s in standings)
                for standing in standings:
                    _announce(standing, shown)
                if not at_work and unsettled in (0, _SETTLING_LOOKS):
                    return standings
            time.sleep(min(max(0.5, (time.monotonic() - started) / 20), queue.patience_s))
    except KeyboardInterrupt:
        with uninterrupted():
            ours = _submitted(sweep, watched, todo)
            print(f"\n{_interrupted(sweep, queue, ours, len(todo), settings['cancel_on_interrupt'])}", flush=True)
        raise


def refuse_failures(sweep: Sweep, standings: Sequence[Standing]) -> None:
    """Raise SweepFailed with every point that did not end well, its last words and its log."""
    bad = [standing for standing in standings if standing.status != "done"]
    if not bad:
        return
    varied = sweep.varied()
    lines = [f"{len(bad)} of {len(standings)} points did not reach their end:"]
    for standing in bad:
        words, log = sweep.last_words(standing)
        lines.append(f"  point {standing.point.point} {standing.status}: {varied[standing.point.point]}")
        lines += [f"    {line}" for line in words.splitlines()]
        lines += [f"    log: {log}"] if log else []
    again = " resume.failed=true" if any(standing.status == "failed" for standing in bad) else ""
    lines.append(f"Run them again: python -m vlmexp stage=resume {sweep.argument}{again}")
    raise SweepFailed("\n".join(lines))


def _queue(sweep: Sweep, plan: Plan) -> Queue:
    return queue_of(plan.kind, plan.settings, sweep.directory / ".submitit")


def _look(sweep: Sweep, queue: Queue, kind: str) -> tuple[dict[int, str], dict[str, str] | None]:
    """The job of each point, and the states of those that have not ended: jobs of another kind of queue have."""
    submissions = sweep.submissions
    jobs = {point: row["job"] for point, row in submissions.items()}
    asked = [row["job"] for row in submissions.values() if row.get("queue", kind) == kind]
    return jobs, queue.states(asked) if asked else {}


def _places(queue: Queue, busy: int, wanted: int, waits: bool) -> int:
    """How many jobs may be submitted now; a UserError if the others would have to wait for a client that does not."""
    if queue.parallel is None:
        return wanted
    free = max(0, queue.parallel - busy)
    if wanted > free and not waits:
        raise UserError(
            f"hydra.launcher.wait=false: {wanted} points are to run {queue.parallel} at a time, with {busy} at work, "
            "for which the client of a local sweep has to stay. Raise hydra.launcher.array_parallelism, or wait."
        )
    return free


def _submitted(sweep: Sweep, watched: Sequence[Point], todo: Sequence[Standing]) -> list[str]:
    """The jobs of the points that this client waits for."""
    jobs, left = sweep.jobs, [standing.point for standing in todo]
    return [jobs[point.point] for point in watched if point.point in jobs and point not in left]


def _submit(sweep: Sweep, points: Sequence[Point], queue: Queue, plan: Plan) -> dict[int, str]:
    """Number of a point -> its job."""
    if not points:
        return {}
    varied = sweep.varied()
    functions = [RunPoint(sweep.directory, point.point, tuple(plan.hydra_overrides)) for point in points]
    jobs = queue.submit(functions, sweep.directory / plan.code)
    of_points = dict(zip((point.point for point in points), jobs, strict=True))
    try:
        sweep.note_jobs(of_points, plan.kind)
    except OSError:  # for one of a full disk; jobs that nobody knows of would be submitted once more
        queue.cancel(jobs)
        raise
    for number, job in of_points.items():
        print(f"  point {number:>3}  job {job:<10} {varied[number]}", flush=True)
    return of_points


def _announce(standing: Standing, shown: dict[int, str]) -> None:
    number, status = standing.point.point, standing.status
    if status in ("running", "done", "failed") and shown.get(number) != status:
        shown[number] = status
        metric = ((standing.record or {}).get("result") or {}).get("metric") if status == "done" else None
        print(
            f"  point {number:>3}  {status}{f'  metric={metric:.6g}' if isinstance(metric, int | float) else ''}",
            flush=True,
        )
    elif standing.reason and any(word in standing.reason for word in _STUCK) and shown.get(number) != standing.reason:
        shown[number] = standing.reason
        why = f"SLURM does not start job {standing.job} ({standing.reason})"
        print(f"  point {number:>3}  pending: {why}; mend that, or end it: scancel {standing.job}", flush=True)


def _interrupted(sweep: Sweep, queue: Queue, jobs: Sequence[str], left: int, cancel: bool) -> str:
    """Cancel the jobs if that was asked for, and say what becomes of every point."""
    rest = f" Not submitted yet: {left} of the points; resume does so." if left else ""
    if not jobs:
        return f"No job was submitted. Begin again: python -m vlmexp stage=resume {sweep.argument}"
    if not cancel:
        return f"The jobs go on.{rest}\n{_how_to_go_on(sweep, queue, jobs)}"
    if refusal := queue.cancel(jobs):
        return f"The jobs could not be cancelled ({refusal}).{rest}\n{_how_to_go_on(sweep, queue, jobs)}"
    return (
        f"The jobs are cancelled; a training saves a checkpoint first.{rest}\n"
        f"  resume  python -m vlmexp stage=resume {sweep.argument}"
    )


def _how_to_go_on(sweep: Sweep, queue: Queue, jobs: Sequence[str]) -> str:
    return (
        f"  look    python -m vlmexp stage=status {sweep.argument}\n"
        f"  resume  python -m vlmexp stage=resume {sweep.argument}\n"
        f"  cancel  {queue.cancel_command(jobs)}"
    )
