"""What repeated seeds say: intervals of a mean, and paired comparisons."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence

# Differences below it are rounding: errors are multiples of 100 over the number of samples.
ROUNDING = 1e-9
NOISE = 0.05
"""p-value from which on a difference counts as within the noise of the seeds."""


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half of its 95 % interval (Student's t); ``None`` for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, float(half)


def paired_test(
    ours: Mapping[Hashable, float], others: Mapping[Hashable, float]
) -> tuple[float | None, int]:
    """Two-sided p-value of the paired t-test over what both have, and the number of pairs.

    Args:
        ours: A value by seed.
        others: Likewise.

    Returns:
        ``None`` for fewer than two pairs. Differences that are all equal have no variance for the
        t-test: p is 1 where they are zero, else that of the exact sign test, ``2 ** (1 - pairs)``.
        The t-test's limit, 0, would call one image more in every seed a certain difference.
    """
    shared = [key for key in ours if key in others]
    if len(shared) < 2:
        return None, len(shared)
    differences = [ours[key] - others[key] for key in shared]
    if max(differences) - min(differences) < ROUNDING:
        equal = abs(differences[0]) < ROUNDING
        return 1.0 if equal else 2.0 ** (1 - len(shared)), len(shared)
    from scipy.stats import ttest_rel

    test = ttest_rel([ours[key] for key in shared], [others[key] for key in shared])
    return float(test.pvalue), len(shared)
