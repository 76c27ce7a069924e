"""Names to objects by folder scan and entry points; nothing is imported before it is asked for."""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, TypeVar

from tta.config import did_you_mean
from tta.errors import AdapterError

T = TypeVar("T")


class Registry(Generic[T]):
    """One file in ``package`` is one entry; its name is the file's stem with ``-`` for ``_``.

    Args:
        kind: What an entry is called in messages ("method").
        package: Dotted package that is scanned ("tta.adapters").
        group: Entry-point group through which other distributions add entries.
    """

    def __init__(self, kind: str, package: str, group: str | None = None) -> None:
        self.kind = kind
        self.package = package
        self.group = group
        self._objects: dict[str, T] = {}

    @cached_property
    def _files(self) -> dict[str, Path]:
        spec = find_spec(self.package)
        folders = spec.submodule_search_locations if spec else None
        paths = (path for folder in folders or () for path in sorted(Path(folder).glob("*.py")))
        return {_name(path.stem): path for path in paths if not path.stem.startswith("_")}

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        found = {e.name: e for e in entry_points(group=self.group)} if self.group else {}
        for name in sorted(found.keys() & self._files.keys()):
            raise AdapterError(
                f"two {self.kind}s are called {name!r}: ours and {found[name].value!r}; "
                "rename the entry point"
            )
        return found

    def names(self, pattern: str = "*") -> list[str]:
        """Sorted names that match a shell wildcard; imports nothing."""
        known = {*self._files, *self._entry_points, *self._objects}
        return sorted(fnmatch.filter(known, pattern))

    def register(self, name: str | None = None) -> Callable[[T], T]:
        """Class decorator; the name defaults to the stem of the file it stands in.

        Raises:
            AdapterError: If the name is taken by another object.
        """

        def decorate(entry: T) -> T:
            key = name or _name(entry.__module__.rpartition(".")[2])
            module = f"{self.package}.{key.replace('-', '_')}"
            if key in self._objects or (key in self._files and entry.__module__ != module):
                raise AdapterError(f"two {self.kind}s are called {key!r}")
            self._objects[key] = entry
            return entry

        return decorate

    def get(self, name: str) -> T:
        """The entry of that name, imported on first use.

        Raises:
            AdapterError: If there is none, with the nearest name.
        """
        key = _name(name)
        if key not in self._objects:
            if key in self._files:
                import_module(f"{self.package}.{key.replace('-', '_')}")
            elif key in self._entry_points:
                self._objects.setdefault(key, self._entry_points[key].load())
        if key not in self._objects:
            raise AdapterError(
                f"unknown {self.kind} {name!r}{did_you_mean(key, self.names())}; "
                f"known: {', '.join(self.names())}"
            )
        return self._objects[key]

    def summary(self, name: str) -> str:
        """First line of the entry's file, read without importing it."""
        path = self._files.get(_name(name))
        if path is None:
            return ""
        return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]


def _name(stem: str) -> str:
    return stem.replace("_", "-")
