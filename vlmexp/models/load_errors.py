"""What went wrong between a model's id and its weights, in a sentence."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from huggingface_hub import constants, get_token, is_offline_mode
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: that of its client, httpx or httpx2
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from vlmexp.errors import UserError, without_advice

# What the libraries raise for a checkpoint that they cannot load; anything else is a bug of ours or of theirs.
LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    AttributeError,
    ImportError,
    TypeError,
    RuntimeError,
    SafetensorError,
    HTTPError,
)


def loading_error(error: BaseException, model_id: str, revision: str | None, loader: str) -> UserError:
    """The error of a `from_pretrained`, told by its deepest cause that says something to a user.

    Args:
        error: what was raised; transformers wraps the errors of the Hub in others, so its causes are looked at.
        loader: the class whose `from_pretrained` it was.
    """
    for cause in reversed(list(_causes(error))):
        if sentence := _sentence(cause, model_id, revision):
            return UserError(sentence)
    reason = " ".join(without_advice(str(error)).split()) or type(error).__name__
    return UserError(f"model.id={model_id} could not be loaded by {loader}: {reason[:400]}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _sentence(error: BaseException, model_id: str, revision: str | None) -> str | None:
    page = f"{constants.ENDPOINT}/{model_id}"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError):
        if get_token() is None:
            return f"model.id={model_id} is gated: accept its licence at {page} and set HF_TOKEN (here or in .env)."
        return (
            f"model.id={model_id} is gated and the account of your HF_TOKEN has no access: accept the licence at "
            f"{page} with this account, wait until it is granted, or use the token of another account."
        )
    if status == 401 and get_token() is not None and "Invalid credentials" in str(error):
        return f"The Hub refuses your HF_TOKEN: it is wrong or has expired. Make a new one at {_settings()}."
    if isinstance(error, RepositoryNotFoundError):
        private = "your HF_TOKEN has no access to it" if get_token() else "it is private, which needs HF_TOKEN"
        return (
            f"model.id={model_id}: {constants.ENDPOINT} has no such model, or {private}. A local folder would be "
            f"written ./{model_id}, and there is none."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"model.revision={revision}: {model_id} has no such branch, tag or commit; they are listed at {page}."
    if isinstance(error, HFValidationError):
        return f"model.id={model_id} is neither a Hub id (ORG/NAME) nor a local folder: {error}"
    if isinstance(error, OfflineModeIsEnabled) or (isinstance(error, LocalEntryNotFoundError) and is_offline_mode()):
        return (
            f"model.id={model_id} is not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE=1 forbids to "
            "download it: unset HF_HUB_OFFLINE, or give a local folder."
        )
    if is_down(error):
        return (
            f"{constants.ENDPOINT} answers {status} to model.id={model_id}, which is not in the cache: try again later."
        )
    if isinstance(error, LocalEntryNotFoundError) or is_away(error):
        return (
            f"model.id={model_id} is not (wholly) in the cache ({constants.HF_HUB_CACHE}), and {constants.ENDPOINT} "
            "cannot be reached: check network, proxy and HF_ENDPOINT, or give a local folder."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"There is no room for model.id={model_id} under {constants.HF_HUB_CACHE}: free some, or set HF_HOME."
    if isinstance(error, PermissionError):
        return f"model.id={model_id}: {error.filename} cannot be read or written; check its owner, or set HF_HOME."
    return None


def _settings() -> str:
    return f"{constants.ENDPOINT}/settings/tokens"


def is_down(error: BaseException) -> bool:
    """Whether the Hub answered that it cannot serve now."""
    return isinstance(error, HfHubHTTPError) and (
        error.response.status_code == 429 or error.response.status_code >= 500
    )


def is_away(error: BaseException) -> bool:
    """Whether there was no answer of the Hub at all."""
    # By name: the Hub's client is httpx in some releases and httpx2 in others.
    return any(kind.__name__ in ("TransportError", "ConnectionError") for kind in type(error).__mro__)
