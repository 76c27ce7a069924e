"""Freed memory stays in the process where it is asked to, and goes back where it is not."""

import os
import subprocess
import sys

import pytest

PROBE = """
import sys
from {module} import keep_freed_memory
took = keep_freed_memory() if sys.argv[1] == "ask" else False

def resident():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1])

x = bytearray(b"x") * 2**26  # 64 MiB, above every threshold of glibc's
before = resident()
del x
print(took, before - resident() > 50_000)
"""


def freed(module, ask, **environment):
    """Whether the request took effect, and whether the memory went back to the kernel."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "TTA_BENCH_M"))}
    ran = subprocess.run(
        [sys.executable, "-c", PROBE.format(module=module), "ask" if ask else "no"],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator alone")
@pytest.mark.parametrize("module", ["tta.allocator", "benchmarks.allocator"])
def test_memory_is_kept(module):
    assert freed(module, ask=False) == ["False", "True"]
    assert freed(module, ask=True) == ["True", "False"]
    assert freed(module, ask=True, MALLOC_ARENA_MAX="2") == ["False", "True"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator alone")
def test_the_variable_of_the_command():
    assert freed("benchmarks.allocator", ask=True, TTA_BENCH_MALLOC="system") == ["False", "True"]
