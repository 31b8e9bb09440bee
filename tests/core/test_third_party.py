"""Foreign libraries load quietly, and leave the process as it was, also in several threads at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings

import pytest

from daskpipe.core.third_party import UNPICKLE_ANYTHING, silence_libraries


def test_threads_that_overlap_leave_stdout_and_warnings_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    stdout, filters = sys.stdout, list(warnings.filters)
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def first() -> None:
        with silence_libraries():
            first_is_in.set()
            second_is_in.wait()
            print("of the first")
        first_is_out.set()

    def second() -> None:
        first_is_in.wait()
        with silence_libraries():
            second_is_in.set()
            first_is_out.wait()
            print("of the second, when the first has left")

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.stdout is stdout
    assert warnings.filters == filters
    print("afterwards")
    assert capsys.readouterr().out == "afterwards\n"


def test_an_error_inside_leaves_stdout_as_it_was() -> None:
    stdout = sys.stdout
    with pytest.raises(ValueError, match="inside"), silence_libraries():
        raise ValueError("inside")
    assert sys.stdout is stdout


TWO_IMPORTS = f"""
import os, sys, threading
from daskpipe.core.third_party import import_mace
stdout, both = sys.stdout, threading.Barrier(2)
def load():
    both.wait()
    import_mace()
threads = [threading.Thread(target=load) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert "mace" in sys.modules
assert sys.stdout is stdout
print(os.environ.get({UNPICKLE_ANYTHING!r}))
"""


@pytest.mark.slow
def test_two_threads_that_import_mace_leave_torchs_safe_loading_alone() -> None:
    """In a process of its own, where MACE is not imported yet: the second thread waits for the import of the first."""
    environment = {name: value for name, value in os.environ.items() if name != UNPICKLE_ANYTHING}
    done = subprocess.run(
        [sys.executable, "-c", TWO_IMPORTS], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "None\n"
