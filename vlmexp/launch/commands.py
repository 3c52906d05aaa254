"""stage=status and stage=resume: they ask a sweep's directory and its queue, and open no run."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf
from rich import box
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vlmexp import command_line, trust
from vlmexp.comparison.rows import short_options
from vlmexp.errors import UserError, unknown
from vlmexp.launch.checking import check_launcher
from vlmexp.launch.client import current, refuse_failures, run_points
from vlmexp.launch.foreign import untrusted
from vlmexp.launch.snapshot import forget_caches, python_environment, take_snapshot
from vlmexp.launch.sweep import Standing, Sweep
from vlmexp.quoting import text_of
from vlmexp.screen import Screen

_REFRESH_S = 5.0
_STYLES = {"done": "green", "running": "cyan", "failed": "red", "lost": "red", "broken": "red", "preempted": "yellow"}
_LAUNCHER = "hydra.launcher."


def status(arguments: list[str]) -> None:
    """Show a table of all points; on a terminal, until all of them have ended."""
    options = _options(arguments, {"sweep"})
    sweep = Sweep.named(options["sweep"])
    standings = current(sweep)
    _report_damage(sweep, standings)
    console = Screen()
    if not console.is_terminal:
        Screen(width=200).print(table(sweep, standings))  # a file or another program wants whole values
        _report_failures(sweep, standings)
        return
    with Live(table(sweep, standings), console=console, auto_refresh=False) as live:
        while any(standing.status in ("pending", "running") for standing in standings):
            time.sleep(_REFRESH_S)
            standings = current(sweep)
            live.update(table(sweep, standings), refresh=True)
    _report_failures(sweep, standings)


def resume(arguments: list[str]) -> None:
    """Submit again what is missing, lost or preempted, and with resume.failed=true what failed; go on with a search.

    Then wait for these and for what is in the queue already, as the client does that submitted it.
    Numbers, directories, launcher settings and code are those of the sweep; `hydra.launcher.NAME=VALUE` changes a
    setting, and resume.code=current runs the code as it is now. What this user's client has not put there, and can run
    code, is taken with trust_run=true only.
    """
    from vlmexp.main import CONFIG_DIR

    options = _options(arguments, {"sweep", "resume.failed", "resume.code", trust.WORD})
    sweep = Sweep.named(options["sweep"])
    plan = sweep.plan
    settings = dict(plan.settings)
    for option, text in options.items():
        if option.startswith(_LAUNCHER):
            name = option.removeprefix(_LAUNCHER)
            if name not in settings:
                raise unknown("hydra.launcher option", name, settings)
            settings[name] = OmegaConf.to_object(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[call-overload, index]
    check_launcher(settings)
    code = options.get("resume.code", "same")
    if code not in ("same", "current"):
        raise UserError(f"resume.code={code} must be same or current.")
    anew = [option.removeprefix(_LAUNCHER) for option in options]
    asked = untrusted(sweep, anew, code == "current", CONFIG_DIR)
    trust.require_trust(asked, f"sweep={options['sweep']}", _truth(options, trust.WORD))
    sweep.require_settings()
    wanted = ["missing", "lost", "preempted", *(["failed"] if _truth(options, "resume.failed") else [])]
    standings = current(sweep)
    points = [standing for standing in standings if standing.status in wanted]
    kinds = ("done", "pending", "running", "failed", "broken")
    left = {status: sum(s.status == status for s in standings) for status in kinds}
    counts = ", ".join(f"{count} {name}" for name, count in left.items() if count and name not in wanted)
    print(f"{sweep.directory}: {len(points)} of {len(standings)} points to run{f' ({counts})' if counts else ''}")
    if left["failed"] and "failed" not in wanted:
        print("  resume.failed=true runs what failed again")
    _report_damage(sweep, standings)
    queued = [standing.point for standing in standings if standing.status in ("pending", "running")]
    to_wait_for = queued if settings["wait"] else []
    if not points and not to_wait_for and sweep.search is None:
        return
    if code == "current":
        snapshot = take_snapshot(sweep.directory / "code", CONFIG_DIR)
        plan = dataclasses.replace(plan, code=str(snapshot.relative_to(sweep.directory)))
    forget_caches(sweep.directory / plan.code)
    plan = dataclasses.replace(plan, settings=settings)
    ended = run_points(sweep, points, plan, to_wait_for) if points or to_wait_for else []
    if sweep.search is not None:
        given = [text for text in command_line.overrides(arguments) if command_line.key_of(text).startswith(_LAUNCHER)]
        _go_on_searching(sweep, sweep.search, given, sweep.directory / plan.code)
    refuse_failures(sweep, ended)


def _report_failures(sweep: Sweep, standings: Sequence[Standing]) -> None:
    """Say why points have failed."""
    for standing in standings:
        words = sweep.last_words(standing)[0] if standing.status == "failed" else ""
        if words:
            print(f"point {standing.point.point} failed: {words}")


def _report_damage(sweep: Sweep, standings: Sequence[Standing]) -> None:
    """Say which points' records cannot be read, and which points are not in points.jsonl any more."""
    for standing in standings:
        if standing.status == "broken":
            print(f"vlmexp: {sweep.last_words(standing)[0]}", file=sys.stderr)
    if forgotten := sorted(sweep.jobs.keys() - {standing.point.point for standing in standings}):
        numbers = ", ".join(map(str, forgotten))
        print(
            f"vlmexp: {sweep.directory / 'points.jsonl'} has lost points that were submitted ({numbers}): restore it "
            "from a copy; what they are is in their run.json.",
            file=sys.stderr,
        )


def _go_on_searching(sweep: Sweep, search: list[str], given: list[str], code: Path) -> NoReturn:
    """Become the search's client again, with the code that its points run."""
    directory = QuotedString(str(sweep.directory), Quote.single).with_quotes()
    kept = [text for text in search if command_line.key_of(text) != "hydra.sweep.dir"]
    command = [sys.executable, "-m", "vlmexp", "--multirun", *kept, *given, f"hydra.sweep.dir={directory}"]
    sys.stdout.flush()
    os.execve(sys.executable, command, os.environ | python_environment(code))


def table(sweep: Sweep, standings: Sequence[Standing]) -> Table:
    """One row a point, without the columns that say nothing; options have the short names of stage=compare."""
    columns: dict[str, list[Text]] = {}
    for standing, options in zip(standings, _varied(standings), strict=True):
        record = standing.record or {}
        unfinished = [name for name, entry in record.get("stages", {}).items() if entry["status"] != "done"]
        metric = (record.get("result") or {}).get("metric")
        status = Text(standing.status, _STYLES.get(standing.status, "")).append(_silence(standing), "default")
        for heading, cell in {
            "point": str(standing.point.point),
            "overrides": options,
            "status": status,
            "job": standing.job or "",
            "stage": unfinished[-1] if unfinished and standing.status != "done" else "",
            "step": f"{standing.step or 0}/{standing.steps}" if standing.steps else "",
            "loss": f"{standing.loss:.4g}" if standing.loss is not None else "",
            "remaining": _duration(standing.remaining_s) if standing.status == "running" else "",
            "metric": f"{metric:.4g}" if isinstance(metric, int | float) else "",
        }.items():
            columns.setdefault(heading, []).append(cell if isinstance(cell, Text) else Text(cell))
    told = {heading: cells for heading, cells in columns.items() if any(map(len, cells))}
    title = Text(str(sweep.directory))
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in told:
        is_text = heading in ("overrides", "status", "job", "stage")
        shown.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    for row in zip(*told.values(), strict=True):
        shown.add_row(*row)
    counts = {name: sum(s.status == name for s in standings) for name in dict.fromkeys(s.status for s in standings)}
    shown.caption = ", ".join(f"{count} {name}" for name, count in counts.items())
    return shown


def _varied(standings: Sequence[Standing]) -> list[str]:
    """`r=4 seed=1`: those of each point's overrides that not all points have."""
    points = [standing.point.overrides for standing in standings]
    common = set.intersection(*map(set, points)) if len(points) > 1 else set()
    varied = [[text.partition("=") for text in overrides if text not in common] for overrides in points]
    short = short_options(sorted({option for overrides in varied for option, _, _ in overrides}))
    return [" ".join(f"{short[option]}{sign}{value}" for option, sign, value in overrides) for overrides in varied]


def _silence(standing: Standing) -> str:
    """A job that its queue calls running and whose run says nothing: perhaps its node is gone. Or why it is pending."""
    if standing.reason is not None:
        return f" ({standing.reason})"
    return f", silent for {_duration(standing.silent_s)}" if standing.silent_s is not None else ""


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _options(arguments: list[str], known: set[str]) -> dict[str, str]:
    options = command_line.overrides(arguments)
    if stray := next((text for text in arguments if text not in options), None):
        raise UserError(f"{stray!r} is no option: write option=value, and put a value with spaces into quotes.")
    given = {command_line.key_of(text): text_of(text.partition("=")[2]) for text in options}
    given.pop("stage")
    for name in given:
        if name not in known and not (name.startswith(_LAUNCHER) and "resume.failed" in known):
            raise unknown("option", name, known)
    if not given.get("sweep"):
        raise UserError("sweep= is not set: name the directory of a sweep, such as sweep=multirun/DAY/TIME.")
    return given


def _truth(options: dict[str, str], name: str) -> bool:
    text = options.get(name, "false").lower()
    if text not in ("true", "false"):
        raise UserError(f"{name}={text} must be true or false.")
    return text == "true"
