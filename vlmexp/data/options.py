"""Options of a source: which of them decide what the data are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Options of any source that decide how and from where data come, and not which: with others they are the same data.
CHANGES_NO_DATA = (
    "download", "questions_url", "images_url", "cache_dir", "cache_folder", "num_proc", "num_workers", "workers",
    "timeout", "retries", "token", "verbose",
)  # fmt: skip


def data_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a source that decide what the data are, and not only how they get here."""
    return {option: value for option, value in options.items() if option not in CHANGES_NO_DATA}
