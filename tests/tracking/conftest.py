from __future__ import annotations

from tests.training.conftest import small

__all__ = ["small"]
