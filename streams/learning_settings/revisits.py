"""Earlier tasks come back beside the new one, by a schedule such as the power law (2024).

Natural Mitigation of Catastrophic Interference: Continual Learning in Power-Law Learning
Environments, 2024, arXiv:2401.10393; see ``streams.powerlaw``. A revisited task shows samples drawn
anew from all of its own: no buffer is kept.
"""

from __future__ import annotations

import numpy as np

from streams.learning_settings import Arrangement, Request
from streams.learning_types import Experience, joined
from streams.options import Option
from streams.powerlaw import MODES, Schedule

OPTIONS: dict[str, tuple[Option, str]] = {
    "mode": ("power", f"schedule of the old tasks: {', '.join(MODES)}"),
    "budget": (1.0, "old samples over new ones in a phase; below 0: unlimited, for power alone"),
    "exponent": (5.6, "of mode power"),
    "offset": (10.0, "of mode power, in phases"),
    "beta": (1.0, "of mode exponential, in phases"),
}


def arrange(request: Request) -> Arrangement:
    """A phase a task: the new task whole, and samples of every earlier one.

    Where tasks differ in size, each gives at most as many samples as the smallest has, so that the
    counts are those of the schedule.

    Raises:
        StreamError: For an option that the schedule does not take.
    """
    made = schedule(request)
    tasks = request.tasks
    everything = joined([task.train for task in tasks])
    starts = np.cumsum([0, *(len(task.train) for task in tasks)])[:-1]
    # A fixed draw of equally many of each task; the whole task where all are of one size.
    pools = [
        request.draw("revisits", "pool", number).permutation(len(task.train))[: made.num_samples]
        for number, task in enumerate(tasks)
    ]
    items = []
    for phase, task in enumerate(tasks):
        of, samples = made.draw(phase, seed=request.seed)
        places = np.array(pools)[of, samples] + starts[of]
        items.append(Experience(name=task.name, train=everything.take(places), task=phase))
    return Arrangement(tasks=tasks, items=tuple(items))


def schedule(request: Request) -> Schedule:
    """The schedule that the options ask for; its ``counts`` can be printed.

    Raises:
        StreamError: For an option that the schedule does not take.
    """
    options = request.options
    mode = options.choice("mode", MODES)
    budget: float | None = float(options.of["budget"])
    if budget is not None and (budget < 0 or (mode in _WITHOUT and budget == OPTIONS["budget"][0])):
        budget = None
    return Schedule(
        num_samples=min(len(task.train) for task in request.tasks),
        mode=mode,  # type: ignore[arg-type]
        budget=budget,
        **{name: float(options.of[name]) for name in ("exponent", "offset", "beta")},
    )


_WITHOUT = ("joint", "none", "table")
