"""What a person sees of learning streams: plans, options, results."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

import typer

from benchmarks.console import new_table, number, show
from benchmarks.errors import UsageError
from benchmarks.leaderboard_columns import DOMAIN_PREFIX
from benchmarks.learning_method import LEARNER, Method

SHOWN = {
    "final average": "class_incremental_final_accuracy_pct",
    "average incremental": "class_incremental_average_incremental_accuracy_pct",
    "forgetting": "class_incremental_forgetting_pct",
    "BWT": "class_incremental_bwt_pct",
    "FWT": "class_incremental_fwt_pct",
    "AAA": "class_incremental_aaa_pct",
    "final average, task known": "task_incremental_final_accuracy_pct",
    "forgetting, task known": "task_incremental_forgetting_pct",
    "on segments": "segment_accuracy",
    "change by segments": "class_incremental_segment_change_pct",
    "of the forgotten": "forget_forgotten_accuracy_pct",
    "of the retained": "forget_retained_accuracy_pct",
    "membership inference": "forget_mia_success_pct",
    "relapse": "forget_relapse_pct",
    "seconds": "seconds",
}
_OPTIONAL = {"on segments", "change by segments", "of the forgotten", "of the retained"}
_OPTIONAL |= {"membership inference", "relapse"}
# What every strategy of Avalanche is given by the runner.
_GIVEN = {"self", "model", "optimizer", "criterion", "device", "evaluator", "plugins"}


def learning_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Final accuracy on each task, then the metrics; runs across."""
    several = len({row["seed"] for row in rows}) > 1
    table = new_table()
    table.add_column("task")
    for row in rows:
        table.add_column(row["method"] + (f" s{row['seed']}" if several else ""), justify="right")
    for key in rows[0]:
        if key.startswith(DOMAIN_PREFIX):
            name = key.removeprefix(DOMAIN_PREFIX)
            table.add_row(name, *(_complement(row.get(key)) for row in rows))
    table.add_section()
    for title, key in SHOWN.items():
        cells = [
            _complement(row.get("segment_error_pct"))
            if key == "segment_accuracy"
            else number(row.get(key))
            for row in rows
        ]
        if title not in _OPTIONAL or any(cells):
            table.add_row(title, *cells)
    show(f"class-incremental accuracy % after {rows[0]['protocol']}, {rows[0]['backbone']}", table)


def show_learning_stream(plan: Mapping[str, Any], as_json: bool) -> None:
    """A learning stream's plan."""
    if as_json:
        typer.echo(json.dumps(plan, indent=2))
        return
    for key, value in plan.items():
        if key not in ("tasks", "items"):
            typer.echo(f"{key}: {value}")
    tasks = new_table()
    for head in ("task", "classes", "training images", "test images"):
        tasks.add_column(head, justify="left" if head in ("task", "classes") else "right")
    for task in plan["tasks"]:
        classes = ",".join(map(str, task["classes"]))
        tasks.add_row(task["name"], classes, str(task["train"]), str(task["test"]))
    show("tasks", tasks)
    items = new_table()
    for head in ("item", "kind", "name", "images", "by task"):
        items.add_column(head, justify="right" if head in ("item", "images") else "left")
    for place, item in enumerate(plan["items"]):
        parts = item.get("samples_by_task", {})
        mixed = ", ".join(f"{task}: {n}" for task, n in parts.items()) if len(parts) > 1 else ""
        items.add_row(str(place), item["kind"], item["name"], str(item["samples"]), mixed)
    show("items in the order of the stream", items)


def is_learner(name: str) -> bool:
    """Whether a method's name is of strategies or of Avalanche, rather than of an adapter alone."""
    from continual.factory import list_strategies
    from tta.factory import list_adapters

    plain = name.replace("_", "-")
    known = [LEARNER, *list_strategies()]
    if any(sign in name for sign in "+:") or plain in known:
        return True
    if plain in list_adapters():
        return False
    from tta.config import did_you_mean

    hint = did_you_mean(plain, [*known, *list_adapters()])
    if any(f"'{word}'" in hint for word in known):
        raise UsageError(f"unknown method {name!r}{hint}")
    return False


def show_learner(name: str, as_json: bool) -> None:
    """Options of the parts of a learning method, or of the learner alone (``learner``).

    Raises:
        UsageError: For an unknown part.
    """
    configs: dict[str, Any]
    options: list[dict[str, Any]] = []
    if name == LEARNER:
        from continual.learner import LearnerConfig

        configs = {LEARNER: LearnerConfig}
    else:
        method = Method.read(name)
        configs = {part: c for part, c in method.configs.items() if part != LEARNER}
        if method.avalanche:
            options += _arguments(method.avalanche)
    several = len(configs) + bool(options) > 1
    for part, config in configs.items():
        options += [
            {
                "option": f"{part}.{item.name}" if several else item.name,
                "default": None if item.default is MISSING else item.default,
                "type": str(item.type),
                "meaning": item.metadata.get("doc", ""),
            }
            for item in fields(config)
        ]
    if as_json:
        typer.echo(json.dumps(options, indent=2))
        return
    table = new_table()
    for head in ("option", "default", "meaning"):
        table.add_column(head)
    for option in options:
        table.add_row(option["option"], str(option["default"]), option["meaning"])
    show(f"options of {name} (--set option=value); those of the loop: -m learner", table)


def _arguments(path: str) -> list[dict[str, Any]]:
    """Keyword arguments of an Avalanche strategy that a command line may give."""
    from continual.avalanche_strategy import find_strategy

    found = find_strategy(path)
    return [
        {
            "option": item.name,
            "default": None if item.default is inspect.Parameter.empty else str(item.default),
            "type": str(item.annotation),
            "meaning": f"argument of {found.__name__}",
        }
        for item in inspect.signature(found).parameters.values()
        if item.name not in _GIVEN and item.kind is not inspect.Parameter.VAR_KEYWORD
    ]


def _complement(error_pct: float | None) -> str:
    return "" if error_pct is None else number(100 - error_pct)
