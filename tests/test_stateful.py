import pytest
import torch

import tta
from benchmarks.steady import tiny_model
from tta.containers import nbytes, share


def test_shared_memory_counts_once():
    base = torch.zeros(100)
    assert nbytes({"a": base, "b": [base[:10], (base.view(10, 10),)], "c": 3}) == base.nbytes


def test_equal_tensors_are_kept_once():
    x = torch.rand(3)
    made = share(
        {"student.w": x.clone(), "teacher.w": x.clone(), "other.v": x.clone(), "teacher.b": -x},
        [("anchor.w", x), ("anchor.b", x)],
    )
    assert made["student.w"].data_ptr() == made["teacher.w"].data_ptr() == x.data_ptr()
    assert made["other.v"].data_ptr() != x.data_ptr()  # another name
    assert torch.equal(made["teacher.b"], -x)  # another value


def fitted(model, method):
    adapter = tta.wrap(model, method)
    if adapter.needs.source_data:
        adapter.fit_source([(torch.rand(8, 3, 16, 16), torch.arange(8))])
    return adapter


@pytest.mark.parametrize(
    ("method", "copies"),
    # Student, teacher, source; PETAL's Fisher is a fourth. Where norm layers alone are adapted, the
    # teacher shares what is not.
    [("cotta", 3), ("petal", 4), ("rotta", 1.3), ("petta", 1.3), ("tent", 1.1)],
)
def test_weight_copies(method, copies):
    model = tiny_model()
    weights = sum(p.nbytes for p in model.parameters())
    adapter = fitted(model, method)
    adapter(torch.rand(8, 3, 16, 16))
    banks = [getattr(adapter, name) for name in adapter._states if name != "teacher"]
    rest = nbytes([dict(adapter.optimizer.state), banks, adapter._initial["states"]])
    held = adapter.nbytes - rest
    assert weights < held <= (copies + 0.1) * weights


def test_reset_after_a_move_and_a_load():
    x = torch.rand(8, 3, 16, 16)
    adapter = fitted(tiny_model(), "petta")
    first = adapter(x)
    state = adapter.state_dict()
    adapter.double().float()
    adapter.load_state_dict(state)
    adapter(x)
    adapter.reset()
    assert torch.equal(adapter(x), first)
