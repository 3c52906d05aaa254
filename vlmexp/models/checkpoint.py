"""The files of a checkpoint, looked at before anything is built from them."""

from __future__ import annotations

import functools
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from transformers.utils.hub import cached_file

from vlmexp.errors import UserError
from vlmexp.files import digest, file_digest
from vlmexp.models.load_errors import LOADING_ERRORS, is_away, is_down

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def local_folder(model_id: str) -> Path | None:
    """The folder that `model_id` names; None if it can only be a Hub id, ORG/NAME.

    Raises:
        UserError: it is written like a path, and there is no such folder.
    """
    path = Path(model_id).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise UserError(f"model.id={model_id} is a file: give the folder that holds it.")
    if model_id.startswith(("/", "./", "../", "~")) or model_id.count("/") > 1 or "\\" in model_id:
        raise UserError(f"model.id={model_id}: there is no folder {path.absolute()}. A Hub id is written ORG/NAME.")
    return None


@functools.cache
def only_cached(location: str, revision: str | None) -> bool:
    """Whether a Hub id is in the cache and the Hub cannot be asked for it.

    The libraries would use the cache, too, but first try again for every optional file: minutes for one model.
    """
    if Path(location).is_dir() or is_offline_mode() or not _in_cache(location, CONFIG, revision):
        return False
    try:
        get_hf_file_metadata(hf_hub_url(location, CONFIG, revision=revision))
    except LOADING_ERRORS as error:
        return is_away(error) or is_down(error)
    return False


def read_config(model_id: str, location: str, revision: str | None) -> dict[str, Any]:
    """The checkpoint's config.json, from the folder, the cache or the Hub.

    Raises:
        UserError: there is none, or it is no JSON object.
    """
    path = _config_file(location, revision)
    if path is None:
        if Path(location, "adapter_config.json").is_file():
            raise UserError(
                f"model.id={model_id} is an adapter, not a whole model: evaluate it with stage=eval_finetuned and "
                "run= of its training, or take the deployment_model beside it."
            )
        raise UserError(f"model.id={model_id} has no {CONFIG}, so it is no model that transformers can load.")
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"model.id={model_id}: its {CONFIG} is no valid JSON: {error}.") from None
    if not isinstance(config, dict):
        raise UserError(f"model.id={model_id}: its {CONFIG} is no JSON object.")
    return config


def commit(location: str, revision: str | None) -> str | None:
    """The commit that a branch or tag of a Hub id stands for; None for a local folder."""
    path = _config_file(location, revision)  # in the cache: .../snapshots/COMMIT/config.json
    folder = Path(path).parent if path is not None else Path(location)
    return folder.name if folder.parent.name == "snapshots" else None


def fingerprint(location: str, revision: str | None) -> str:
    """What tells a checkpoint or an adapter from any other: the Hub's commit, or a hash of the local folder's files."""
    folder = Path(location)
    if not folder.is_dir() or folder.parent.name == "snapshots":
        return f"{location}@{commit(location, revision)}"
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".md")
    return digest({path.name: file_digest(path) for path in files})


def _config_file(location: str, revision: str | None) -> str | None:
    return cached_file(location, CONFIG, revision=revision, local_files_only=only_cached(location, revision))


def check_weights(model_id: str, location: str, revision: str | None) -> None:
    """Whether there are weights and, in a local folder, whether their files are all there and whole.

    Raises:
        UserError: there are none, only pickled ones, or a file is missing or cut short.
    """
    folder = Path(location)
    is_local = folder.is_dir()
    if not is_local and any(_in_cache(location, name, revision) for name in (WEIGHTS, INDEX)):
        return  # the cache never holds a part of a file
    first = next((name for name in (WEIGHTS, INDEX, *PICKLES) if _has(location, name, revision)), None)
    if first is None:
        raise UserError(f"model.id={model_id} has no weights: there is neither {WEIGHTS} nor {INDEX}.")
    if first in PICKLES:
        raise UserError(
            f"model.id={model_id} holds pickled weights only ({first}), which can run code when they are read: "
            "take a revision with safetensors, or, if you trust it, model.model_kwargs.use_safetensors=false with "
            "model.trust_remote_code=true."
        )
    if is_local:
        for name in [WEIGHTS] if first == WEIGHTS else _shards(model_id, folder):
            if not (folder / name).is_file():
                raise UserError(f"model.id={model_id}: its {INDEX} names {name}, which is not there. Copy it again.")
            check_safetensors(folder / name)


def _has(location: str, name: str, revision: str | None) -> bool:
    if Path(location).is_dir():
        return Path(location, name).is_file()
    try:
        get_hf_file_metadata(hf_hub_url(location, name, revision=revision))
    except EntryNotFoundError:
        return False
    return True


def _in_cache(location: str, name: str, revision: str | None) -> bool:
    return isinstance(try_to_load_from_cache(location, name, revision=revision), str)


def _shards(model_id: str, folder: Path) -> list[str]:
    try:
        return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError):
        raise UserError(f"model.id={model_id}: its {INDEX} is damaged (no JSON with a weight_map).") from None


def check_safetensors(path: Path) -> None:
    """Raise a UserError if a file is cut short or is no safetensors file."""
    if wrong := _damage_of_safetensors(path):
        raise UserError(f"{path} {wrong}{'' if 'git lfs' in wrong else ': copy it again'}.")


def file_sizes(folder: Path) -> dict[str, int]:
    """Name -> bytes of the files in a folder."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def check_folder(folder: Path, written: Mapping[str, int]) -> None:
    """Raise a UserError that names the first file of a trained model that is missing or no longer whole.

    Args:
        written: name -> bytes of what there was, which may have grown since; the model card is written anew.
    """
    there = file_sizes(folder)
    formed = {name for name in there if Path(name).suffix in (".json", ".safetensors")}
    for name in sorted({*written, *formed} - {"README.md"}):
        wrong = damage_of(folder / name) if name in there else "is missing"
        if wrong is None and name not in formed and there[name] < written[name]:
            wrong = f"has {there[name]:,} bytes and had {written[name]:,} when it was written"
        if wrong:
            raise UserError(f"{folder / name} {wrong}: restore it from a copy, or train again in a new run.")


def damage_of(path: Path) -> str | None:
    """What is wrong with a file by its own form, as `is empty`; None if nothing is, or its form says nothing."""
    if path.stat().st_size == 0:
        return "is empty"
    if path.suffix == ".safetensors":
        return _damage_of_safetensors(path)
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"is no JSON ({error})"
    if path.suffix in (".pt", ".pth", ".bin"):  # torch writes a zip archive, with a checksum of each part
        try:
            with zipfile.ZipFile(path) as archive:
                return "holds other bytes than were written" if archive.testzip() else None
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            return f"is only a part of what it was ({error})"
    return None


def _damage_of_safetensors(path: Path) -> str | None:
    """Compare a file's size with what its header says.

    The format: 8 bytes with the header's length n, n bytes of JSON (tensor -> data_offsets [start, end]), the data.
    See https://huggingface.co/docs/safetensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            return "is a pointer of Git LFS, not the weights: run `git lfs pull` in its folder"
        length = int.from_bytes(start, "little")
        text = file.read(length) if length <= size - 8 else b""
    try:
        tensors = [entry for name, entry in json.loads(text).items() if name != "__metadata__"]
        expected = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError):
        return "is no safetensors file, or only the beginning of one"
    return None if size == expected else f"has {size:,} bytes and should have {expected:,}"
