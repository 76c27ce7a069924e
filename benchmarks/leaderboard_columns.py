"""Columns of a leaderboard as data: order, type, unit and definition of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.forget_results import FORGET
from continual.metrics import FORMS, METRICS

LEADERBOARD_VERSION = 2
"""Raised whenever a column comes, goes, or gets another name, place or type."""

DOMAIN_PREFIX = "error_pct_"
DOMAIN = f"{DOMAIN_PREFIX}<domain>"
Column = tuple[str, str]

# What must be equal for two numbers to stand in one ranking.
_GROUP: dict[str, Column] = {
    "protocol": ("str", "id of the protocol, with `+field=value` for what differs from it"),
    "backbone": ("str", "name of the backbone"),
    "weight_hash": ("str", "sha256 of its weights; `by seed` where the seed drew them"),
    "provenance": ("str", "where the pixels come from"),
    "dtype": ("str", "floating type of the run"),
}
_RANKING: dict[str, Column] = {
    "rank": ("int", "by `error_pct` within the ranking, from 1"),
    "method": ("str", "name; two configs of one method are two rows"),
    "error_pct": ("float", "%; error, mean over the seeds"),
    "error_pct_std": ("float", "%; sample standard deviation over the seeds; empty for one seed"),
    "error_pct_ci95": (
        "float",
        "%; half width of the 95 % interval of the mean (Student's t); empty for one seed",
    ),
    "seeds": ("int", "distinct seeds; several runs of one seed count as their mean"),
    "p_vs_best": (
        "float",
        "0 to 1; paired t-test against the first of the ranking; empty for it, and for fewer than "
        "2 shared seeds",
    ),
    "pairs_vs_best": ("int", "seeds shared with the first of the ranking; empty for it"),
}
# Means over the seeds of what a run measured.
MEANS: dict[str, Column] = {
    "source_error_pct": ("float", "%; error of the unadapted model on the same stream"),
    "clean_error_pct": ("float", "%; error on the clean images after the run"),
    "source_clean_error_pct": ("float", "%; the same of the unadapted model"),
    "retention_pct": (
        "float",
        "%; clean accuracy after the run over that of the unadapted model; 100: nothing is lost",
    ),
    "first_visit_error_pct": ("float", "%; error of the first round, where domains come again"),
    "last_visit_error_pct": ("float", "%; error of the last round"),
    "auroc_pct": ("float", "%; open set: AUROC of the confidence"),
    "fpr95_pct": ("float", "%; open set: false positives at 95 % true ones"),
    "h_score_pct": ("float", "%; open set: H-score"),
    "ece_pct": ("float", "%; expected calibration error, 15 bins"),
    "nll": ("float", "nats; negative log-likelihood of the label"),
    "brier": ("float", "0 to 2; Brier score"),
    "selected_fraction": ("float", "0 to 1; share of the samples that was learnt from"),
    "forwards_per_image": ("float", "images sent through the model, over samples"),
    "backwards_per_image": ("float", "images back-propagated, over samples"),
    "seconds_per_1k": ("float", "s; wall time inside the method for 1,000 samples"),
    "peak_mem_mib": ("float", "MiB; CUDA: peak of the allocator, else of the process"),
}
_WORST: dict[str, Column] = {
    "worst_domain": ("str", "the domain with the largest mean error over the seeds"),
    "worst_domain_error_pct": ("float", "%; that error"),
}
_SEGMENTS: dict[str, Column] = {
    "online_error_pct": ("float", "%; on the training batches, before their update"),
    "segment_error_pct": ("float", "%; on the unlabelled segments"),
    "worst_segment_error_pct": ("float", "%; on the worst of them"),
    "recovery_steps": ("float", "steps after a change until the plateau is reached"),
}
# Of learning streams; as columns where a row has them.
LEARNING: dict[str, Column] = {
    **{
        f"{form}_{metric}_pct": ("float", f"%; `{metric}`, {form.replace('_', '-')}")
        for form in FORMS
        for metric in METRICS
    },
    **{
        name: ("float", f"%; mean of `{part}` over the requests to forget")
        for name, part in FORGET.items()
    },
    **_SEGMENTS,
}
_DOMAINS: dict[str, Column] = {DOMAIN: ("float", "%; error on one domain, or on one task's test")}
# Of the first run of the row.
FACTS: dict[str, Column] = {
    "stream": ("str", "name of the stream"),
    "setting": ("str", "order and reset policy"),
    "batch_size": ("int", "images a step"),
    "severity": ("str", "one or several, separated by commas; loads as a number where it is one"),
    "num_examples": ("int", "distinct images"),
    "num_samples": ("int", "predictions made"),
    "reset_policy": ("str", "`never` or `every domain`; on learning streams `every segment`"),
    "predicts": ("str", "logits `before the update` or `after the update`"),
    "norm": ("str", "layer that stands in place of BatchNorm"),
    "window": ("int", "images; length of the sliding window for smaller batches, 1: none"),
    "guard": ("str", "JSON; options of the guard, empty: none"),
    "budget": ("str", "JSON; limits of the adaptation, empty: none"),
    "source_data": ("str", "what the method saw of the source"),
    "tuned_trials": ("int", "configurations that `tune` tried; empty where it was not used"),
    "tuned_on": ("str", "protocol and hash of the tuning stream; empty where not tuned"),
    "weights": ("str", "origin of the weights"),
    "normalisation": ("str", "mean and deviation, applied inside the model"),
    "device": ("str", "where it was computed"),
    "config": ("str", "JSON; all options of the method, without its seed"),
    "version_tta_bench": ("str", "version of tta-bench"),
    "version_torch": ("str", "version of torch"),
    "version_timm": ("str", "version of timm"),
    "version_numpy": ("str", "version of numpy"),
}
_LEADING = {**_RANKING, **MEANS, **_WORST}
_END: dict[str, Column] = {"leaderboard_version": ("int", "version of these columns")}
_TRAILING = {**_GROUP, **FACTS, **_END}
GROUP = tuple(_GROUP)
LEADING = tuple(_LEADING)
TRAILING = tuple(_TRAILING)
COLUMNS: dict[str, Column] = {**_LEADING, **LEARNING, **_DOMAINS, **_TRAILING}
"""Name to type (``int``, ``float`` or ``str``) and definition, in the order of the columns.

``error_pct_<domain>`` stands for one column of each domain. Any value may be missing.
"""


def domain_names(row: Mapping[str, Any]) -> list[str]:
    """The per-domain columns of a row."""
    return [key for key in row if key.startswith(DOMAIN_PREFIX) and key not in LEADING]


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Column names: the leading ones, those of learning, the domains, the trailing ones."""
    domains = dict.fromkeys(name for row in rows for name in domain_names(row))
    learning = [key for key in LEARNING if any(key in row for row in rows)]
    return [*LEADING, *learning, *domains, *TRAILING]


def column_type(name: str) -> str:
    """``int``, ``float`` or ``str``; of a column as the file has it.

    Raises:
        KeyError: For a name that is no column.
    """
    return COLUMNS[DOMAIN if name not in COLUMNS and name.startswith(DOMAIN_PREFIX) else name][0]


def columns_page() -> str:
    """The documentation of the columns as a Markdown table."""
    lines = ["| column | type | unit and definition |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {kind} | {words} |" for name, (kind, words) in COLUMNS.items()]
    return "\n".join(lines) + "\n"
