"""How a command ends: one clear line for what the user can correct, a traceback for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from benchmarks.errors import UsageError
from streams.errors import WORKER_DIED, StreamError
from streams.secrets import masked
from tta.errors import AdapterError


@contextmanager
def user_errors(
    interrupted: str = "--resume goes on from the last checkpoint",
) -> Iterator[None]:
    """One clear line and exit status 2 for what the user can correct; a traceback for the rest.

    Args:
        interrupted: What to do after Ctrl-C.
    """
    try:
        yield
    except (UsageError, StreamError, AdapterError) as error:
        typer.echo(f"tta-bench: error: {masked(' '.join(str(error).split()))}", err=True)
        raise typer.Exit(2) from None
    except RuntimeError as error:
        # Torch tells of it from a signal handler: it may come up anywhere in the loop.
        if not str(error).startswith("DataLoader worker"):
            raise
        typer.echo(f"tta-bench: error: {WORKER_DIED}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo(f"tta-bench: interrupted; {interrupted}", err=True)
        raise typer.Exit(130) from None


@contextmanager
def left_out(method: str, may: bool) -> Iterator[None]:
    """A method that a pattern brought in and that does not fit is left out with its reason."""
    try:
        yield
    except AdapterError as error:
        if not may:
            raise
        typer.echo(f"left out {method}: {masked(str(error))}", err=True)
