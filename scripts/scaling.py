# SPDX-License-Identifier: Apache-2.0
"""Measure what bulk scoring costs, and write results/scaling.json and docs/scaling.md.

    python scripts/scaling.py --data-dir FOLDER    measure on the recordings in a folder
    python scripts/scaling.py                      write docs/scaling.md from what was measured

Costs are processor time, user and system, of all processes: a busy machine makes a program wait,
which costs nothing, though it also empties its caches, which does. Start-up is taken out: the cost
of an hour is that of a long run less that of a short one. The matrix product that is timed beside
it says how fast a core was at that moment.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402  (threads are counted at import)
import torch  # noqa: E402

from timnet_hf.audio import find_audio_files, mono_blocks  # noqa: E402
from timnet_hf.decoding import open_recording  # noqa: E402
from timnet_hf.folded_network import FoldedTimNet  # noqa: E402
from timnet_hf.fused_timnet import find_compiled  # noqa: E402
from timnet_hf.memory import keep_freed_memory  # noqa: E402
from timnet_hf.output_folder import write_json  # noqa: E402
from timnet_hf.prediction import load_model, predict_files  # noqa: E402
from timnet_hf.provenance import versions  # noqa: E402
from timnet_hf.scoring import BATCH_SIZE, score  # noqa: E402
from timnet_hf.scoring_batches import Scorer  # noqa: E402
from timnet_hf.scoring_inputs import Item  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "results" / "scaling.json"
PAGE = ROOT / "docs" / "scaling.md"
TEMPLATE = ROOT / "scripts" / "scaling.md.in"
HOUR = 3600.0
SHORT, LONG = 1, 21  # times that the recordings are scored in a short run, and in a long one


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Measure everything, turn by turn, and take medians."""
    torch.set_num_threads(1)
    files = [str(path.absolute()) for path in find_audio_files([folder])]
    items = [Item(index, path, path) for index, path in enumerate(files)]
    model, extractor = load_model()
    scorer = Scorer(model, extractor, BATCH_SIZE)
    seconds = sum(row.duration or 0.0 for row in scorer(items))
    waveforms = [_waveform(path, extractor.sampling_rate) for path in files]
    features = [extractor.normalize(extractor.extract(one)) for one in waveforms]
    batches = _batches(features)
    network = FoldedTimNet(model)
    sides: dict[str, Callable[[], Any]] = {
        "one by one": lambda: list(predict_files(files, model, extractor)),
        "in bulk": lambda: scorer(items),
        "read and decode": lambda: [_waveform(one, extractor.sampling_rate) for one in files],
        "features": lambda: [extractor.normalize(extractor.extract(one)) for one in waveforms],
        "network": lambda: [network(batch) for batch in batches],
    }
    costs: dict[str, list[float]] = {name: [] for name in sides}
    workers: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    speeds, loads = [], []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds} …", flush=True)
        speeds.append(_gemm_gflops())
        loads.append(os.getloadavg()[0])
        for name, side in sides.items():
            costs[name].append(_cpu(side)[0] / seconds * HOUR)
        for count, runs in workers.items():
            runs.append(_marginal(files, seconds, count))
    medians = {name: statistics.median(values) for name, values in costs.items()}
    return {
        "recordings": len(files),
        "audio_hours": seconds / HOUR,
        "mean_seconds": seconds / len(files),
        "rounds": rounds,
        "cpu_seconds_per_audio_hour": medians,
        "times_real_time_per_core": {name: HOUR / cost for name, cost in medians.items()},
        "workers": {
            str(count): {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            for count, runs in workers.items()
        },
        "cpu_ratio_two_to_one": statistics.median(
            two["cpu_seconds_per_audio_hour"] / one["cpu_seconds_per_audio_hour"]
            for one, two in zip(workers[1], workers[2], strict=True)
        ),
        "wall_ratio_one_to_two": statistics.median(
            one["wall_seconds_per_audio_hour"] / two["wall_seconds_per_audio_hour"]
            for one, two in zip(workers[1], workers[2], strict=True)
        ),
        "bytes_per_row": workers[1][0]["bytes_per_row"],
        "compiled": find_compiled("kernels") is not None,
        "machine": {
            "cores": os.cpu_count(),
            "load_average": statistics.median(loads),
            "gemm_gflops": statistics.median(speeds),
            "processor": platform.processor() or platform.machine(),
        },
        "versions": versions(),
    }


def _marginal(files: list[str], seconds: float, workers: int) -> dict[str, float]:
    """Cost of an hour of audio in `score`, start-up taken out."""
    spent: dict[int, tuple[float, float]] = {}
    size = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for times in (SHORT, LONG):
            manifest = Path(scratch, f"{times}.csv")
            manifest.write_text("path\n" + "\n".join(files * times) + "\n", encoding="utf-8")
            output = Path(scratch, f"{times}.parquet")

            def run(manifest: Path = manifest, output: Path = output) -> None:
                # Even the short run has a shard for each worker, so that both have to start.
                summary = score(manifest, output, workers=workers, shard_size=256)
                assert not summary.errors, "recordings that cannot be read cost nothing to score"

            spent[times] = _cpu(run)
            if times == SHORT:  # a long run repeats itself, which Parquet stores for nothing
                size = output.stat().st_size / (len(files) * times)
    hours = (LONG - SHORT) * seconds / HOUR
    cpu, wall = ((spent[LONG][part] - spent[SHORT][part]) / hours for part in (0, 1))
    return {
        "cpu_seconds_per_audio_hour": cpu,
        "wall_seconds_per_audio_hour": wall,
        "start_up_cpu_seconds": spent[SHORT][0] - cpu * SHORT * seconds / HOUR,
        "bytes_per_row": size,
    }


def _cpu(side: Callable[[], Any]) -> tuple[float, float]:
    """Processor and wall seconds of a call, its child processes included."""

    def used() -> float:
        both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in both)

    cpu, wall = used(), time.perf_counter()
    side()
    return used() - cpu, time.perf_counter() - wall


def _waveform(path: str, rate: int) -> Any:
    with open_recording(path) as recording:
        pieces = list(mono_blocks(recording, rate))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _batches(features: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    features = sorted(features, key=len)
    return [features[start : start + BATCH_SIZE] for start in range(0, len(features), BATCH_SIZE)]


def _gemm_gflops() -> float:
    matrix = torch.randn(512, 512)
    cpu, _ = _cpu(lambda: [matrix @ matrix for _ in range(100)])
    return 100 * 2 * 512**3 / cpu / 1e9


def render(report: dict[str, Any]) -> str:
    """The page, its numbers from the report."""
    speed, cost = report["times_real_time_per_core"], report["cpu_seconds_per_audio_hour"]
    one, two = report["workers"]["1"], report["workers"]["2"]
    core_hours = 1e6 * one["cpu_seconds_per_audio_hour"] / HOUR
    rows = 1e6 * HOUR / report["mean_seconds"]
    rate = HOUR / one["cpu_seconds_per_audio_hour"]
    stages = ("read and decode", "features", "network")
    values = {
        "recordings": f"{report['recordings']:,}",
        "mean_seconds": f"{report['mean_seconds']:.2f}",
        "rounds": str(report["rounds"]),
        "cores": str(report["machine"]["cores"]),
        "load": f"{report['machine']['load_average']:.1f}",
        "numba": "with" if report.get("compiled") else "without",
        "gflops": f"{report['machine']['gemm_gflops']:.0f}",
        "torch": report["versions"]["torch"],
        "stages": "\n".join(
            f"| {name} | {cost[name]:.2f} | {speed[name]:,.0f} |"
            for name in (*stages, "in bulk", "one by one")
        ),
        "bulk_gain": f"{speed['in bulk'] / speed['one by one']:.1f}",
        "one_cost": f"{one['cpu_seconds_per_audio_hour']:.2f}",
        "two_cost": f"{two['cpu_seconds_per_audio_hour']:.2f}",
        "one_rate": f"{rate:,.0f}",
        "two_rate": f"{HOUR / two['cpu_seconds_per_audio_hour']:,.0f}",
        "one_start": f"{one['start_up_cpu_seconds']:.0f}",
        "two_start": f"{two['start_up_cpu_seconds']:.0f}",
        "cpu_ratio": f"{report['cpu_ratio_two_to_one']:.2f}",
        "wall_ratio": f"{report['wall_ratio_one_to_two']:.2f}",
        "core_hours": f"{core_hours:,.0f}",
        "days_one": f"{core_hours / 24:,.0f}",
        "hours_hundred": f"{core_hours / 100:,.1f}",
        "million_rows": f"{rows / 1e6:,.0f}",
        "terabytes_in": f"{1e6 * HOUR * 32_000 / 1e12:,.0f}",
        "megabytes_second": f"{rate * 32_000 / 1e6:,.0f}",
        "bytes_per_row": f"{report['bytes_per_row']:.0f}",
        "gigabytes_out": f"{rows * report['bytes_per_row'] / 1e9:,.0f}",
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace("{{" + name + "}}", value)
    return text


def main() -> None:
    """Measure if a folder is given; write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.data_dir is not None:
        keep_freed_memory()  # as `timnet score` does
        write_json(REPORT, measure(arguments.data_dir, arguments.rounds))
    PAGE.write_text(render(json.loads(REPORT.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
