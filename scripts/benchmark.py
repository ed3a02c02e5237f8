# SPDX-License-Identifier: Apache-2.0
"""Measure speed and memory by ratio, on one thread, and write results/benchmark.json.

python scripts/benchmark.py                     all rows but the slow one
python scripts/benchmark.py --only training     the rows whose name has this in it
python scripts/benchmark.py --slow --data-dir DATA    the slow one: time to train, on EMO-DB

Each row is written as soon as it is measured, beside those of earlier runs, and says of which
commit it is; the README's table follows with `python scripts/update_tables.py`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

# Before numpy, torch and TensorFlow are loaded, which read them once.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")

import torch  # noqa: E402
from benchmark_limits import measure_anew  # noqa: E402
from benchmark_processes import ROWS as PROCESS_ROWS  # noqa: E402
from benchmark_rows import ROWS  # noqa: E402
from benchmark_timing import merge_rows, with_aim  # noqa: E402
from transformers.utils import logging  # noqa: E402

from timnet_hf.provenance import versions  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
#: Where the published network ends up on new voices, by one seed and another.
WANTED = 55.0
TRAINING_TIME = f"training until {WANTED:.0f} % UAR on new voices, features included"
ALL = {**ROWS, **PROCESS_ROWS}
ORDER = [*ROWS, TRAINING_TIME, *PROCESS_ROWS]
#: Packages that only the other side, or the exported file, needs.
OTHERS = ("librosa", "tensorflow", "tf_keras", "onnxruntime")


def provenance() -> dict[str, Any]:
    """Commit, day, and the versions of everything that was measured."""

    def git(*command: str) -> str:
        run = subprocess.run(
            ["git", *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return run.stdout.strip()

    changed = "-changed" if git("status", "--porcelain", "--", "timnet_hf", "scripts") else ""
    return {
        "commit": (git("rev-parse", "--short", "HEAD") or "unknown") + changed,
        "date": date.today().isoformat(),
        "versions": versions(*OTHERS),
    }


def main() -> int:
    """Measure the rows that were asked for and write each down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME", help="rows whose name has this in it")
    parser.add_argument("--rounds", type=int, default=20, help="pairs of measurements, at least")
    parser.add_argument("--slow", action="store_true", help="only the time of a whole training")
    parser.add_argument("--data-dir", type=Path, help="EMO-DB, for --slow")
    parser.add_argument("--seeds", type=int, default=3, help="pairs of trainings, for --slow")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmark.json")
    arguments = parser.parse_args()
    if arguments.slow and arguments.data_dir is None:
        parser.error("--slow needs --data-dir, the folder of EMO-DB")
    names = [name for name in ALL if (arguments.only or "").lower() in name.lower()]
    if not names:
        parser.error(f"no row is called so; there are: {', '.join(ALL)}")
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in [TRAINING_TIME] if arguments.slow else names:
        print(f"{name} …", end=" ", flush=True)
        measure_anew()
        if arguments.slow:
            from benchmark_training import training_time_row

            row = training_time_row(name, arguments.data_dir, WANTED, arguments.seeds)
        else:
            row = ALL[name](name, arguments.rounds)
        print("{ratio_median} × ({ours} {unit} against {other}, limit {limit})".format(**row))
        merge_rows(arguments.output, [{**with_aim(row), **provenance()}], ORDER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
