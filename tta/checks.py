"""The conformance suite: what every adapter must hold, ours and third parties' alike.

    for check in tta.checks.yield_checks("tent"):
        check(model, batches)

Every check raises ``AssertionError`` with a sentence that says what does not hold.
"""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tta.adapter import Adapter
from tta.checks_run import Maker, equal, run, same, weights
from tta.config import AdapterConfig
from tta.errors import AdapterError
from tta.factory import adapters


@dataclass(frozen=True)
class Check:
    """One check of one adapter.

    Attributes:
        name: Name for reports.
        function: Raises ``AssertionError`` with a sentence if the check does not hold.
    """

    name: str
    function: Callable[[nn.Module, Sequence[Tensor]], None]

    def __call__(self, model: nn.Module, batches: Sequence[Tensor]) -> None:
        """Run the check.

        Args:
            model: Source model; left untouched.
            batches: At least four batches ``(B, C, H, W)`` in ``[0, 1]`` with ``B >= 4``, in the
                model's dtype.

        Raises:
            AssertionError: If it does not hold.
        """
        self.function(model, batches)


def yield_checks(
    method: str | type[Adapter],
    config: AdapterConfig | None = None,
    *,
    executor: Executor | None = None,
) -> Iterator[Check]:
    """The checks of a method, by registered name or by class.

    Args:
        method: A name of ``tta.list_adapters()``, or an adapter class (importable from a module, so
            that another process can load it).
        config: Config to check; each of the class's ``check_options`` when ``None``.
        executor: Runs the other process of the resume check; a fresh process when ``None``. Share
            one of ``other_process()`` over many checks to pay its start once.
    """
    cls = adapters.get(method) if isinstance(method, str) else method
    if config is None:
        for options in cls.check_options:
            made = cls.Config.create(options)
            for check in yield_checks(cls, made, executor=executor):
                words = ",".join(f"{key}={value}" for key, value in options.items())
                yield Check(f"{check.name}[{words}]" if options else check.name, check)
        return
    make = Maker(cls, config)
    for function in (
        _adapts_if_it_says_so,
        _config_is_sound,
        _source_model_untouched,
        _same_input_same_output,
        _reset_equals_fresh,
        _state_survives_save_and_load,
        _state_is_a_snapshot,
        _state_of_another_config_is_refused,
        _copy_is_independent,
        _predict_changes_nothing,
        _batch_of_one,
        _ragged_last_batch,
        _bad_rows_do_not_poison,
        _works_in_grad_modes,
        _modes_survive_train_and_eval,
        _dropout_stays_off,
        _global_random_state_untouched,
        _report_is_flat,
    ):
        yield Check(function.__name__.strip("_"), partial(function, make))
    yield Check("resumes_in_a_new_process", partial(_resumes_in_a_new_process, make, executor))


def other_process() -> ProcessPoolExecutor:
    """A single spawned process for the resume check."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def runs_on(method: str | type[Adapter], model: nn.Module) -> bool:
    """Whether the method can adapt the model; a refusal must come before the first batch."""
    cls = adapters.get(method) if isinstance(method, str) else method
    try:
        Maker(cls, None)(model)
    except AdapterError:
        return False
    return True


def _config_is_sound(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    adapter = make(model)
    config = adapter.config
    assert type(config).create(config.to_dict()) == config, "config does not survive to_dict"
    assert pickle.loads(pickle.dumps(config)) == config, "config does not survive pickling"
    assert adapter.predicts in ("before", "after"), "predicts must be 'before' or 'after'"
    assert adapter.name in repr(adapter), "repr does not name the method"


def _adapts_if_it_says_so(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    whole = make.whole(model, batches)
    if make.cls.needs.gradients:
        assert whole.backwards > 0, "no batch was learnt from: set check_options that let some pass"
        changed = any(not equal(whole.before[k], whole.after[k]) for k in whole.before)
        assert changed, "nothing changed"
    else:
        assert whole.backwards == 0, "needs.gradients is false, yet the method back-propagates"


def _source_model_untouched(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    before, after = make.whole(model, batches).source_before, model.state_dict()
    assert before.keys() == after.keys(), "the source model gained or lost tensors"
    assert all(torch.equal(before[k], after[k]) for k in before), "the source model was changed"


def _same_input_same_output(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    again = run(make(model), batches)
    assert same(again, make.uninterrupted(model, batches)), "two runs differ"


def _reset_equals_fresh(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    adapter = make(model)
    run(adapter, batches)
    for sentence in ("reset is not a fresh start", "the second reset restores drifted state"):
        adapter.reset()
        assert same(run(adapter, batches), make.uninterrupted(model, batches)), sentence


def _state_survives_save_and_load(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    adapter = make(model)
    run(adapter, batches[:2])
    file = io.BytesIO()
    torch.save(adapter.state_dict(), file)
    file.seek(0)
    other = make(model)
    other.load_state_dict(torch.load(file, weights_only=True))
    whole = make.uninterrupted(model, batches)
    rest = run(other, batches[2:])
    assert same(rest, whole[2:]), "save, load, continue differs from uninterrupted"
    other.reset()
    assert same(run(other, batches), whole), "reset after load differs"


def _state_is_a_snapshot(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    adapter = make(model)
    run(adapter, batches[:2])
    state = adapter.state_dict()
    rest = make.uninterrupted(model, batches)[2:]
    assert same(run(adapter, batches[2:]), rest), "taking a state_dict changes the next steps"
    adapter.load_state_dict(state)
    assert same(run(adapter, batches[2:]), rest), "a kept state_dict changed under later steps"
    adapter.load_state_dict(state)
    assert same(run(adapter, batches[2:]), rest), "loading a state_dict aliases its tensors"


def _state_of_another_config_is_refused(
    make: Maker, model: nn.Module, batches: Sequence[Tensor]
) -> None:
    adapter = make(model)
    values = adapter.config.to_dict()
    other = type(adapter)(
        copy.deepcopy(model), type(adapter.config).create(values | {"seed": values["seed"] + 1})
    )
    try:
        other.load_state_dict(adapter.state_dict())
    except AdapterError:
        return
    raise AssertionError("a state saved under another config is loaded without a word")


def _copy_is_independent(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    adapter = make(model)
    run(adapter, batches[:2])
    twin = copy.deepcopy(adapter)
    first = run(adapter, batches[2:])
    assert same(run(twin, batches[2:]), first), "a deep copy shares state with its original"


def _predict_changes_nothing(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    adapter = make(model)
    for x, step in zip(batches, make.uninterrupted(model, batches), strict=True):
        before = weights(adapter)
        first, second = adapter.predict(x), adapter.predict(x)
        assert not first.requires_grad, "predict returns a graph"
        assert equal(first, second), "predict gives two answers"
        after = weights(adapter)
        assert all(equal(before[k], after[k]) for k in before), "predict changed a tensor"
        assert equal(adapter(x), step), "predict changed the next step"


def _batch_of_one(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    adapter = make(model)
    for x in batches:
        logits = adapter(x[:1])
        assert logits.shape[0] == 1, "a batch of one does not give one row"
        assert bool(logits.isfinite().all()), "a batch of one gives NaN"
    assert _finite(adapter), "a batch of one poisons the weights"


def _ragged_last_batch(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    adapter = make(model)
    run(adapter, batches[:2])
    logits = adapter(batches[2][:3])
    assert logits.shape[0] == 3, "a short batch does not give its rows"
    assert bool(logits.isfinite().all()), "a short batch gives NaN"
    assert bool(adapter(batches[3]).isfinite().all()), "a short batch breaks the next"


def _bad_rows_do_not_poison(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    for value in (float("nan"), float("inf")):
        adapter, clean = make(model), make(model)
        x = batches[0].clone()
        x[1, 0, 0, 0] = value
        logits = adapter(x)
        keep = torch.tensor([i != 1 for i in range(len(x))])
        assert not bool(logits[1].isfinite().any()), "a bad image gets a confident answer"
        assert equal(logits[keep], clean(batches[0][keep])), "a bad image changed its neighbours"
        adapter(torch.full_like(x, value))
        clean.num_steps = adapter.num_steps
        assert _finite(adapter), "bad images reached the weights"
        assert equal(adapter(batches[1]), clean(batches[1])), "bad images changed the state"


def _works_in_grad_modes(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    plain = make.uninterrupted(model, batches)
    for mode in (torch.no_grad, torch.inference_mode):
        adapter = make(model)
        with mode():
            inside = run(adapter, [x.clone() for x in batches])
        assert same(inside, plain), f"results differ inside {mode.__name__}"
    assert not any(x.requires_grad for x in plain), "the returned logits carry a graph"


def _modes_survive_train_and_eval(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    adapter = make(model)
    expected = make.uninterrupted(model, batches)
    got = []
    for step, x in enumerate(batches):
        adapter.train(step % 2 == 0)
        got.append(adapter(x))
    assert same(got, expected), "train() or eval() changes the modes that the method chose"


def _dropout_stays_off(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    live = make.whole(model, batches).live_dropout
    assert not live, f"dropout is on: {', '.join(live)}"


def _global_random_state_untouched(
    make: Maker, model: nn.Module, batches: Sequence[Tensor]
) -> None:
    drawn = make.whole(model, batches).global_draws
    assert not drawn, "a draw came from torch's global generator"


def _report_is_flat(make: Maker, model: nn.Module, batches: Sequence[Tensor]) -> None:
    adapter = make(model)
    adapter(batches[0])
    report = adapter.report
    assert {"forwards", "backwards"} <= report.keys(), "the report lacks its costs"
    assert all(isinstance(v, (int, float)) for v in report.values()), "the report is not scalar"
    assert report["forwards"] >= len(batches[0]), "a step reports fewer forwards than images"


def _resumes_in_a_new_process(
    make: Maker, executor: Executor | None, model: nn.Module, batches: Sequence[Tensor]
) -> None:
    adapter = make(model)
    run(adapter, batches[:2])
    file = io.BytesIO()
    torch.save(adapter.state_dict(), file)
    here = make.uninterrupted(model, batches)[2:]
    # Pickled here, so that a class which the other process cannot import is an error, not a crash.
    task = pickle.dumps((make, model, file.getvalue(), list(batches[2:])))
    threads = torch.get_num_threads()
    if executor is None:
        with other_process() as process:
            there = process.submit(_continue, task, threads).result()
    else:
        there = executor.submit(_continue, task, threads).result()
    assert same(here, [torch.from_numpy(x) for x in there]), "a new process continues differently"


def _continue(task: bytes, threads: int) -> list[Any]:
    make, model, state, batches = pickle.loads(task)
    torch.set_num_threads(threads)
    adapter = make(model)
    adapter.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
    return [adapter(x).numpy() for x in batches]


def _finite(adapter: Adapter) -> bool:
    return all(bool(v.isfinite().all()) for v in weights(adapter).values() if v.is_floating_point())
