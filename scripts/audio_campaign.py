# SPDX-License-Identifier: Apache-2.0
"""Send thousands of recordings that lie through everything: decoder to demo page.

    nice python scripts/audio_campaign.py --inputs 10000

Input number n is made from the seed and n alone, so a run that was stopped goes on where it was,
and a finding can be made again with ``--only n``. Each input goes through decode → features →
model → timeline pipeline → ``predict_files`` → the page's functions, whose picture is drawn for one
in ten; the ``timnet predict`` command takes the inputs of a batch together. An input ends well, or
is refused by an error that names the file; anything else (another exception, a probability that is
no number, a dead or stuck process, memory that grows) is written down in
``results/audio_campaign.json``.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results" / "audio_campaign.json"
#: Seconds for one input through everything, and for a batch; MiB that a batch may need.
INPUT_SECONDS, BATCH_SECONDS, MEMORY = 30, 1200, 3_000
#: One in so many inputs gets the page's picture too: drawing takes longer than all the rest.
DRAWN_EVERY = 10
NAMES = (
    "plain",
    "with space",
    "new\nline",
    "😀",
    "-dash",
    "=1+1",
    "a;b&c",
    "<b>",
    "ä" * 60,
    "x.mp3",
)
SUBTYPES = {
    "WAV": "PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE ULAW ALAW IMA_ADPCM MS_ADPCM GSM610",
    "FLAC": "PCM_S8 PCM_16 PCM_24",
    "OGG": "VORBIS OPUS",
    "MP3": "MPEG_LAYER_III",
    "AIFF": "PCM_16 PCM_24 FLOAT",
    "AU": "PCM_16 ULAW FLOAT",
    "CAF": "PCM_16 ALAC_16",
    "W64": "PCM_16 IMA_ADPCM GSM610",
    "RF64": "PCM_16 FLOAT",
    "NIST": "PCM_16",
    "VOC": "PCM_16",
}


# --- the inputs -----------------------------------------------------------------------------------


def make_input(number: int, seed: int) -> tuple[str, bytes]:
    """A file name and a content; most contents are a recording that something was done to."""
    rng = np.random.default_rng([seed, number])
    extension = rng.choice(["wav", "flac", "mp3", "ogg", "m4a", "txt", "WAV"])
    name = f"{number}-{NAMES[rng.integers(len(NAMES))]}.{extension}"
    if rng.random() < 0.03:
        return name, rng.bytes(int(rng.integers(0, 3_000)))
    kind = str(rng.choice(list(SUBTYPES)))
    subtype = str(rng.choice(SUBTYPES[kind].split()))
    rate = int(rng.choice([8_000, 11_025, 16_000, 22_050, 44_100, 48_000]))
    if subtype == "OPUS":
        rate = 48_000
    samples = make_samples(rng, rate)
    if subtype == "GSM610" or kind in ("VOC",):
        samples = samples[:, :1]
    if subtype not in ("FLOAT", "DOUBLE"):  # some encoders end the process at such samples
        samples = np.clip(np.nan_to_num(samples), -1, 1)
    file = io.BytesIO()
    try:
        soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    except (soundfile.LibsndfileError, ValueError, AssertionError):  # this container cannot
        file = io.BytesIO()
        soundfile.write(file, np.clip(np.nan_to_num(samples[:, 0]), -1, 1), rate, format="WAV")
    return name, damage(file.getvalue(), rng)


def make_samples(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Samples (frames, channels) as a microphone, a bug or malice could have made them."""
    frames = int(rng.choice([0, 1, 2, 100, rate // 50, rate // 3, rate]))
    channels = int(rng.choice([1, 1, 1, 2, 6]))
    shape = (frames, channels)
    case = rng.integers(9)
    time_axis = np.arange(frames)[:, None] / rate
    sound = 0.4 * np.sin(2 * np.pi * rng.uniform(80, 900) * time_axis) * np.ones(shape)
    if case == 1:
        sound = np.zeros(shape)
    elif case == 2:
        sound = np.full(shape, rng.uniform(-1, 1))  # DC
    elif case == 3:
        sound = np.clip(50 * sound, -1, 1)
    elif case == 4:
        sound = rng.uniform(-1, 1, shape)
    elif case == 5:
        sound = sound * 10.0 ** rng.uniform(-40, 3)
    elif case == 6 and frames:
        values = [np.nan, np.inf, -np.inf, 1e30, 101.0]
        sound[rng.integers(frames), rng.integers(channels)] = rng.choice(values)
    elif case == 7:
        sound = np.sign(sound) * (np.arange(frames)[:, None] % 999 == 0)  # clicks
    return sound


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut, append, overwrite; or let the header lie about lengths, rates and channels."""
    data = bytearray(content)
    case = rng.integers(8)
    if case == 1 and data:
        del data[int(rng.integers(len(data))) :]
    elif case == 2:
        data += rng.bytes(int(rng.integers(1, 5_000)))
    elif case == 3:
        for _ in range(int(rng.integers(1, 20)) if data else 0):
            data[int(rng.integers(min(len(data), 200)))] = int(rng.integers(256))
    elif case == 4:
        for _ in range(int(rng.integers(1, 40)) if data else 0):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
    elif case == 5:
        value = int(rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 10_000_000]))
        at = int(rng.integers(4, max(5, min(60, len(data)))))
        data[at : at + 4] = struct.pack(str(rng.choice(["<I", ">I"])), value)
    elif case == 6:
        data = data * 2
    return bytes(data)


# --- one batch, in a process of its own -----------------------------------------------------------


class StuckError(Exception):
    """An input took too long."""


def run_batch(first: int, count: int, seed: int, report: Path) -> None:
    """Send inputs through everything, and note after each what became of it."""
    import logging
    import signal
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    limit = MEMORY * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    sys.path.insert(0, str(REPOSITORY / "spaces" / "timnet-emotion"))
    import torch

    torch.set_num_threads(1)
    stages = make_stages()

    def late(*_: Any) -> None:
        raise StuckError

    signal.signal(signal.SIGALRM, late)
    with tempfile.TemporaryDirectory(prefix="timnet-audio-") as name:
        folder = Path(name)
        for number in range(first, first + count):
            file, content = make_input(number, seed)
            path = folder / file
            path.write_bytes(content)
            signal.alarm(INPUT_SECONDS)
            outcome = try_stages(stages, path)
            signal.alarm(0)
            with report.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"number": number, **outcome}) + "\n")
        outcome = try_command(folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        with report.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"batch": first, "peak_mib": peak, **outcome}) + "\n")


def make_stages() -> dict[str, Any]:
    """Name of each stage → a function of a path; what it raises must name the file."""
    import app
    import recording
    from checkpoints import Checkpoints

    from timnet_hf.audio import load_audio
    from timnet_hf.pipeline_timnet import TimNetTimelinePipeline
    from timnet_hf.prediction import CHECKPOINTS, load_model, predict_files

    model, extractor = load_model()
    timeline = TimNetTimelinePipeline(model=model, feature_extractor=extractor)
    page = app.Page(Checkpoints([str(CHECKPOINTS / "timnet-emodb")]))
    import torch

    def decode(path: Path) -> None:
        waveform = load_audio(path, extractor.sampling_rate)
        assert waveform.size and np.isfinite(waveform).all()

    def network(path: Path) -> None:
        waveform = load_audio(path, extractor.sampling_rate)
        inputs = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        assert torch.isfinite(inputs["input_values"]).all()
        with torch.inference_mode():
            probabilities = model(**inputs).logits.softmax(-1)[0]
        assert torch.isfinite(probabilities).all() and abs(float(probabilities.sum()) - 1) < 1e-3

    def pipeline(path: Path) -> None:
        for event in timeline(str(path)):
            assert 0 <= event["start"] < event["end"] and 0 <= event["score"] <= 1

    def prediction(path: Path) -> None:
        (answer,) = predict_files([path], model, extractor)
        if answer.error is not None:
            raise ValueError(answer.error)
        assert abs(sum(answer.scores.values()) - 1) < 1e-3

    def space(path: Path) -> None:
        import gradio

        try:
            scores, _ = page.predict(str(path), "timnet-emodb")
            if int(path.name.partition("-")[0]) % DRAWN_EVERY == 0:
                page.timeline(str(path), "timnet-emodb")
        except gradio.Error as error:
            import html

            shown = html.unescape(str(error.message))
            if recording.shown_name(str(path)) in shown:
                raise ValueError(str(path)) from error  # it names the file, as far as it is shown
            raise ValueError(shown) from error
        assert abs(sum(scores.values()) - 1) < 1e-3

    stages = (decode, network, pipeline, prediction, space)
    return {stage.__name__: stage for stage in stages}


def try_stages(stages: dict[str, Any], path: Path) -> dict[str, Any]:
    """What each stage makes of a file: "ok", "refused", or what went wrong."""
    outcome = {}
    for name, stage in stages.items():
        try:
            stage(path)
        except (ValueError, OSError) as error:
            named = str(path) in str(error) or repr(str(path)) in str(error)
            outcome[name] = "refused" if named else f"does not name the file: {error}"[:300]
        except StuckError:
            outcome[name] = f"took more than {INPUT_SECONDS} s"
            break
        except BaseException as error:  # that is what is looked for
            outcome[name] = f"{type(error).__name__}: {error}"[:300]
        else:
            outcome[name] = "ok"
    return outcome


def try_command(folder: Path) -> dict[str, Any]:
    """``timnet predict`` on all files of a batch: a record for each, and no more."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    command = [sys.executable, "-m", "timnet_hf", "predict", "--format", "json", "--"]
    done = subprocess.run(
        [*command, *map(str, paths)], capture_output=True, timeout=BATCH_SECONDS, check=False
    )
    try:
        records = json.loads(done.stdout)
    except ValueError:
        return {"command": f"status {done.returncode}: {done.stderr[-300:]!r}"}
    complete = len(records) == len(paths) and done.returncode in (0, 2)
    return {"command": "ok" if complete else f"{len(records)} records for {len(paths)} files"}


# --- the campaign ---------------------------------------------------------------------------------


def summary(report: Path, minutes: float) -> dict[str, Any]:
    """Counts of outcomes, and everything that is none of the two good ones."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    findings, numbers, peak = [], set(), 0
    # What was tried again replaces what was there.
    entries = map(json.loads, report.read_text(encoding="utf-8").splitlines())
    latest = {
        ("number" in entry, entry.get("number", entry.get("batch"))): entry for entry in entries
    }
    for entry in latest.values():
        peak = max(peak, entry.pop("peak_mib", 0))
        number = entry.pop("number", None)
        batch = entry.pop("batch", None)
        numbers |= {number} - {None}
        for stage, what in entry.items():
            good = what in ("ok", "refused")
            counts[stage][what if good else "finding"] += 1
            if not good:
                findings.append({"number": number, "batch": batch, "stage": stage, "what": what})
    return {
        "inputs": len(numbers),
        "minutes": round(minutes, 1),
        "limits": {"seconds": INPUT_SECONDS, "memory_mib": MEMORY},
        "peak_mib": peak,
        "stages": {stage: dict(sorted(count.items())) for stage, count in counts.items()},
        "findings": findings,
    }


def main() -> None:
    """Run the campaign, a batch of it, or one input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=500, help="inputs of one process")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build" / "audio-campaign")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--only", type=int, help="run this one input here, and print its outcome")
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    report = arguments.work / "outcomes.jsonl"
    if arguments.only is not None:
        report = arguments.work / f"only-{arguments.only}.jsonl"
        run_batch(arguments.only, 1, arguments.seed, report)
        print(report.read_text())
        return
    if arguments.first is not None:
        run_batch(arguments.first, arguments.batch, arguments.seed, report)
        return
    clock = arguments.work / "minutes"
    minutes = float(clock.read_text()) if clock.exists() else 0.0
    done = set()
    if report.exists():
        entries = map(json.loads, report.read_text(encoding="utf-8").splitlines())
        # A batch whose process died is begun again: it may have been stopped from outside.
        done = {entry["batch"] for entry in entries if "command" in entry}
    for first in range(0, arguments.inputs, arguments.batch):
        if first in done:
            continue
        started = time.monotonic()
        count = min(arguments.batch, arguments.inputs - first)
        command = [sys.executable, __file__, "--first", str(first), "--batch", str(count)]
        command += ["--seed", str(arguments.seed), "--work", str(arguments.work)]
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        try:
            limit = 2 * BATCH_SECONDS
            ended = subprocess.run(command, env=environment, timeout=limit, check=False).returncode
        except subprocess.TimeoutExpired:
            ended = -1
        if ended:
            died = {"batch": first, "process": f"ended with status {ended} behind the last input"}
            with report.open("a", encoding="utf-8") as log:
                log.write(json.dumps(died) + "\n")
        minutes += (time.monotonic() - started) / 60
        clock.write_text(str(minutes))
        figures = summary(report, minutes)
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print(f"{figures['inputs']} inputs, {len(figures['findings'])} findings", flush=True)
    for left in Path(tempfile.gettempdir()).glob("timnet-audio-*"):
        shutil.rmtree(left, ignore_errors=True)


if __name__ == "__main__":
    main()
