# SPDX-License-Identifier: Apache-2.0
"""Every reader of the package that takes files of strangers, as `fuzz.py` runs it.

A reader takes any bytes; it returns, or raises the error that it promises. Where a file was
accepted, what came of it is looked at.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLES = 800

Reader: TypeAlias = Callable[[bytes], None]


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
    from timnet_hf.export import export_onnx
    from timnet_hf.hub_errors import HubError
    from timnet_hf.model_folder import save_model_folder, verify_model_folder
    from timnet_hf.prediction import (
        ModelError,
        Prediction,
        load_model,
        load_scorer,
        predict_files,
        predict_recordings,
    )
    from timnet_hf.speaker_timnet import SpeakerError
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

    def written_clip() -> Path:
        clip = folder / "clip.wav"
        clip.write_bytes(recordings(sound)[0])
        return clip

    def check(answer: Prediction) -> None:
        if answer.error is None:
            total = sum(answer.scores.values())
            assert answer.scores and abs(total - 1) < 1e-3, f"probabilities sum to {total}"

    def use_model(file: str) -> tuple[Reader, type[BaseException], list[bytes]]:
        whole, clip = model_folder(), written_clip()

        def read(data: bytes) -> None:
            (whole / file).write_bytes(data)
            (answer,) = predict_files([clip], *load_model(whole))
            check(answer)

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

    def onnx(data: bytes) -> None:
        (folder / "model.onnx").write_bytes(data)
        (answer,) = predict_recordings([written_clip()], load_scorer(folder / "model.onnx"))
        check(answer)

    def speaker(data: bytes) -> None:
        (folder / "voice.json").write_bytes(data)
        extractor.adapted_to(folder / "voice.json")

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
    if name == "onnx":
        exported = export_onnx(model_folder(), folder / "whole.onnx")
        return onnx, ModelError, [exported[0].path.read_bytes()]
    if name == "speaker":
        extractor = TimNetFeatureExtractor(mean=[-5.0] * 39, std=[30.0] * 39)
        extractor.describe_speaker("ann", [sound.repeat(9)]).save(folder / "voice.json")
        return speaker, SpeakerError, [(folder / "voice.json").read_bytes()]
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
    "onnx": 2,
    "speaker": 1,
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


__all__ = ["READERS", "Reader", "make_reader"]
