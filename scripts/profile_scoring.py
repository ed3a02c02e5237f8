# SPDX-License-Identifier: Apache-2.0
"""Where the time of one scored recording goes: stages, then operators, on one thread.

python scripts/profile_scoring.py [RECORDING] [--model FOLDER] [--rounds 200]

Prints median and smallest milliseconds of each stage, by PyTorch and by an exported file, and the
dearest operators of both as their own profilers count them. Look here before and after a change;
whether it made anything faster, `scripts/benchmark.py` says.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from timnet_hf import load_audio  # noqa: E402
from timnet_hf.export import export_onnx  # noqa: E402
from timnet_hf.onnx_inference import OnnxModel  # noqa: E402
from timnet_hf.prediction import (  # noqa: E402
    CHECKPOINTS,
    TorchScorer,
    load_model,
    predict_recordings,
)

CLIP = sorted((CHECKPOINTS.parent / "demo_clips").glob("*.flac"))[0]
SHOWN = 12


def stages(actions: dict[str, Callable[[], Any]], rounds: int) -> None:
    """Time actions in turn and print a line for each, in ms."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 10):
        for name, action in actions.items():
            start = time.process_time()
            action()
            times[name].append(1000 * (time.process_time() - start))
    print(f"{'stage':<34}{'median ms':>11}{'smallest':>11}")
    for name, values in times.items():
        print(f"{name:<34}{statistics.median(values[10:]):>11.3f}{min(values[10:]):>11.3f}")


def torch_operators(action: Callable[[], Any], rounds: int) -> Counter[str]:
    """Operator → microseconds a call of the action, without those it calls itself."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(rounds):
            action()
    totals = {event.key: event.self_cpu_time_total / rounds for event in profiled.key_averages()}
    return Counter(totals)


def onnx_operators(path: Path, waveform: np.ndarray, rounds: int) -> Counter[str]:
    """Operator of an exported file → microseconds a run: the medians of its nodes, summed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {"waveform": waveform[None], "attention_mask": np.ones((1, 1), np.int64)}
    for _ in range(rounds):
        session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            nodes[event["args"]["op_name"], event["name"]].append(event["dur"])
    totals: Counter[str] = Counter()
    for (operator, _), values in nodes.items():
        totals[operator] += statistics.median(values)  # type: ignore[assignment]
    return totals


def show(title: str, totals: Counter[str]) -> None:
    """Print the dearest operators."""
    print(f"\n{title}")
    for name, spent in totals.most_common(SHOWN):
        print(f"{name[:44]:<44}{spent:>10.0f} µs")


def main() -> int:
    """Profile one recording."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recording", type=Path, nargs="?", default=CLIP)
    parser.add_argument("--model", help="folder or Hub id; by default the one that comes along")
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, extractor = load_model(arguments.model)
    scorer = TorchScorer(model, extractor)
    waveform = load_audio(arguments.recording, extractor.sampling_rate)
    features = extractor.normalize(extractor.extract(waveform))
    with tempfile.TemporaryDirectory(prefix="timnet-profile-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(arguments.model, path)
        exported = OnnxModel(path)

        def predict(which: Any) -> Callable[[], Any]:
            return lambda: next(iter(predict_recordings([arguments.recording], which))).label

        stages(
            {
                "read, decode, resample": lambda: load_audio(
                    arguments.recording, extractor.sampling_rate
                ),
                "features": lambda: extractor.extract(waveform),
                "network": lambda: scorer.network([features]),
                "waveform → label, PyTorch": lambda: scorer.score([waveform]),
                "waveform → label, ONNX Runtime": lambda: exported.score([waveform]),
                "file → label, PyTorch": predict(scorer),
                "file → label, ONNX Runtime": predict(exported),
            },
            arguments.rounds,
        )
        seconds = len(waveform) / extractor.sampling_rate
        print(f"\n{arguments.recording.name}: {seconds:.2f} s, {len(features)} frames")
        one = torch_operators(lambda: scorer.score([waveform]), arguments.rounds)
        show("PyTorch, waveform → label", one)
        show("ONNX Runtime, waveform → label", onnx_operators(path, waveform, arguments.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
