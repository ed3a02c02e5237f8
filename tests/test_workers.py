# SPDX-License-Identifier: Apache-2.0
"""Workers end with the process that gives out the work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

PARENT = """
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import os
from timnet_hf.workers import follow_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), follow_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # One that has ended, and whose end nobody has taken note of, is a zombie.
    with open(f"/proc/{process}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_a_worker_does_not_outlive_a_parent_that_is_killed(tmp_path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    pipes: dict[str, int] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, script], text=True, **pipes) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert is_alive(worker)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while is_alive(worker):
        assert time.monotonic() < deadline, "the worker goes on without its parent"
        time.sleep(0.05)
