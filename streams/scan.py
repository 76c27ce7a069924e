"""Entries of this package by folder scan: one file is one entry, imported when asked for."""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from streams.errors import StreamError


@dataclass(frozen=True)
class Scan:
    """Modules of ``package`` by name, with ``-`` for ``_``."""

    package: str
    kind: str

    def names(self) -> list[str]:
        """Sorted names."""
        return sorted(_files(self.package))

    def summary(self, name: str) -> str:
        """First line of the module's docstring, read without importing it."""
        text = _files(self.package)[name].read_text("utf-8")
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]

    def check(self, name: str) -> None:
        """Raise ``StreamError``, with the nearest name, if there is no such entry."""
        if name not in self.names():
            near = difflib.get_close_matches(name, self.names(), n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise StreamError(
                f"unknown {self.kind} {name!r}{hint}; known: {', '.join(self.names())}"
            )

    def load(self, name: str) -> ModuleType:
        """Import the module of that name.

        Raises:
            StreamError: If there is none, with the nearest name.
        """
        self.check(name)
        return import_module(f"{self.package}.{name.replace('-', '_')}")


def scan(package: str, kind: str) -> Scan:
    """A scan of ``package``, whose entries are called ``kind`` in messages."""
    return Scan(package, kind)


@lru_cache
def _files(package: str) -> dict[str, Path]:
    spec = find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or []
    paths = (path for folder in folders for path in sorted(Path(folder).glob("*.py")))
    return {p.stem.replace("_", "-"): p for p in paths if not p.stem.startswith("_")}
