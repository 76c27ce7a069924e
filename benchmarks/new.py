"""A package of its own for a new method, which runs and passes the checks before it is edited."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from benchmarks.errors import UsageError

_METHOD = Template('''\
"""$title: say in one line what it does.

Authors: title, year, arXiv id. Reference code: owner/repository @ commit.

Deviations:
- none yet: name every difference to the reference code.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from tta import Adapter, Needs, losses, norms
from tta.config import param
from tta.factory import adapters


@adapters.register("$name")
class $klass(Adapter):
    """Entropy minimisation on confident images: replace it by your method."""

    name = "$name"
    needs = Needs(norms=frozenset(norms.AFFINE_KINDS))
    predicts = "before"
    # Options under which an untrained model learns from some images; the checks run each.
    check_options = ({"max_entropy": 10.0},)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(norms.AffineConfig):
        """Options; lr, optimizer, steps, seed and others are inherited."""

        max_entropy: float = param(1.0, "images above it are left out, in nats", ge=0)

    config: Config

    def setup(self) -> None:
        """Declare here all that changes: parameters, optimisers, states."""
        self.add_optimizer(self.config, norms.adapt_affine(self.model, self.config))

    def adapt(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K)."""
        logits = self.logits(x)
        entropy = losses.entropy(logits)
        chosen = entropy.detach() <= self.config.max_entropy
        self.record(entropy=entropy.mean(), selected_fraction=chosen.double().mean())
        if chosen.any():
            loss = entropy[chosen].mean()
            self.update(loss, images=int(chosen.sum()))
            self.record(loss=loss)
        return logits
''')

_TEST = Template('''\
"""What every method must hold: pytest tests."""

import pytest
import torch
from torch import nn
from tta import checks

from $package.$module import $klass


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    return [torch.rand(5, 3, 8, 8) for _ in range(4)]


@pytest.mark.parametrize("check", checks.yield_checks($klass), ids=lambda check: check.name)
def test_conformance(check, model, batches) -> None:
    check(model, batches)
''')

_PROJECT = Template("""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "$folder"
version = "0.1.0"
description = "$title, a test-time adaptation method"
requires-python = ">=3.10"
dependencies = ["tta-bench"]

[project.entry-points."tta.adapters"]
$name = "$package.$module:$klass"

[tool.hatch.build.targets.wheel]
packages = ["$package"]
""")


def new_adapter(name: str, out: Path) -> list[Path]:
    """Write the package ``tta-<name>`` into ``out``.

    Args:
        name: Name of the method as users will type it: lower case, digits, ``-``.
        out: Folder that gets the package's folder.

    Returns:
        The files written.

    Raises:
        UsageError: For a name that cannot be one, is taken, or a folder that is there already.
    """
    import tta

    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(module):
        raise UsageError(f"{name!r} is no name for a method: use lower case, digits and '-'")
    if name in tta.list_adapters():
        raise UsageError(f"there is a method called {name!r} already; choose another name")
    folder = out / f"tta-{name}"
    if folder.exists():
        raise UsageError(f"{folder} is there already; choose another name or --out")
    words = {
        "name": name,
        "module": module,
        "package": f"tta_{module}",
        "folder": f"tta-{name}",
        "klass": "".join(part.capitalize() for part in name.split("-")),
        "title": name.replace("-", " ").capitalize(),
    }
    files = {
        "pyproject.toml": _PROJECT,
        f"tta_{module}/__init__.py": Template('"""$title."""\n'),
        f"tta_{module}/{module}.py": _METHOD,
        f"tests/test_{module}.py": _TEST,
    }
    written = []
    try:
        for path, template in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(template.substitute(words), "utf-8")
            written.append(target)
    except OSError as error:
        raise UsageError(f"cannot write {folder} ({error.strerror}); name another --out") from error
    return written
