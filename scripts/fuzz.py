# SPDX-License-Identifier: Apache-2.0
"""Feed damaged files to every reader of the package, guided by what they make it execute.

    pip install atheris
    nice python scripts/fuzz.py --minutes 60

Each reader runs in a process of its own under libFuzzer (atheris), in slices, in turn, with a limit
of time and memory for each input. What an input may do is end well, or be refused by the error that
the reader promises; anything else is a finding. Inputs that reached something new are kept in the
work folder, so that another run goes on from there. The figures of all runs are added up in
``results/fuzz.json``.

``--reader hdf5 --seconds 9`` runs one reader in the foreground, and ``--reader hdf5 --input FILE``
gives it a single input. Minutes count the fuzzing alone, not the loading of libraries before it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results" / "fuzz.json"
#: Seconds in which an input must be done with, and after which it is killed.
SLOW, HANG = 20, 60
#: MiB that one input may add to the process, and that the process may have.
MORE_MEMORY, MEMORY = 1_000, 4_000
SAMPLES = 800

Reader = Callable[[bytes], None]


# --- what is fuzzed -----------------------------------------------------------------------------
# A reader takes any bytes; it returns, or raises the error that it promises. Where a file was
# accepted, what came of it is looked at.


def make_reader(name: str, folder: Path) -> tuple[Reader, type[BaseException], list[bytes]]:
    """A reader with the error that it may raise, and whole files to start from."""
    import numpy as np
    import torch

    from timnet_hf import TimNetConfig, TimNetFeatureExtractor, TimNetForAudioClassification
    from timnet_hf.audio import load_audio
    from timnet_hf.conversion import ConversionError, convert_keras_checkpoint
    from timnet_hf.corpora import CorpusError, load_folder
    from timnet_hf.corpus_download import unpack
    from timnet_hf.decoding import AudioError, open_recording
    from timnet_hf.hub_errors import HubError
    from timnet_hf.model_folder import save_model_folder, verify_model_folder
    from timnet_hf.prediction import ModelError, load_model, predict_files
    from timnet_hf.tables import ResultsError, load_reports

    torch.set_num_threads(1)
    sound = (0.3 * np.sin(np.arange(SAMPLES) / 7)).astype(np.float32)

    def model_folder() -> Path:
        names = {0: "angry", 1: "sad"}
        model = TimNetForAudioClassification(
            TimNetConfig(hidden_size=2, num_hidden_layers=1, id2label=names)
        )
        record = {"corpus": "own", "labels": ["angry", "sad"], "recipe": {"name": "default"}}
        return save_model_folder(folder / "model", model, TimNetFeatureExtractor(), record)

    def use_model(file: str) -> tuple[Reader, type[BaseException], list[bytes]]:
        whole = model_folder()
        clip = folder / "clip.wav"
        clip.write_bytes(recordings(sound)[0])

        def read(data: bytes) -> None:
            (whole / file).write_bytes(data)
            (answer,) = predict_files([clip], *load_model(whole))
            if answer.error is None:
                total = sum(answer.scores.values())
                assert answer.scores and abs(total - 1) < 1e-3, f"probabilities sum to {total}"

        return read, ModelError, [(whole / file).read_bytes()]

    def decode(data: bytes) -> None:
        with open_recording(data) as recording:
            blocks = [np.abs(block).max() for block in recording.blocks]
        assert blocks and max(blocks) <= 100, "samples that no recording has"
        waveform = load_audio(data, 16_000)
        assert waveform.ndim == 1 and waveform.size and np.isfinite(waveform).all()

    def decode_alone(data: bytes) -> None:
        shutil.which = lambda *_, **__: None  # type: ignore[assignment]  # libsndfile alone: fast
        decode(data)

    def space(data: bytes) -> None:
        (folder / "upload").write_bytes(data)
        waveform = recording_module.load_recording(str(folder / "upload"), 16_000)
        assert waveform.ndim == 1 and waveform.size and np.isfinite(waveform).all()

    def hdf5(data: bytes) -> None:
        (folder / "weights.hdf5").write_bytes(data)
        model, _ = convert_keras_checkpoint(folder / "weights.hdf5", ["a", "b"])
        assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())

    def manifest(data: bytes) -> None:
        (corpus / "metadata.csv").write_bytes(data)
        dataset = load_folder(corpus)
        assert all(Path(path).is_file() for path in dataset["path"])

    def record(data: bytes) -> None:
        (whole / "training_record.json").write_bytes(data)
        verify_model_folder(whole)

    def report(data: bytes) -> None:
        path = folder / "results" / "emodb" / "loso" / "default" / "report.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        load_reports(folder / "results")

    def archive(data: bytes) -> None:
        target = folder / "unpacking" / "inner"
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir()
        (folder / "unpacking" / "a.zip").write_bytes(data)
        try:
            unpack(folder / "unpacking" / "a.zip", target, max_bytes=10**6, max_files=20)
        finally:
            beside = {path.name for path in target.parent.iterdir()} - {"inner", "a.zip"}
            assert not beside, f"left or wrote {beside} beside its folder"

    if name == "decode":
        return decode_alone, AudioError, recordings(sound)
    if name == "ffmpeg":
        return decode, AudioError, recordings(sound)
    if name == "space":
        sys.path.insert(0, str(REPOSITORY / "spaces" / "timnet-emotion"))
        import recording as recording_module

        return space, recording_module.RecordingError, recordings(sound)
    if name == "hdf5":
        return hdf5, ConversionError, [keras_checkpoint(folder / "seed.hdf5")]
    if name == "manifest":
        corpus = folder / "corpus"
        corpus.mkdir()
        for clip in ("a.wav", "b.wav"):
            (corpus / clip).write_bytes(recordings(sound)[0])
        rows = [b"file_name,label", b"a.wav,sad", b"b.wav,angry", b""]
        more = [b'file_name,label,speaker,room\r\na.wav,sad,x,"1 ""2"""\r\nb.wav,angry,,\r\n']
        return manifest, CorpusError, [b"\n".join(rows), *more]
    if name == "record":
        whole = model_folder()
        return record, HubError, [(whole / "training_record.json").read_bytes()]
    if name == "report":
        seed = {"corpus": "emodb", "protocol": "loso", "recipe": "default", "uar": {"pooled": 1.0}}
        return report, ResultsError, [json.dumps(seed).encode()]
    if name == "archive":
        seeds = []
        for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w", kind) as members:
                members.writestr("wav/a.wav", b"abc" * 50)
                members.writestr("b.txt", b"text")
            seeds.append(file.getvalue())
        return archive, CorpusError, seeds
    return use_model(MODEL_FILES[name])


MODEL_FILES = {
    "config": "config.json",
    "preprocessor": "preprocessor_config.json",
    "checkpoint": "model.safetensors",
}
#: Reader → its share of the time.
READERS = {
    "decode": 4,
    "ffmpeg": 2,
    "space": 2,
    "hdf5": 3,
    "config": 2,
    "preprocessor": 1,
    "checkpoint": 2,
    "manifest": 2,
    "record": 1,
    "report": 1,
    "archive": 1,
}


def recordings(sound: Any) -> list[bytes]:
    """The same sound in many formats, a few of them in stereo."""
    import numpy as np
    import soundfile

    stereo = np.stack([sound, sound[::-1] / 2], axis=1)
    kinds = "WAV:PCM_16 WAV:FLOAT WAV:MS_ADPCM WAV:GSM610 WAVEX:PCM_24 RF64:PCM_16 W64:IMA_ADPCM "
    kinds += "AIFF:PCM_16 AU:ULAW CAF:ALAC_16 FLAC:PCM_16 OGG:VORBIS OGG:OPUS MP3:MPEG_LAYER_III "
    kinds += "NIST:PCM_16 VOC:PCM_16 SVX:PCM_16 IRCAM:FLOAT"
    encoded = []
    for kind in kinds.split():
        file = io.BytesIO()
        container, subtype = kind.split(":")
        samples = stereo if container in ("FLAC", "AIFF") else sound
        soundfile.write(file, samples, 8_000, format=container, subtype=subtype)
        encoded.append(file.getvalue())
    return encoded


def keras_checkpoint(path: Path) -> bytes:
    """The smallest TIM-Net that Keras could have written: one block, three values wide."""
    import h5py
    import numpy as np

    rng = np.random.default_rng(0)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for number in range(6):
        name = f"conv1d_{number}" if number else "conv1d"
        shapes[name] = {"kernel": (1, 4, 3) if number < 2 else (2, 3, 3), "bias": (3,)}
    for number in range(4):
        name = f"batch_normalization_{number}" if number else "batch_normalization"
        shapes[name] = dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (3,))
    shapes["weight_layer"] = {"kernel": (1, 1)}
    shapes["dense"] = {"kernel": (3, 2), "bias": (2,)}
    with h5py.File(path, "w", libver="latest") as file:
        for layer, weights in shapes.items():
            for weight, shape in weights.items():
                values = rng.random(shape, dtype=np.float32)
                file.create_dataset(f"{layer}/{layer}/{weight}:0", data=values)
    return path.read_bytes()


# --- one reader, in its own process ---------------------------------------------------------------


class Watch:
    """Runs a reader on one input after the other, and writes down what it should not have done."""

    def __init__(self, name: str, work: Path, folder: Path):
        self.reader, self.promised, self.seeds = make_reader(name, folder)
        self.findings = work / "findings"
        self.findings.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.most = 0

    def __call__(self, data: bytes) -> None:
        """Read one input."""
        started, before = time.monotonic(), self._peak()
        try:
            self.reader(data)
        except self.promised as error:
            text = str(error)
            if "can't allocate" in text or "MemoryError" in text:
                self._note("memory", "asked for more memory than there is", data)
            if not text.strip():
                self._note("silent", "the error says nothing", data)
        except BaseException as error:  # whatever it is, it was not promised
            place = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in place if "timnet" in frame.filename] or place
            where = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
            self._note(f"{type(error).__name__} in {where}", f"{error}"[:300], data)
        if time.monotonic() - started > SLOW:
            self._note("slow", f"took {time.monotonic() - started:.0f} s", data)
        if self._peak() - max(before, 1) > MORE_MEMORY:
            self._note("memory", f"took {self._peak() - before} MiB more", data)

    @staticmethod
    def _peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    def _note(self, kind: str, detail: str, data: bytes) -> None:
        """Keep one input of each kind of finding."""
        stem = f"{self.name}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"
        if (self.findings / f"{stem}.json").exists():
            return
        (self.findings / f"{stem}.bin").write_bytes(data)
        note = {"reader": self.name, "kind": kind, "detail": detail, "input": f"{stem}.bin"}
        (self.findings / f"{stem}.json").write_text(json.dumps(note, indent=1) + "\n")


def run_reader(name: str, work: Path, seconds: int, seed: int, single: Path | None) -> None:
    """Fuzz one reader here; libFuzzer ends the process."""
    import logging
    import warnings

    limit = MEMORY * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix=f"timnet-fuzz-{name}-"))
    tempfile.tempdir = str(folder)
    if single is not None:
        Watch(name, work, folder)(single.read_bytes())
        shutil.rmtree(folder, ignore_errors=True)
        return
    import atheris

    with atheris.instrument_imports(include=["timnet_hf", "recording"]):
        watch = Watch(name, work, folder)
    corpus = work / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(watch.seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    longest = 4 * max(map(len, watch.seeds))
    options = [f"-max_total_time={seconds}", f"-timeout={HANG}", f"-rss_limit_mb={MEMORY + 500}"]
    options += [f"-artifact_prefix={work}/findings/{name}-killed-", f"-max_len={longest}"]
    options += [f"-seed={seed}", "-print_final_stats=1", "-verbosity=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], watch)
    atheris.Fuzz()


# --- the campaign -------------------------------------------------------------------------------


def slices(minutes: float, seconds: int) -> list[str]:
    """Readers in turn, each as often as its share asks for."""
    count = max(len(READERS), round(60 * minutes / seconds))
    spent = dict.fromkeys(READERS, 0)
    order = []
    for _ in range(count):
        name = min(READERS, key=lambda reader: (spent[reader] + 1) / READERS[reader])
        spent[name] += 1
        order.append(name)
    return order


def run_slice(name: str, work: Path, seconds: int, seed: int) -> dict[str, float]:
    """Fuzz one reader for a while: the number of inputs, and minutes by the clock and the CPU."""
    command = [sys.executable, __file__, "--reader", name, "--work", str(work)]
    command += ["--seconds", str(seconds), "--seed", str(seed)]
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    try:
        done = subprocess.run(
            command, capture_output=True, env=environment, timeout=seconds + 1200, check=False
        )
        text = done.stderr.decode("utf-8", "replace")
    except subprocess.TimeoutExpired as stuck:
        text = (stuck.stderr or b"").decode("utf-8", "replace")
    (work / f"{name}.log").write_text(text)
    executed = re.findall(r"number_of_executed_units:\s*(\d+)", text) or re.findall(
        r"^#(\d+)", text, re.MULTILINE
    )
    fuzzed = re.findall(r"^Done \d+ runs in (\d+) second", text, re.MULTILINE)
    minutes = (int(fuzzed[-1]) if fuzzed else time.monotonic() - started) / 60
    for left in Path(tempfile.gettempdir()).glob(f"timnet-fuzz-{name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    inputs = int(executed[-1]) if executed else 0
    return {"inputs": inputs, "minutes": minutes, "cpu_minutes": busy / 60}


def summary(work: Path, spent: dict[str, Any]) -> dict[str, Any]:
    """What all runs together found."""
    findings = [json.loads(path.read_text()) for path in sorted(work.glob("findings/*.json"))]
    for path in sorted(work.glob("findings/*-killed-*")):
        reader, _, rest = path.name.partition("-killed-")
        kind = {"timeout": "hang", "oom": "memory", "slow": "slow"}.get(rest.split("-")[0], "crash")
        if kind != "slow":
            detail = f"killed: {kind}"
            findings.append({"reader": reader, "kind": kind, "detail": detail, "input": path.name})
    return {
        "engine": "atheris (libFuzzer)",
        "limits": {"seconds": HANG, "more_memory_mib": MORE_MEMORY, "memory_mib": MEMORY},
        **_total(spent.values()),
        "readers": {name: _total([values]) for name, values in spent.items()},
        "findings": findings,
    }


def _total(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    parts = list(parts)
    return {
        "inputs": sum(int(part["inputs"]) for part in parts),
        **{
            name: round(sum(part[name] for part in parts), 1) for name in ("minutes", "cpu_minutes")
        },
    }


def main() -> None:
    """Run the campaign, or one reader of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build" / "fuzz")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=int, default=180, help="of a slice")
    parser.add_argument("--reader", choices=READERS)
    parser.add_argument("--input", type=Path, help="give the reader this one input")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if arguments.reader:
        run_reader(arguments.reader, work, arguments.seconds, arguments.seed, arguments.input)
        return
    state = work / "spent.json"
    spent = dict.fromkeys(READERS) | (json.loads(state.read_text()) if state.exists() else {})
    nothing = {"inputs": 0, "minutes": 0.0, "cpu_minutes": 0.0}
    spent = {name: value or dict(nothing) for name, value in spent.items()}
    for number, name in enumerate(slices(arguments.minutes, arguments.seconds)):
        figures = run_slice(name, work, arguments.seconds, arguments.seed + number)
        for what, value in figures.items():
            spent[name][what] += value
        state.write_text(json.dumps(spent))
        arguments.output.write_text(json.dumps(summary(work, spent), indent=1) + "\n")
        print(name, _total([figures]), flush=True)
    print(f"{len(summary(work, spent)['findings'])} findings, see {arguments.output}")


if __name__ == "__main__":
    main()
