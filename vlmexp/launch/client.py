"""The client of a sweep: submits points, waits for them and says what became of each."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

from vlmexp.errors import UserError
from vlmexp.interruption import interrupt, uninterrupted
from vlmexp.launch.point import RunPoint
from vlmexp.launch.queues import Queue, queue_of
from vlmexp.launch.sweep import Plan, Point, Standing, Sweep

_SETTLING_LOOKS = 3  # a shared file system may show the end of a run a little after the queue does


class SweepFailed(UserError):
    """Some points did not reach their end; the text lists them all."""

    exit_code = 1


def current(sweep: Sweep, points: Sequence[Point] | None = None) -> list[Standing]:
    """How the points stand now."""
    jobs = list(sweep.jobs.values())
    queue = _queue(sweep, sweep.plan)
    return sweep.standings(queue.states(jobs) if jobs else {}, points)


def run_points(sweep: Sweep, points: Sequence[Point], plan: Plan, queued: Sequence[Point] = ()) -> list[Standing]:
    """Submit points and, with `wait`, stay until all of them have ended.

    Args:
        points: none of them is in the queue.
        queued: others, which are: those of a client that is gone.

    Returns:
        how the points stand at the end; nothing without `wait`.

    Raises:
        UserError: the queue refuses them.
    """
    queue, settings = _queue(sweep, plan), plan.settings
    todo, jobs = list(points), sweep.jobs
    if not settings["wait"] and plan.kind == "foreground":
        raise UserError("hydra.launcher.wait=false: these points run on the client's own terminal, so it has to stay.")
    if not settings["wait"] and queue.parallel is not None and len(todo) > queue.parallel:
        raise UserError(
            f"hydra.launcher.wait=false: {len(todo)} points are to run {queue.parallel} at a time, for which the "
            "client of a local sweep has to stay. Raise hydra.launcher.array_parallelism, or wait."
        )
    ours = [jobs[point.point] for point in queued if point.point in jobs]
    shown: dict[int, str] = {}
    started, unsettled = time.monotonic(), 0
    try:
        signal.signal(signal.SIGTERM, interrupt)  # means to the client what Ctrl-C does
        while True:
            states = queue.states(ours) if ours else {}
            if states is not None:
                free = len(todo) if queue.parallel is None else max(0, queue.parallel - len(states))
                with uninterrupted():  # a job that is submitted is recorded
                    submitted = _submit(sweep, todo[:free], queue, plan)
                    ours, todo = [*ours, *submitted], todo[free:]
                states |= dict.fromkeys(submitted, "PENDING")
                if not settings["wait"]:
                    print(_how_to_go_on(sweep, queue, ours))
                    return []
                standings = sweep.standings(states, [point for point in (*points, *queued) if point not in todo])
                at_work = bool(todo) or any(standing.status in ("pending", "running") for standing in standings)
                unsettled = 0 if at_work else unsettled + any(s.status in ("lost", "preempted") for s in standings)
                for standing in standings:
                    _announce(standing, shown)
                if not at_work and unsettled in (0, _SETTLING_LOOKS):
                    return standings
            time.sleep(min(max(0.5, (time.monotonic() - started) / 20), queue.patience_s))
    except KeyboardInterrupt:
        with uninterrupted():
            print(f"\n{_interrupted(sweep, queue, ours, todo, settings['cancel_on_interrupt'])}", flush=True)
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


def _submit(sweep: Sweep, points: Sequence[Point], queue: Queue, plan: Plan) -> list[str]:
    if not points:
        return []
    varied = sweep.varied()
    functions = [RunPoint(sweep.directory, point.point, tuple(plan.hydra_overrides)) for point in points]
    jobs = queue.submit(functions, sweep.directory / plan.code)
    try:
        sweep.note_jobs(dict(zip((point.point for point in points), jobs, strict=True)))
    except OSError:  # for one of a full disk; jobs that nobody knows of would be submitted once more
        queue.cancel(jobs)
        raise
    for point, job in zip(points, jobs, strict=True):
        print(f"  point {point.point:>3}  job {job:<10} {varied[point.point]}", flush=True)
    return jobs


def _announce(standing: Standing, shown: dict[int, str]) -> None:
    number, status = standing.point.point, standing.status
    if status in ("running", "done", "failed") and shown.get(number) != status:
        shown[number] = status
        metric = ((standing.record or {}).get("result") or {}).get("metric") if status == "done" else None
        print(f"  point {number:>3}  {status}{'' if metric is None else f'  metric={metric:.6g}'}", flush=True)


def _interrupted(sweep: Sweep, queue: Queue, jobs: Sequence[str], todo: Sequence[Point], cancel: bool) -> str:
    """Cancel the jobs if that was asked for, and say what becomes of every point."""
    rest = f" Not submitted yet: {len(todo)} of the points; resume does so." if todo else ""
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
