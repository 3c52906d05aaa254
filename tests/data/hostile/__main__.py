"""Runs every hostile file and prints what became of it, and the most memory and time that it took.

python -m tests.data.hostile [--only REGEX] [--kinds image,video,table] [--seed 0]
"""

from __future__ import annotations

import os

os.environ["TQDM_DISABLE"] = "1"  # tqdm looks when it is imported; set here alone: other tests look at the bars

import argparse
import json
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from tests.data.hostile.images import images, png
from tests.data.hostile.tables import tables
from tests.data.hostile.use import prepared, use_at_once, use_image, use_video
from tests.data.hostile.videos import videos
from vlmexp.data.video_readers import LIBRARIES, works
from vlmexp.errors import UserError

MOST_MIB, MOST_S = 1536, 60  # seconds of the processor's time, which do not depend on what else runs
PATIENCE_S = 300


warnings.simplefilter("ignore")  # of Pillow's, about what is tested here


def made(make: Callable[[Path], Path], folder: Path) -> Path:
    """The path of a file that a process of its own makes, so that what this takes is not counted."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.write(write, os.fsencode(make(folder)))
        except Exception as error:  # the libraries that are here may not write it
            os.write(write, b"!" + f"{type(error).__name__}: {error}".encode()[:500])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        content = answer.read()
    os.waitpid(process, 0)
    if not content.startswith(b"/"):
        raise RuntimeError(content[1:].decode() or "its process ended")
    return Path(os.fsdecode(content))


def measured(use: Callable[[], str]) -> dict:
    """What a use came to, in a process of its own: sentence, MiB above what it had before, seconds."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        os.setsid()
        Path("/proc/self/clear_refs").write_text("5")
        before, start, busy = high(), time.monotonic(), time.process_time()
        try:
            said, failed = use(), False
        except UserError as error:
            said, failed = f"refused: {error}", False
        except BaseException:
            said, failed = traceback.format_exc(), True
        from vlmexp.data import video_process

        video_process._end_idle()
        own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = sum(used.ru_utime + used.ru_stime for used in (own, others)) - busy
        wall = time.monotonic() - start
        line = {"said": said, "failed": failed, "mib": high() - before + others.ru_maxrss / 1024, "s": seconds}
        line["wall"] = wall
        os.write(write, json.dumps(line).encode()[-60_000:])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        if not select.select([answer], [], [], PATIENCE_S)[0]:
            os.killpg(process, signal.SIGKILL)
        content = answer.read()
    _, status = os.waitpid(process, 0)
    return (
        json.loads(content)
        if content
        else {"said": f"ended with {status}", "failed": True, "mib": 0, "s": PATIENCE_S, "wall": PATIENCE_S}
    )


def high() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def cases(kinds: list[str], seed: int) -> dict[str, tuple]:
    found: dict[str, tuple] = {}
    if "image" in kinds:
        found |= {f"image: {name}": (make, use_image) for name, make in images().items()}
        for name, bits in {"grey": 16, "RGBA": 8}.items():
            kind = {"grey": 0, "RGBA": 6}[name]
            found[f"image: 16 png {name} at once"] = (
                lambda folder, kind=kind, bits=bits: png(folder / "a.png", 7_000, 7_000, kind, bits),
                lambda path: use_at_once(path, "image"),
            )
    for library in filter(works, LIBRARIES) if "video" in kinds else ():
        found |= {
            f"video, {library}: {name}": (make, lambda path, library=library: use_video(path, library))
            for name, make in videos(seed).items()
        }
    if "table" in kinds:
        found |= {f"table: {name}": (make, lambda path: prepared(path.parent, path)) for name, make in tables().items()}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--kinds", default="image,video,table")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    results, files = {}, 0
    for name, (make, use) in cases(arguments.kinds.split(","), arguments.seed).items():
        if not re.search(arguments.only, name):
            continue
        folder = Path(tempfile.mkdtemp(prefix="hostile-"))
        try:
            path = made(make, folder)
            found = measured(lambda path=path, use=use: use(path))
            found["failed"] |= (folder / "ran").exists()
        except RuntimeError as error:
            print(f"NOT MADE {name}: {error}", flush=True)
            continue
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        bad = found["failed"] or found["mib"] > MOST_MIB or found["s"] > MOST_S
        results[name], files = found, files + 1
        said = found["said"].strip()
        said = said[-1500:] if bad else said.splitlines()[0].replace(str(folder), "")[:170]
        cost = f"{found['mib']:6.0f} MiB {found['s']:5.1f} s ({found['wall']:.0f})"
        print(f"{'FAILED ' if bad else ''}{cost}  {name}: {said}", flush=True)
    failed = [n for n, f in results.items() if f["failed"] or f["mib"] > MOST_MIB or f["s"] > MOST_S]
    for what in ("mib", "s"):
        worst = sorted(results, key=lambda name: -results[name][what])[:5]
        print(f"most {what}: " + "; ".join(f"{results[name][what]:.1f} {name}" for name in worst))
    print(f"{files} runs, {len(failed)} failed: {failed}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
