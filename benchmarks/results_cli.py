"""``tta-bench results``."""

from __future__ import annotations

import typer

app = typer.Typer(help="The store of a results folder.", no_args_is_help=True)
