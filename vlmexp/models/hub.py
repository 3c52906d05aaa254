"""A folder to a repository of the Hugging Face Hub. The token is HF_TOKEN of the environment and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
from huggingface_hub import HfApi

from vlmexp.errors import UserError

REFUSALS = (httpx.HTTPError, OSError, ValueError, RuntimeError)  # of the Hub's client: HTTP, offline, LFS, Xet


def check_access(repository: str) -> None:
    """Ask the Hub who the token belongs to, and whether the repository's name is theirs to use.

    Raises:
        UserError: there is no token, the Hub cannot be reached or refuses it, or the name belongs to somebody else.
    """
    api = HfApi(token=_token(repository))
    try:
        about = api.whoami()
    except REFUSALS as error:
        raise UserError(
            f"export.push_to_hub={repository}: {api.endpoint} does not take HF_TOKEN: {_sentence(error)}"
        ) from None
    names = [about["name"], *(organisation["name"] for organisation in about.get("orgs", []))]
    if repository.partition("/")[0] not in names:
        raise UserError(
            f"export.push_to_hub={repository}: HF_TOKEN belongs to {names[0]}, who can write to {', '.join(names)}."
        )


def push(folder: Path, repository: str, private: bool, message: str) -> str:
    """Make the repository if there is none and upload the folder as one commit; returns the commit's address.

    Raises:
        UserError: there is no token, or the Hub refuses something.
    """
    api = HfApi(token=_token(repository))
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except REFUSALS as error:
        raise UserError(
            f"export.push_to_hub={repository}: {_sentence(error)} {folder} is complete; stage=export run= tries the "
            "upload again."
        ) from error
    return str(commit.commit_url)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") + "."


def _token(repository: str) -> str:
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError(
            f"export.push_to_hub={repository} needs a token that may write there: set HF_TOKEN in the environment or "
            "in .env."
        )
    return token
