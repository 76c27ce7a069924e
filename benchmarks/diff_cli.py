"""``tta-bench diff``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from benchmarks.cli_errors import user_errors
from benchmarks.cli_options import AsJson

_SHOWN = 10


def diff(
    a: Annotated[str, typer.Argument(help="Diff of 'run --export-diff', or a weight file.")],
    b: Annotated[str, typer.Argument(help="Another one, a weight file, or a backbone's name.")],
    as_json: AsJson = False,
) -> None:
    """Audit what adaptation changed: tensors, distance, largest layers, size.

    Two diffs of one source model, or a diff or checkpoint against the source. A diff that was made
    against other weights is refused.

    Try:

      tta-bench diff fog.safetensors fashion-resnet

      tta-bench diff monday.safetensors tuesday.safetensors --json
    """
    with user_errors():
        from benchmarks.diff import compare, read_side

        found = compare(read_side(a), read_side(b))
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            _show(found)


def _show(found: Mapping[str, Any]) -> None:
    from benchmarks.console import new_table, show

    for letter in "ab":
        typer.echo(f"{letter.upper()}  {found[letter]}, {found[f'bytes_{letter}'] / 1024:,.1f} KiB")
    if found["source"]:
        typer.echo(f"source weights {found['source'][:16]}")
    typer.echo(
        f"{found['changed']} of {found['tensors']} tensors differ, L2 {found['l2']:.4g}, "
        f"relative {_share(found['relative'])}"
    )
    if found["states"]:
        typer.echo(f"states that differ: {', '.join(found['states'])}")
    for letter in "ab":
        if names := found[f"only_{letter}"]:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            typer.echo(f"only in {letter.upper()}: {', '.join(names[:_SHOWN])}{more}")
    if not found["layers"]:
        return
    table = new_table()
    for head in ("tensor", "elements", "L2", "relative"):
        table.add_column(head, justify="left" if head == "tensor" else "right")
    for layer in found["layers"][:_SHOWN]:
        cells = (f"{layer['elements']:,}", f"{layer['l2']:.4g}", _share(layer["relative"]))
        table.add_row(layer["name"], *cells)
    left = len(found["layers"]) - _SHOWN
    show(f"largest changes{f', {left} more in --json' if left > 0 else ''}", table)


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.3g} %"
