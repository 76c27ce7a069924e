"""The plan of the house: who imports whom, what an import costs, and what each file holds."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

import tta
from streams.scan import scan
from tta.factory import adapters

ROOT = Path(tta.__file__).parents[1]
PACKAGES = ("streams", "tta", "continual", "benchmarks")
# What each floor may import of the house beside itself; streams and tta stand side by side.
MAY_IMPORT = {
    "streams": set(),
    "tta": set(),
    "continual": {"tta", "streams"},
    "benchmarks": {"tta", "streams", "continual"},
}
# The one crossing: backbones ask the robustbench bridge, inside the function that needs it.
CROSSING = re.compile(r"tta/backbone\w*\.py")
CROSSED = {"streams.robustbench_bridge", "streams.errors"}
# What a floor may import at the top of a file, beside the standard library and the house.
AT_IMPORT = {
    "streams": {"numpy", "torch"},
    "tta": {"numpy", "torch"},
    "continual": {"numpy", "torch"},
    "benchmarks": {"numpy", "torch", "pyarrow", "pydantic", "rich", "tomli", "typer"},
}
MAX_LINES = 400
MAX_NAMES = 15
HEAVY = {"avalanche", "jax", "matplotlib", "pandas", "ray", "robustbench", "timm", "torch"}
HEAVY |= {"torchvision", "wandb"}

FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
)
ADAPTERS = [path for path in FILES if re.fullmatch(r"tta/adapters/[a-z]\w*\.py", path)]


@dataclass(frozen=True)
class Import:
    """One import of a file; ``scope`` is where it runs: module, function or types."""

    module: str
    scope: str
    line: int

    @property
    def root(self) -> str:
        return self.module.partition(".")[0]


def imports_of(file: str) -> list[Import]:
    return list(_imports(ast.parse((ROOT / file).read_text("utf-8")), file, "module"))


def _imports(node: ast.AST, file: str, scope: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, scope, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                package = file.removesuffix(".py").split("/")[: -child.level]
                base = ".".join([*package, *base.split(".")]).rstrip(".")
            yield from (
                Import(f"{base}.{alias.name}", scope, child.lineno) for alias in child.names
            )
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from _imports(child, file, "function")
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _imports(child, file, "types")
        else:
            if isinstance(child, ast.Constant) and _is_module(child.value):
                # A name handed to import_module, a registry or a lazy __getattr__.
                yield Import(f"{child.value}.*", "function", child.lineno)
            yield from _imports(child, file, scope)


def _is_module(value: object) -> bool:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z]+(\.\w+)+", value):
        return False
    path = ROOT.joinpath(*value.split("."))
    return value.partition(".")[0] in PACKAGES and (
        path.is_dir() or path.with_suffix(".py").is_file()
    )


def _crossing(file: str, found: Import) -> bool:
    owner = {found.module, found.module.rpartition(".")[0]}
    return bool(CROSSING.fullmatch(file)) and found.scope == "function" and bool(owner & CROSSED)


def test_the_graph_is_read():
    """The reader sees every kind of import, so that the next tests can fail."""
    text = (
        "import benchmarks\nfrom . import b\ndef f():\n    from tests.x import y\n"
        "if TYPE_CHECKING:\n    from continual.z import w\nNAME = 'benchmarks.runner'\n"
        "class A:\n    def g(self):\n        import timm\n"
    )
    found = {(i.module, i.scope) for i in _imports(ast.parse(text), "tta/a.py", "module")}
    assert found == {
        ("benchmarks", "module"),
        ("tta.b", "module"),
        ("tests.x.y", "function"),
        ("continual.z.w", "types"),
        ("benchmarks.runner.*", "function"),
        ("timm", "function"),
    }
    assert {file.partition("/")[0] for file in FILES} == set(PACKAGES)
    assert not _crossing("tta/adapter.py", Import("streams.errors.StreamError", "function", 1))
    assert not _crossing("tta/backbones.py", Import("streams.errors.StreamError", "module", 1))


@pytest.mark.parametrize("file", FILES)
def test_no_back_edge(file):
    floor = file.partition("/")[0]
    allowed = {floor, *MAY_IMPORT[floor]}
    house = {*PACKAGES, "tests"}
    back = [
        f"{file}:{found.line} imports {found.module}"
        for found in imports_of(file)
        if found.root in house - allowed and not _crossing(file, found)
    ]
    assert not back, "\n".join(back)


@pytest.mark.parametrize("file", FILES)
def test_heavy_packages_are_imported_where_they_are_used(file):
    floor = file.partition("/")[0]
    allowed = AT_IMPORT[floor] | set(PACKAGES) | sys.stdlib_module_names
    early = [
        f"{file}:{found.line} imports {found.module}; move it into the function that needs it"
        for found in imports_of(file)
        if found.scope == "module" and found.root not in allowed
    ]
    assert not early, "\n".join(early)


def test_no_file_imports_the_tests():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        found = _imports(ast.parse(path.read_text("utf-8")), f"tests/{path.name}", "module")
        assert not [i for i in found if i.root == "tests"], path


@pytest.mark.parametrize("file", FILES)
def test_files_are_short_and_say_what_they_are(file):
    text = (ROOT / file).read_text("utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    first = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    assert len(first) > 10, f"{file} has no docstring that says what it is"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_few_and_there(package):
    module = import_module(package)
    assert len(module.__all__) <= MAX_NAMES
    assert module.__all__ == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
    # A name that is also a file's turns into that file once anyone has imported it.
    files = {path.stem for path in (ROOT / package).iterdir()}
    assert not files & set(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("package", ["tta", "streams", "benchmarks"])
def test_a_name_that_is_not_there(package):
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = import_module(package).no_such_name


# What an import costs ---------------------------------------------------------------------------


def loaded_by(code: str) -> set[str]:
    """Top-level names in ``sys.modules`` of a fresh interpreter after ``code``."""
    end = "\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code + end],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_the_packages_loads_nothing_heavy():
    loaded = loaded_by("import tta, streams, continual, benchmarks")
    assert set(PACKAGES) <= loaded
    assert not loaded & (HEAVY | {"numpy", "scipy", "PIL", "pyarrow", "pydantic", "typer"})


def test_wrapping_a_model_needs_torch_and_numpy_alone():
    code = (
        "import torch, tta\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4),"
        " torch.nn.Flatten(), torch.nn.LazyLinear(2))\n"
        "net(torch.rand(2, 3, 8, 8))\n"
        "tta.wrap(net, 'tent')(torch.rand(4, 3, 8, 8))"
    )
    loaded = loaded_by(code)
    assert "torch" in loaded
    unwanted = {"pyarrow", "pydantic", "typer", "rich", "scipy", "PIL", "streams", "benchmarks"}
    assert not loaded & (HEAVY - {"torch"} | unwanted)


def test_help_and_lists_answer_without_torch():
    code = """
import contextlib, io, sys
from benchmarks.cli import main
commands = ["run", "list", "describe", "leaderboard", "pretrain", "sweep", "watch", "report"]
for words in (["--help"], *([name, "--help"] for name in commands), ["list"], ["list", "--json"]):
    sys.argv = ["tta-bench", *words]
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            main()
        except SystemExit as end:
            assert not end.code, (words, end.code)
    assert len(text.getvalue()) > 100, words
"""
    assert not loaded_by(code) & (HEAVY | {"numpy", "pyarrow"})


# Registries -------------------------------------------------------------------------------------


def test_registered_names_are_file_stems():
    stems = [Path(file).stem.replace("_", "-") for file in ADAPTERS]
    registered = {name: adapters.get(name) for name in stems}
    for name, adapter in registered.items():
        assert adapter.name == name
        assert adapter.__module__ == f"tta.adapters.{name.replace('-', '_')}"
        assert adapter.__name__.lower() == name.replace("-", "")
        assert adapters.summary(name)
    assert set(stems) <= set(tta.list_adapters())


@pytest.mark.parametrize("kind", ["sources", "settings"])
def test_every_source_and_setting_offers_its_function(kind):
    entries = scan(f"streams.{kind}", kind)
    for name in entries.names():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        module = entries.load(name)
        assert callable(getattr(module, "open_source" if kind == "sources" else "plan", None)), name
        assert len(entries.summary(name)) > 20


@pytest.mark.parametrize("file", ADAPTERS)
def test_every_method_names_its_paper_and_its_deviations(file):
    text = ast.get_docstring(ast.parse((ROOT / file).read_text("utf-8"))) or ""
    assert re.search(r"^Deviations?:", text, re.MULTILINE), f"{file} lists no deviations"
    if Path(file).stem != "source":
        words = " ".join(text.split())
        assert re.search(r"\b(19|20)\d\d, (arXiv:\d{4}\.\d{4,5}|https://\S+)", words), (
            f"{file} names no paper: title, year, arXiv id"
        )
