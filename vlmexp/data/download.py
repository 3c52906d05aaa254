"""Downloading large archives: resumed where it was broken off, checked, and unpacked whole or not at all."""

from __future__ import annotations

import http.client
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from vlmexp.errors import UserError
from vlmexp.files import read_json, replace, settle, write_json

_ATTEMPTS = 5  # in a row that bring nothing
_PAUSE_S = 2.0  # before the second attempt; twice as long before each further one
_TIMEOUT_S = 60
_BLOCK = 2**20  # bytes


def fetch_archive(url: str, folder: Path, holds: str) -> None:
    """Make `folder / holds`, a file or folder at the top of the zip archive at `url`, unless it is there.

    The archive is downloaded next to it, unpacked under a temporary name with every member's checksum compared, and
    deleted.

    Raises:
        UserError: the server does not give the file, the disk is full, or the archive is damaged.
    """
    if (folder / holds).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{holds}.lock"):
        if not (folder / holds).exists():
            archive = folder / url.rpartition("/")[2]
            download(url, archive)
            unpack(archive, folder, holds)
            archive.unlink()


def download(url: str, target: Path) -> None:
    """Download a file; what an interrupted download has left in `<target>.part` is not fetched again.

    Raises:
        UserError: the server refuses, stays silent, or the disk has not enough room.
    """
    if target.exists():
        return
    part, failures, pause = target.with_name(f"{target.name}.part"), 0, _PAUSE_S
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _continue(url, part)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):  # these two ask for patience
                raise UserError(
                    f"{url} cannot be downloaded: the server answers {error.code} {error.reason}."
                ) from None
            reason = f"the server answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        gained = (part.stat().st_size if part.exists() else 0) > before
        failures, pause = (0, _PAUSE_S) if gained else (failures + 1, pause * 2)
        if failures == _ATTEMPTS:
            raise UserError(
                f"{url} cannot be downloaded: {reason}. What is there so far stays in {part} and is not fetched again."
            )
        time.sleep(pause)
    settle(part)
    replace(part, target)
    _about(part).unlink(missing_ok=True)


def _continue(url: str, part: Path) -> None:
    """Fetch what is missing of `part`; its neighbour .json says which version of the file it is of.

    Raises:
        OSError, http.client.HTTPException: the connection broke.
    """
    start = part.stat().st_size if part.exists() else 0
    known = read_json(_about(part)) if _about(part).exists() else None
    if not start or known is None:
        start, known = 0, None
    elif start == known["bytes"]:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "vlmexp"})
    if known:
        request.add_header("Range", f"bytes={start}-")
        if known["version"]:
            request.add_header("If-Range", known["version"])
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        if answer.status != 206:  # the server knows no ranges, or has another file now: from the beginning
            start = 0
        if answer.headers["Content-Length"] is None:
            raise UserError(f"{url} cannot be downloaded: the server does not say how long it is.")
        total = start + int(answer.headers["Content-Length"])
        free = shutil.disk_usage(part.parent).free
        if total - start > free:
            raise UserError(f"{url} has {total - start:,} bytes more, and {part.parent} has room for {free:,}.")
        write_json(_about(part), {"bytes": total, "version": _version(answer.headers)})
        with (
            part.open("r+b" if start else "wb") as file,
            tqdm(
                total=total, initial=start, unit="B", unit_scale=True, desc=part.name.removesuffix(".part"), leave=False
            ) as bar,
        ):
            file.seek(start)
            while block := answer.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
            if file.tell() != total:
                raise http.client.IncompleteRead(b"", total - file.tell())


def _version(headers: http.client.HTTPMessage) -> str | None:
    """What a server calls this version of a file; a weak tag does not promise the same bytes."""
    tag = headers["ETag"]
    return tag if tag and not tag.startswith("W/") else headers["Last-Modified"]


def _about(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def unpack(archive: Path, folder: Path, holds: str) -> None:
    """Unpack `holds` from a zip archive into `folder`; the checksum of every member is compared.

    Raises:
        UserError: the archive is damaged, which deletes it, or does not hold that.
    """
    temporary = folder / f".{holds}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if m.filename == holds or m.filename.startswith(f"{holds}/")]
            if not members:
                raise UserError(f"{archive} holds no {holds}: is it the official archive?")
            needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
            if needed > free:
                raise UserError(f"{archive} unpacks to {needed:,} bytes, and {folder} has room for {free:,}.")
            for member in tqdm(members, f"unpack {archive.name}", unit=" files", leave=False):
                opened.extract(member, temporary)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        archive.unlink()
        raise UserError(f"{archive} was damaged ({error}) and is deleted: run again to download it anew.") from None
    else:
        settle(temporary / holds)
        replace(temporary / holds, folder / holds)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
