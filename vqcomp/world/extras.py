"""Packages that only some commands need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..runtime.errors import DependencyError


def need(module: str, what: str, extra: str = "video") -> Any:
    """Import a module. Raises DependencyError, which says what needs it and how to get it."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise DependencyError(f"{what} needs {package}: pip install 'vqcomp[{extra}]' (or {package} alone)") from error
