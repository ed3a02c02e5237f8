# SPDX-License-Identifier: Apache-2.0
"""Training and bulk scoring keep the memory that a step has freed, for the next one."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from timnet_hf.memory import keep_freed_memory

from .timnet_command import in_this_process

# What glibc does when left alone depends on what was freed before, so the child first asks for what
# it starts out with: blocks above 128 KiB come from the system and go back to it.
PAGES_FETCHED = """
import ctypes, resource, sys
import torch
from timnet_hf.memory import keep_freed_memory

torch.set_num_threads(1)
assert ctypes.CDLL(None).mallopt(-3, 2**17)
if sys.argv[1] == "keep":
    assert keep_freed_memory()

def step():
    blocks = [torch.zeros(500_000) for _ in range(20)]

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)
def test_blocks_of_two_megabytes_are_not_fetched_again() -> None:
    pages = {
        how: int(subprocess.check_output([sys.executable, "-c", PAGES_FETCHED, how], text=True))
        for how in ("keep", "leave")
    }
    assert 10 * pages["keep"] < pages["leave"]


def test_a_c_library_without_the_option_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str | None) -> object:
        return object()

    monkeypatch.setattr("ctypes.CDLL", load)
    assert not keep_freed_memory()


@pytest.mark.parametrize("command", ["train", "cross-validate", "score"])
def test_the_commands_that_train_or_score_in_bulk_ask_for_it(
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("timnet_hf.memory.keep_freed_memory", lambda: asked.append(True))
    timnet = in_this_process(monkeypatch, capsys)
    given = {
        "train": ("--data-dir", tmp_path, "--output-dir", tmp_path / "model", "--recipe", "none"),
        "cross-validate": ("--data-dir", tmp_path, "--recipe", "none of them"),
        "score": (tmp_path / "nothing", "--output", tmp_path / "scores.parquet"),
    }
    ended = timnet(command, *given[command])
    assert ended.status != 0
    assert asked == [True]
