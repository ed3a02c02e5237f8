# SPDX-License-Identifier: Apache-2.0
"""Predictions: the model's own answer, bounded memory, and a record for every file however bad."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from timnet_hf import TimNetFeatureExtractor, TimNetForAudioClassification, load_audio, prediction
from timnet_hf.prediction import (
    ModelError,
    Prediction,
    load_model,
    predict_files,
    resolve_model,
)

from .conftest import synthesise_speech
from .model_folders import LABELS, write_model_folder

RATE = 16_000
Model = tuple[TimNetForAudioClassification, TimNetFeatureExtractor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(folder)


def write(path: Path, sound: np.ndarray, rate: int = RATE) -> Path:
    soundfile.write(path, sound, rate, subtype="FLOAT")
    return path


def only(path: Path, model: Model) -> Prediction:
    (found,) = predict_files([path], *model)
    return found


class TestOneRecording:
    def test_scores_are_the_models_probabilities_highest_first(
        self, model: Model, speech: np.ndarray, tmp_path: Path
    ) -> None:
        path = write(tmp_path / "a.wav", speech)

        found = only(path, model)

        network, extractor = model
        inputs = extractor(load_audio(path, RATE), sampling_rate=RATE, return_tensors="pt")
        with torch.inference_mode():
            expected = network(**inputs).logits[0].softmax(-1)
        assert list(found.scores.values()) == sorted(found.scores.values(), reverse=True)
        assert found.label == LABELS[int(expected.argmax())]
        for name, score in found.scores.items():
            assert score == pytest.approx(float(expected[LABELS.index(name)]), abs=1e-6)
        assert found.duration == 2.0
        assert not found.silent
        assert found.error is None

    def test_rate_and_channels_do_not_matter(
        self, model: Model, make_speech: Callable[..., np.ndarray], tmp_path: Path
    ) -> None:
        sound = make_speech(2.0, 48_000)
        stereo = write(tmp_path / "stereo.wav", np.stack([sound, sound], 1), 48_000)
        mono = write(tmp_path / "mono.wav", load_audio(stereo, RATE))

        one, other = only(stereo, model), only(mono, model)

        assert one.scores == pytest.approx(other.scores, abs=1e-6)
        assert one.duration == pytest.approx(2.0)

    def test_a_clip_shorter_than_a_frame_has_an_answer(self, model: Model, tmp_path: Path) -> None:
        found = only(write(tmp_path / "click.wav", np.full(10, 0.5)), model)

        assert found.error is None
        assert sum(found.scores.values()) == pytest.approx(1.0)


class TestSilence:
    @pytest.mark.parametrize("level", [0.0, 5e-5])
    @pytest.mark.parametrize("seconds", [1, 70], ids=["short", "in blocks"])
    def test_is_said_to_be_silence(
        self, level: float, seconds: int, model: Model, tmp_path: Path
    ) -> None:
        found = only(write(tmp_path / "quiet.wav", np.full(seconds * RATE, level)), model)

        assert found.silent
        assert found.duration == seconds
        assert sum(found.scores.values()) == pytest.approx(1.0)
        assert found.error is None

    def test_a_quiet_voice_is_not(self, model: Model, speech: np.ndarray, tmp_path: Path) -> None:
        assert not only(write(tmp_path / "whisper.wav", 0.001 * speech), model).silent


@pytest.fixture(scope="module")
def block() -> np.ndarray:
    """Thirty seconds of speech."""
    return np.tile(synthesise_speech(5.0), 6)


class TestLongRecordings:
    """Ninety seconds are scored as three blocks of thirty."""

    def test_three_equal_blocks_score_as_one(
        self, block: np.ndarray, model: Model, tmp_path: Path
    ) -> None:
        one = only(write(tmp_path / "one.wav", block), model)
        three = only(write(tmp_path / "three.wav", np.tile(block, 3)), model)

        assert three.duration == 90.0
        assert list(three.scores) == list(one.scores)
        assert three.scores == pytest.approx(one.scores, abs=1e-5)

    def test_blocks_of_silence_do_not_count(
        self, block: np.ndarray, model: Model, tmp_path: Path
    ) -> None:
        quiet = np.zeros_like(block)
        alone = only(write(tmp_path / "alone.wav", block), model)

        for name, order in {
            "after": (block, quiet, quiet),
            "before": (quiet, block, quiet),
        }.items():
            found = only(write(tmp_path / f"{name}.wav", np.concatenate(order)), model)
            assert found.scores == pytest.approx(alone.scores, abs=1e-5), name
            assert not found.silent

    def test_blocks_count_by_how_much_speech_they_hold(
        self, block: np.ndarray, model: Model, tmp_path: Path
    ) -> None:
        high = np.tile(synthesise_speech(5.0, pitch=300, seed=4), 6)
        ten = high.copy()
        ten[10 * RATE :] = 0
        alone = [
            only(write(tmp_path / "x.wav", part), model).scores
            for part in (block, high[: 10 * RATE])
        ]

        mixed = only(write(tmp_path / "y.wav", np.concatenate([block, ten, 0 * ten])), model).scores

        for name in LABELS:
            expected = (30 * alone[0][name] + 10 * alone[1][name]) / 40
            assert mixed[name] == pytest.approx(expected, abs=0.01)

    def test_a_fixed_clip_length_is_the_length_of_a_block(
        self, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        extractor = TimNetFeatureExtractor.from_preset("paper", num_samples=110_000)
        path = write(tmp_path / "long.wav", np.full(70 * 22_050, 0.1), 22_050)
        sizes = []

        def seen(_: Any, waveforms: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
            sizes.extend(map(len, waveforms))
            return np.full((1, len(LABELS)), 0.25), np.ones(1)

        monkeypatch.setattr(prediction.TorchScorer, "score", seen)

        assert only(path, (model[0], extractor)).duration == 70
        assert sizes == [110_000] * 14 + [70 * 22_050 - 14 * 110_000]

    def test_are_never_held_whole(
        self, block: np.ndarray, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "long.wav"
        soundfile.write(path, np.zeros(20 * 60 * 8_000, np.int16), 8_000)
        answer = np.full((1, len(LABELS)), 0.25), np.ones(1)
        monkeypatch.setattr(prediction.TorchScorer, "score", lambda *_: answer)
        only(write(tmp_path / "short.wav", block[:RATE]), model)  # what is loaded once is loaded
        tracemalloc.start()
        try:
            found = only(path, model)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

        assert found.duration == 1200
        assert peak < 20e6, "the waveform is 77 MB"


class TestBadFiles:
    @pytest.fixture
    def bad(self, tmp_path: Path, speech: np.ndarray) -> dict[str, Path]:
        files = {
            "empty": tmp_path / "empty.wav",
            "text": tmp_path / "text.wav",
            "missing": tmp_path / "missing.wav",
            "folder": tmp_path / "folder.wav",
            "not a number": tmp_path / "nan.wav",
            "infinite": tmp_path / "inf.wav",
            "no samples": tmp_path / "none.wav",
        }
        files["empty"].write_bytes(b"")
        files["text"].write_text("not a recording\n" * 100)
        files["folder"].mkdir()
        write(files["not a number"], np.where(np.arange(RATE) == 9, np.nan, 0.1))
        write(files["infinite"], np.where(np.arange(RATE) == 9, np.inf, 0.1))
        write(files["no samples"], np.zeros(0))
        return files

    def test_become_records_and_the_others_are_scored(
        self, bad: dict[str, Path], model: Model, speech: np.ndarray, tmp_path: Path
    ) -> None:
        good = write(tmp_path / "good.wav", speech)
        paths = [path for one in bad.values() for path in (one, good)]

        found = list(predict_files(paths, *model))

        assert [one.path for one in found] == [str(path) for path in paths]
        for what, record in zip(bad, found[::2], strict=True):
            assert record.error is not None, what
            assert record.error.count(bad[what].name) == 1, what
            assert record.scores == {} and record.label is None, what
        assert all(record.error is None and record.scores for record in found[1::2])

    def test_a_truncated_file_is_read_as_far_as_it_goes(
        self, model: Model, speech: np.ndarray, tmp_path: Path
    ) -> None:
        path = write(tmp_path / "cut.wav", speech)
        path.write_bytes(path.read_bytes()[: 4 * RATE])

        found = only(path, model)

        assert found.error is None
        assert 0.9 < found.duration < 1.0

    def test_damaged_weights_are_no_answer(
        self, folder: Path, speech: np.ndarray, tmp_path: Path
    ) -> None:
        network, extractor = load_model(folder)
        with torch.no_grad():
            network.classifier.weight.fill_(torch.nan)

        found = only(write(tmp_path / "a.wav", speech), (network, extractor))

        assert found.error is not None
        assert "the model's answer is not a number" in found.error

    def test_files_are_scored_as_they_are_asked_for(
        self, model: Model, speech: np.ndarray, tmp_path: Path
    ) -> None:
        path = write(tmp_path / "a.wav", speech)

        def paths() -> Any:
            yield path
            raise AssertionError("the second was not asked for")

        assert next(iter(predict_files(paths(), *model))).error is None


class TestLoadModel:
    def test_is_ready_to_score(self, model: Model) -> None:
        network, extractor = model

        assert not network.training
        assert extractor.mean is not None

    def test_says_nothing_while_it_loads(
        self, folder: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        load_model(folder)

        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("name", ["{missing}", "./missing", "~/missing", "a/b/c", "{file}"])
    def test_a_folder_that_is_not_there(self, name: str, tmp_path: Path) -> None:
        file = tmp_path / "model.safetensors"
        file.write_bytes(b"")
        name = name.format(missing=tmp_path / "missing", file=file)

        with pytest.raises(ModelError) as caught:
            load_model(name)

        assert str(caught.value).startswith(f"{name}: not a folder. Give a folder that")

    def test_a_repository_that_cannot_be_reached(self) -> None:
        with pytest.raises(ModelError, match="^org/timnet: cannot be loaded .*or a Hub id.$"):
            load_model("org/timnet")

    def test_a_checkpoint_of_another_type_scores_like_any(self, folder: Path, tmp_path: Path):
        other = shutil.copytree(folder, tmp_path / "double")
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, "dtype": "float64"}))
        model, _ = load_model(other)
        assert model.dtype == torch.float32

    def test_a_shipped_checkpoint_whose_weights_were_changed_is_refused(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shipped = shutil.copytree(folder, tmp_path / "random")
        monkeypatch.setattr(prediction, "CHECKPOINTS", tmp_path)
        assert resolve_model("random") == resolve_model(shipped) == str(shipped)
        weights = shipped / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        for name in ("random", shipped):
            with pytest.raises(ModelError, match="SHA-256 is .* says .*reinstall the package"):
                load_model(name)

    def test_shipped_checkpoints_go_by_their_name(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(prediction, "CHECKPOINTS", folder.parent)
        monkeypatch.setattr(prediction, "DEFAULT_CHECKPOINT", "random")
        monkeypatch.chdir(tmp_path)
        assert resolve_model("random") == resolve_model(None) == str(folder)
        assert resolve_model("org/random") == "org/random"

        (tmp_path / "random").mkdir()  # who names it means it; who names none does not
        assert resolve_model("random") == "random"
        assert resolve_model(None) == str(folder)

    def test_a_shipped_checkpoint_that_is_gone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(prediction, "CHECKPOINTS", tmp_path)

        with pytest.raises(ModelError, match="the shipped checkpoint is missing. Reinstall"):
            load_model()


Damage = Callable[[Path], None]


def settings(name: str, **values: Any) -> Damage:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def content(name: str, text: str | bytes | None) -> Damage:
    def change(folder: Path) -> None:
        path = folder / name
        path.unlink()
        if text is not None:
            path.write_bytes(text.encode() if isinstance(text, str) else text)

    return change


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-500])


DAMAGES: dict[str, tuple[Damage, str]] = {
    "another model": (settings("config.json", model_type="wav2vec2"), "holds a wav2vec2 model"),
    "no model type": (content("config.json", "{}"), "holds a nameless model"),
    "no configuration": (content("config.json", None), "holds a nameless model"),
    "configuration cut short": (content("config.json", '{"a"'), "not a valid JSON file"),
    "configuration of another kind": (content("config.json", "[]"), "cannot be loaded"),
    "an impossible value": (settings("config.json", hidden_size="x"), "hidden_size must be"),
    "labels of another kind": (settings("config.json", id2label=3), "cannot be loaded"),
    "more blocks than weights": (
        settings("config.json", num_hidden_layers=9),
        r"missing keys: timnet\.blocks\.8",
    ),
    "fewer blocks than weights": (
        settings("config.json", num_hidden_layers=7),
        r"unexpected keys: timnet\.blocks\.7",
    ),
    "another width": (settings("config.json", hidden_size=16), "mismatched keys: .*classifier"),
    "other labels": (
        settings("config.json", id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}),
        "mismatched keys: .*classifier",
    ),
    "no weights": (content("model.safetensors", None), "no file named model.safetensors"),
    "empty weights": (content("model.safetensors", b""), "cannot be loaded"),
    "weights cut short": (cut, "cannot be loaded"),
    "weights of another kind": (content("model.safetensors", b"\xff" * 999), "cannot be loaded"),
    "no features": (content("preprocessor_config.json", None), "cannot be loaded"),
    "features of another kind": (content("preprocessor_config.json", "[]"), "cannot be loaded"),
    "an impossible rate": (
        settings("preprocessor_config.json", sampling_rate=-1),
        "cannot be loaded",
    ),
    "features of another size": (
        settings("preprocessor_config.json", feature_size=13, mean=None, std=None),
        "features have 13 coefficients, and its network reads 39",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_folder_that_is_no_timnet_is_refused_by_name(
    what: str, folder: Path, tmp_path: Path
) -> None:
    damage, reason = DAMAGES[what]
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)

    with pytest.raises(ModelError, match=reason) as caught:
        load_model(copy)

    assert str(caught.value).startswith(f"{copy}: ")
    assert "\n" not in str(caught.value)
