"""What a data task does to its own process; the graph itself is in ``integration/test_stream.py``."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("niceness", "after"), [(0, "15"), (19, "19")])
def test_a_data_task_makes_itself_nice_and_never_less_so(niceness, after):
    code = (
        f"import os; os.nice({niceness}); from deepcoro.data.pipeline import _step_back; _step_back(); _step_back(); "
        "print(os.getpriority(os.PRIO_PROCESS, 0))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == after
