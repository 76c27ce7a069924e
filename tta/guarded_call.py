"""One call of a guarded adapter: answer, check, alarm, report (see ``tta.guard``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tta import estimate
from tta import guard_signals as signals
from tta.budget import without_adapting

if TYPE_CHECKING:
    from tta.adapter import Adapter
    from tta.guard import Guard

# Below it a standardised signal is as good as the source: a snapshot may be taken, a probe passes.
GOOD, PASSED = 1.0, 2.0
PROBES = 2
FORGIVEN = 16
# A watched value of fewer images says nothing.
FEWEST = 16


class GuardedCall:
    """One call in progress; all that outlives it is in ``adapter.guard_state``."""

    def __init__(
        self, guard: Guard, adapter: Adapter, x: Tensor, live: Callable[[Tensor], Tensor]
    ) -> None:
        self.guard, self.adapter, self.x, self.live = guard, adapter, x, live
        self.config, self.state = guard.config, adapter.guard_state
        self.now = adapter.num_steps
        self.events: list[str] = []
        self.calls: list[estimate.Call] = []
        self.values: dict[str, float] = {}
        self.base: dict[str, float] = {}
        self.forwards = 0

    @property
    def unit(self) -> int:
        """Steps of the shortest suspension: what a check and its images take."""
        return max(self.config.every, -(-self.config.window // len(self.x)))

    def run(self) -> Tensor:
        """The answer ``(B, K)``."""
        state = self.state
        if state["phase"] == "hold" and state["hold"] == 0:
            state["phase"] = "probe"
        phase = state["phase"]
        if phase == "hold":
            logits = self._suspended()
        else:
            logits = self._call(phase)
            given = self._source() if phase == "probe" else None
            logits = self._look(logits, given)
        if phase in ("hold", "probe"):
            state["served"] += 1
        self._estimate(logits)
        self._report(phase)
        return logits

    def _call(self, phase: str) -> Tensor:
        adapter = self.adapter
        if phase == "frozen":
            logits = without_adapting(adapter, self.x, adapter.predict)
            adapter.count_forwards(len(self.x))
            return logits
        if self.guard.tap is None:
            return self.live(self.x)
        with estimate.recorded(self.guard.tap, adapter.model, len(self.x)) as calls:
            logits = self.live(self.x)
        self.calls += calls
        return logits

    def _suspended(self) -> Tensor:
        if self.state["hold"] > 0:
            self.state["hold"] -= 1
        return without_adapting(self.adapter, self.x, lambda _: self._source())

    def _source(self) -> Tensor:
        """The source model's answer to this batch; rows that are not finite get NaN."""
        guard, x = self.guard, self.x
        self.forwards += len(x)
        if guard.tap is None:
            return self.adapter._on_finite_rows(guard.answer, x)[0]
        with estimate.recorded(guard.tap, guard.source, len(x)) as calls:
            logits = self.adapter._on_finite_rows(guard.answer, x)[0]
        self.calls += calls
        return logits

    # Checks ---------------------------------------------------------------------------------

    def _look(self, logits: Tensor, given: Tensor | None) -> Tensor:
        """Check where a check is due; the source's answer where it raises an alarm."""
        state = self.state
        finite = logits.isfinite().all(1)
        lost = int((~finite).sum())
        if lost > int(self.adapter._report.get("skipped_non_finite", 0)):
            given = self._source() if given is None else given
            return self._alarm("not finite", logits, given)
        rows = finite.nonzero()[:, 0] if lost else slice(None)
        images, answers = self.x[rows], logits[rows]
        if len(images) < self.config.window:
            images, answers = self._pooled(images, answers)
        if len(images) < self.config.window or not self._due(answers, given):
            return logits if given is None else given
        state["images"], state["logits"] = [], []
        if lost or len(images) != len(self.x):
            reference, self.forwards = self.guard.answer(images), self.forwards + len(images)
            passed = logits if given is None else given
        else:
            given = self._source() if given is None else given
            reference, passed = given, (logits if state["phase"] != "probe" else given)
        # What later steps are measured against is what they have, too: the answers as given.
        self.base = signals.watched(answers.float())
        if self.adapter.answers_with_views:
            answers = self.adapter.predict(images)
            self.adapter.count_forwards(len(images))
        verdict = signals.compare(answers, reference)
        return self._judge(verdict, logits, passed, given)

    def _pooled(self, images: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        """The last ``window`` images with the answers that were given, this batch included."""
        state = self.state
        state["images"].append(images.detach().clone())
        state["logits"].append(answers.detach().clone())
        total = sum(map(len, state["images"]))
        while total - len(state["images"][0]) >= self.config.window:
            total -= len(state["images"].pop(0))
            state["logits"].pop(0)
        return torch.cat(state["images"]), torch.cat(state["logits"])

    def _due(self, answers: Tensor, given: Tensor | None) -> bool:
        state = self.state
        if self.now >= state["next"] or given is not None:
            return True
        if state["early"] or state["base"] is None or len(self.x) < FEWEST:
            return False
        unlike = signals.suspicious(
            signals.watched(answers.float()), state["base"], state["spread"], self.config.level
        )
        falling = self.config.estimate and estimate.recovery(state["estimates"])
        if unlike or falling:
            state["early"] = True
            return True
        return False

    def _judge(
        self, verdict: signals.Comparison, logits: Tensor, passed: Tensor, given: Tensor | None
    ) -> Tensor:
        state = self.state
        state["spread"] = signals.observe(state["spread"], verdict.source)
        self.values = {
            "source_agreement": 100 * verdict.agreement,
            "logit_norm": torch.tensor(verdict.adapter["log_norm"]).exp().item(),
            "weight_drift": self._drift(),
            **{f"guard_{name}": score for name, score in verdict.scores.items()},
        }
        if state["phase"] == "probe":
            return self._probed(verdict, passed)
        state["sums"], reason = signals.accumulate(state["sums"], verdict.scores, self.config.level)
        if reason is not None:
            return self._alarm(reason, logits, given)
        if self.now >= state["next"]:
            state["next"], state["early"] = self.now + state["gap"], False
            state["gap"] = min(2 * state["gap"], self.config.every)
        state["base"] = self.base
        if self.config.action == "watch" or state["phase"] == "frozen":
            return passed
        if max(verdict.scores.values()) < GOOD:
            # One check late: the newest may be the first of a decline that is not seen yet.
            state["good"], state["candidate"] = state["candidate"], self._snapshot()
        length = self.unit * 2 ** max(0, state["strikes"] - 1)
        if state["strikes"] and self.now - state["since"] >= FORGIVEN * length:
            state["strikes"], state["since"] = state["strikes"] - 1, self.now
        return passed

    def _probed(self, verdict: signals.Comparison, passed: Tensor) -> Tensor:
        state = self.state
        if max(verdict.scores.values()) >= PASSED:
            self._suspend()
            self.events.append("probe failed")
            return passed
        state["probes"] += 1
        self.events.append("probe passed")
        if state["probes"] < PROBES:
            state["phase"], state["hold"] = "hold", self.config.every
            return passed
        state.update(phase="live", probes=0, next=self.now + 1, gap=1, early=False)
        state.update(sums=signals.no_sums(), since=self.now, base=self.base)
        self.events.append("live")
        return passed

    # What an alarm does ---------------------------------------------------------------------

    def _alarm(self, reason: str, logits: Tensor, given: Tensor | None) -> Tensor:
        state, action = self.state, self.config.action
        state["alarms"] += 1
        self.events.append(f"alarm: {reason}")
        state["sums"] = signals.no_sums()
        if action == "watch":
            state["next"], state["gap"] = self.now + self.config.every, self.config.every
            return logits
        given = self._source() if given is None else given
        state["images"], state["logits"] = [], []
        if action == "freeze":
            if state["phase"] == "frozen":
                state.update(phase="hold", hold=-1)
                self.events.append("fallback")
            else:
                self._back(state["good"])
                state.update(phase="frozen", next=self.now + 1, gap=1, base=None)
                self.events.append("freeze")
        elif action == "rollback" and self._may_go_on():
            self._back(state["good"])
            state.update(strikes=1, since=self.now, next=self.now + 1, gap=1, base=None)
            self.events.append("rollback")
        else:
            self._suspend()
            self.events.append("fallback")
        return given

    def _may_go_on(self) -> bool:
        """Whether this alarm is the first, and the next batch alone will tell whether all is well.

        Smaller batches would answer for a whole window before the next check.
        """
        state = self.state
        first = state["phase"] == "live" and not state["strikes"]
        return first and len(self.x) >= self.config.window

    def _suspend(self) -> None:
        """Back to the start, and the source's answers for a while."""
        state = self.state
        state["strikes"] += 1
        self._back(None)
        length = self.unit * 2 ** (state["strikes"] - 1)
        state.update(phase="hold", hold=length, probes=0, good=None, candidate=None, base=None)

    def _snapshot(self) -> dict[str, Any]:
        adapter, state = self.adapter, self.adapter.guard_state
        adapter.guard_state = {}  # a snapshot holds no snapshots
        made = adapter._snapshot()
        adapter.guard_state = state
        for name, value in made["states"].items():
            start = adapter._initial["states"].get(name)
            # What never changes (images kept for replay) is held once.
            if isinstance(value, Tensor) and isinstance(start, Tensor) and _same(value, start):
                made["states"][name] = start
        return made

    def _back(self, snapshot: dict[str, Any] | None) -> None:
        """Restore a snapshot, or the start; time and the guard's own state go on."""
        adapter, state, steps = self.adapter, self.adapter.guard_state, self.adapter.num_steps
        adapter._restore(adapter._initial if snapshot is None else snapshot)
        adapter.guard_state, adapter.num_steps = state, steps

    def _drift(self) -> float:
        """Norm of the change of the adapted weights, over the norm of what they started from."""
        adapter, start = self.adapter, self.adapter._initial["tensors"]
        now = {n: p for n, p in adapter.model.named_parameters(prefix="model") if p.requires_grad}
        if not now:
            return 0.0
        with torch.no_grad():
            before = [start[name].to(p) for name, p in now.items()]
            moved = torch._foreach_sub(list(now.values()), before)
            norms = [torch.stack(torch._foreach_norm(part)).norm() for part in (moved, before)]
            return float(norms[0] / norms[1].clamp_min(1e-12))

    # What is said ---------------------------------------------------------------------------

    def _estimate(self, logits: Tensor) -> None:
        tap, state = self.guard.tap, self.state
        if tap is None or not bool(logits.isfinite().all()):
            return
        adapter = self.adapter
        call = estimate.of_answer(self.calls, logits)
        if call is None:
            with torch.no_grad(), torch.inference_mode(False):
                features, _ = tap(adapter.model, self.x)
                call = estimate.Call(features, *tap.weights(adapter.model))
            adapter._report["estimate_forwards"] = len(self.x)
        rate = self.config.dropout or estimate.default_rate(logits.shape[1])
        wrong = estimate.errors(call, rate, adapter.generator("estimate"))
        state["smoothed"] = estimate.smooth(state["smoothed"], *wrong)
        kept = [*state["estimates"], 1 - state["smoothed"]]
        state["estimates"] = kept[-2 * estimate.WINDOW :]
        self.values["estimated_accuracy"] = 100 * (1 - state["smoothed"])
        adapter._report["estimate_classifier_forwards"] = estimate.DRAWS * len(self.x)

    def _report(self, phase: str) -> None:
        adapter, state = self.adapter, self.state
        adapter._report.update(self.values)
        adapter._report["guard_forwards"] = self.forwards
        adapter._report["guard_alarms"] = state["alarms"]
        adapter.guard_phase = phase
        adapter.guard_event = "; ".join(self.events) or None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and a.equal(b)
