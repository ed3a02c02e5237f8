# SPDX-License-Identifier: Apache-2.0
"""The rows that need a fresh process for every measurement: start-up and memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark_timing import Measure, alternate, make_row

from timnet_hf.prediction import CHECKPOINTS

Row = dict[str, Any]

SCRIPTS = Path(__file__).resolve().parent
CLIP = sorted((CHECKPOINTS.parent / "demo_clips").glob("*.flac"))[0]

_COMMAND = "import sys; from timnet_hf.cli import main; sys.argv = ['timnet', {}]; main()"
HELP = _COMMAND.format("'--help'")
PREDICT = _COMMAND.format(f"'predict', {str(CLIP)!r}")
#: The same from the parts a user of the paper's code has.
KERAS = f"""
import sys; sys.path.insert(0, {str(SCRIPTS)!r})
import librosa, tensorflow as tf
from keras_timnet import build_keras_timnet, scoring_graph
score = scoring_graph(build_keras_timnet(7))
waveform, rate = librosa.load({str(CLIP)!r}, sr=16000)
features = librosa.feature.mfcc(y=waveform, sr=rate, n_mfcc=39)
print(score(tf.constant(features.T[None])).numpy().argmax())
"""
#: Of Linux. What `getrusage` says counts the memory of the process that started this one, too.
_MEMORY = """
try:
    {}
finally:
    status = open("/proc/self/status").read()
    print(status.partition("VmHWM:")[2].split()[0], file=sys.stderr)
"""


def seconds(code: str) -> Measure:
    """Wall time of a Python process from its start to its end, in s."""

    def measure() -> float:
        start = time.perf_counter()
        _run(code)
        return time.perf_counter() - start

    return measure


def memory(code: str) -> Measure:
    """Largest resident memory of a Python process, in MB."""
    indented = code.strip().replace("\n", "\n    ")

    def measure() -> float:
        return int(_run("import sys" + _MEMORY.format(indented)).split()[-1]) / 1000

    return measure


def importing(module: str, behind: str) -> Measure:
    """Seconds to import a module where another is loaded already; none, where that is empty."""
    before = f"import {behind}; " if behind else ""
    code = (
        f"import sys, time; {before}start = time.perf_counter(); import {module}; "
        "print(time.perf_counter() - start, file=sys.stderr)"
    )
    return lambda: float(_run(code).split()[-1])


def _run(code: str) -> str:
    """Run a program, and return what it writes to the error stream."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=SCRIPTS.parent,
    )
    if done.returncode:
        raise RuntimeError(f"a measured program failed:\n{code}\n{done.stderr}")
    return done.stderr


def import_row(name: str, rounds: int) -> Row:
    """What `import timnet_hf` adds to transformers; importing an empty file is the limit."""
    times = alternate(
        importing("timnet_hf", "transformers"), importing("transformers", ""), rounds, warm_up=1
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "empty_module.py").touch()
        behind = f"transformers; sys.path.append({folder!r})"
        empty = [importing("empty_module", behind)() for _ in range(5)]
    return make_row(name, "import transformers", *times, "s", min(empty))


def help_row(name: str, rounds: int) -> Row:
    """From the shell to the help text and back; a bare Python is the limit."""
    times = alternate(seconds(HELP), seconds("import transformers.pipelines"), rounds, warm_up=1)
    bare, _ = alternate(seconds("pass"), seconds("pass"), 5)
    return make_row(name, "import transformers.pipelines", *times, "s", min(bare))


def first_row(name: str, rounds: int) -> Row:
    """From the shell to the first label; importing torch is the limit."""
    times = alternate(seconds(PREDICT), seconds(KERAS), rounds, warm_up=1)
    bare, _ = alternate(seconds("import torch"), seconds("pass"), 5)
    return make_row(name, "librosa + Keras", *times, "s", min(bare))


def memory_row(name: str, rounds: int) -> Row:
    """Memory of a process that names one emotion; torch alone is the limit."""
    sizes = alternate(memory(PREDICT), memory(KERAS), min(rounds, 5), warm_up=1)
    bare = memory("import torch")()
    return make_row(name, "librosa + Keras", *sizes, "MB", bare)


ROWS: dict[str, Callable[[str, int], Row]] = {
    "import timnet_hf": import_row,
    "timnet --help": help_row,
    "first prediction, from the shell": first_row,
    "peak memory of a first prediction": memory_row,
}

__all__ = ["ROWS", "importing", "memory", "seconds"]
