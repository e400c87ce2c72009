"""Audits from inside other people's code. Nothing is imported before it is used, Lightning least of all."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interpret.integrations.callbacks import AuditCallback, Auditor, AuditRecord

__all__ = ["AuditCallback", "AuditRecord", "Auditor"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'interpret.integrations' has no attribute {name!r}")
    return getattr(importlib.import_module("interpret.integrations.callbacks"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
