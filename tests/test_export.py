# SPDX-License-Identifier: Apache-2.0
"""An exported file is the model: the same answer for every preset, network, length and batch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from timnet_hf import (
    TimNetConfig,
    TimNetFeatureExtractor,
    TimNetForAudioClassification,
    __version__,
    load_audio,
)
from timnet_hf.configuration_timnet import ABLATIONS
from timnet_hf.prediction import load_model

from .conftest import synthesise_speech
from .model_folders import LABELS, write_model_folder
from .timnet_command import Timnet, in_this_process

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from timnet_hf.export import ExportError, export_onnx  # noqa: E402  (needs what is above)
from timnet_hf.onnx_inference import OnnxModel, open_session  # noqa: E402

RATE = 16_000
Model = tuple[TimNetForAudioClassification, TimNetFeatureExtractor]


def random_model(extractor: TimNetFeatureExtractor, seed: int = 0, **config: Any) -> Model:
    """A network with statistics of its own in every normalisation, and visible differences."""
    torch.manual_seed(seed)
    model = TimNetForAudioClassification(
        TimNetConfig(num_labels=5, hidden_size=8, input_size=extractor.feature_size, **config)
    ).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(20)
        for name, values in model.named_buffers():
            if name.endswith("running_mean"):
                values.normal_(0, 0.3)
            elif name.endswith("running_var"):
                values.uniform_(0.5, 2)
    return model, extractor


def save(model: Model, folder: Path) -> Path:
    for part in model:
        part.save_pretrained(folder)
    return folder


def expected(model: Model, waveforms: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """PyTorch's probabilities, each clip alone, and the frames they rest on."""
    network, extractor = model
    scores, frames = [], []
    for waveform in waveforms:
        inputs = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        with torch.inference_mode():
            scores.append(network(inputs["input_values"]).logits[0].softmax(-1).numpy())
        frames.append(inputs["input_values"].shape[1])
    return np.stack(scores), frames


def assert_same(model: Model, path: Path, waveforms: list[np.ndarray]) -> None:
    """Alone and in one padded batch, the file gives PyTorch's answers."""
    scores, frames = expected(model, waveforms)
    file = OnnxModel(path)
    feed = padded(waveforms)
    batch, counted = open_session(path.read_bytes()).run(["probabilities", "frames"], feed)
    np.testing.assert_allclose(batch, scores, atol=1e-4)
    assert counted.tolist() == frames
    for index, waveform in enumerate(waveforms):
        alone, counted = file.score([waveform])
        np.testing.assert_allclose(alone[0], scores[index], atol=1e-4)
        assert counted.tolist() == [frames[index]]


def padded(waveforms: list[np.ndarray]) -> dict[str, np.ndarray]:
    """One batch, with something behind the shorter clips that must not matter."""
    longest = max(map(len, waveforms))
    rows = np.full((len(waveforms), longest), 0.7, dtype=np.float32)
    mask = np.zeros(rows.shape, dtype=np.int64)
    for row, waveform in enumerate(waveforms):
        rows[row, : len(waveform)] = waveform
        mask[row, : len(waveform)] = 1
    return {"waveform": rows, "attention_mask": mask}


def some_clips(rate: int = RATE) -> list[np.ndarray]:
    """From one sample to seconds: one frame, two, three, and many; silence, and a quiet voice."""
    speech = synthesise_speech(3.1, rate)
    hushed = np.concatenate([np.zeros(rate), speech[: rate // 2], np.zeros(rate // 3)])
    clips = [speech[:size] for size in (1, 10, 320, 641, 5_000, 20_011, len(speech))]
    clips += [0.003 * speech, hushed, np.zeros(3_000), np.full(2_000, 2e-6)]
    return [clip.astype(np.float32) for clip in clips]


def test_features_in_and_centered_members(tmp_path: Path) -> None:
    model = random_model(TimNetFeatureExtractor(), num_members=3, num_centered_members=1)
    paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for exported in export_onnx(save(model, tmp_path), paths[0], features_in=paths[1]):
        assert exported.deviation <= 1e-4
    (rounded,) = export_onnx(save(model, tmp_path), paths[0], int8=True)
    assert 0 < rounded.deviation <= 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture(scope="module")
def files(folder: Path) -> tuple[Path, Path]:
    """A file that takes waveforms, and one that takes features."""
    paths = folder / "waveform.onnx", folder / "features.onnx"
    export_onnx(folder, paths[0], features_in=paths[1])
    return paths


class TestWaveformsIn:
    def test_lengths_and_levels_of_all_kinds(self, folder: Path, files: tuple[Path, Path]) -> None:
        assert_same(load_model(folder), files[0], some_clips())

    @pytest.mark.parametrize("name", ["default", "paper"])
    def test_presets(self, name: str, tmp_path: Path) -> None:
        extractor = TimNetFeatureExtractor.from_preset(name, "casia")
        model = random_model(extractor)
        export_onnx(save(model, tmp_path), tmp_path / "a.onnx")
        long = synthesise_speech(6.0, extractor.sampling_rate)  # the paper's preset cuts it
        assert_same(model, tmp_path / "a.onnx", [*some_clips(extractor.sampling_rate), long])

    @pytest.mark.parametrize(
        "settings",
        [
            {"trim_db": None},
            {"normalize_level": False},
            {"normalize_level": False, "trim_db": None, "top_db": None},
            {"num_samples": 20_001},
            {"num_samples": 20_000, "trim_db": 25.0},
            {"n_fft": 500, "win_length": 401, "hop_length": 160},
            {"n_fft": 513, "win_length": 512, "hop_length": 200, "num_mel_bins": 40},
            {"n_fft": 256, "win_length": 100, "hop_length": 320, "num_mel_bins": 39},
            {"feature_size": 13, "mean": [1.0] * 13, "std": [20.0] * 13},
            {"do_normalize": False, "mean": [1.0] * 39, "std": [2.0] * 39},
        ],
        ids=str,
    )
    def test_settings_of_the_features(self, settings: dict[str, Any], tmp_path: Path) -> None:
        model = random_model(TimNetFeatureExtractor(**settings))
        export_onnx(save(model, tmp_path), tmp_path / "a.onnx")
        assert_same(model, tmp_path / "a.onnx", some_clips())

    @pytest.mark.parametrize(
        "config",
        [
            *ABLATIONS.values(),
            {"pooling": "statistics", "normalize_scales": True, "pool_input": True},
            {"pooling": "statistics", "multi_scale": False},
            {"pooling": "statistics", "bidirectional": False, "kernel_size": 3},
            {"pool_input": True, "num_hidden_layers": 3, "temperature": 1.7},
            {"num_members": 3, "num_centered_members": 1},
            {"num_members": 2, "pooling": "statistics", "normalize_scales": True},
            {"num_members": 2, "num_centered_members": 2, "pooling": "statistics"},
            {"num_members": 2, "pooling": "statistics", "bidirectional": False},
            {"temperature": 2.5, "apply_temperature": True, "normalize_scales": True},
        ],
        ids=str,
    )
    def test_forms_of_the_network(self, config: dict[str, Any], tmp_path: Path) -> None:
        extractor = TimNetFeatureExtractor(mean=[-5.0] * 39, std=[30.0] * 39)
        model = random_model(extractor, **config)
        export_onnx(save(model, tmp_path), tmp_path / "a.onnx")
        assert_same(model, tmp_path / "a.onnx", some_clips())

    def test_logits_are_the_models(self, folder: Path, files: tuple[Path, Path]) -> None:
        network, extractor = load_model(folder)
        clip = synthesise_speech(1.0)
        session = open_session(files[0].read_bytes())
        feed = {"waveform": clip[None], "attention_mask": np.ones((1, len(clip)), np.int64)}
        (logits,) = session.run(["logits"], feed)
        inputs = extractor(clip, sampling_rate=RATE, return_tensors="pt")
        with torch.inference_mode():
            np.testing.assert_allclose(logits, network(**inputs).logits, atol=1e-4)

    def test_a_mask_of_one_column_stands_for_all_samples(self, files: tuple[Path, Path]) -> None:
        session = open_session(files[0].read_bytes())
        waveform = np.stack([synthesise_speech(1.0), 0.5 * synthesise_speech(1.0), np.zeros(RATE)])
        waveform = waveform.astype(np.float32)
        wide, narrow = (np.ones((3, columns), np.int64) for columns in (RATE, 1))
        expected = session.run(None, {"waveform": waveform, "attention_mask": wide})
        found = session.run(None, {"waveform": waveform, "attention_mask": narrow})
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        narrow[1] = 0
        (scores, _, frames) = session.run(None, {"waveform": waveform, "attention_mask": narrow})
        assert np.isnan(scores[1]).all()
        np.testing.assert_array_equal(scores[[0, 2]], expected[0][[0, 2]])

    def test_rows_without_an_answer_are_nan_and_leave_the_others_alone(
        self, files: tuple[Path, Path]
    ) -> None:
        session = open_session(files[0].read_bytes())
        clip = synthesise_speech(1.0)
        waveform = np.stack([clip] * 8)
        mask = np.ones(waveform.shape, np.int64)
        waveform[1, 100], waveform[2, 100], waveform[3, 100] = np.nan, np.inf, 3e30
        mask[4] = 0
        mask[5, 100:200] = 0
        mask[6, :100] = 0
        (scores,) = session.run(["probabilities"], {"waveform": waveform, "attention_mask": mask})
        assert np.isnan(scores[1:7]).all()
        np.testing.assert_array_equal(scores[0], scores[7])
        assert np.isfinite(scores[0]).all()


def test_a_file_that_wants_a_mask_as_wide_as_the_waveform_gets_it(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    """So do those of earlier versions, which say it by the name of the axis."""
    import onnx

    old = onnx.load(files[0])
    old.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "samples"
    # What such a file makes of a mask of one column: a clip of one sample.
    each = next(node for node in old.graph.node if node.op_type == "Div")
    each.input[1] = each.input[0]
    onnx.save(old, tmp_path / "old.onnx")
    clips = some_clips()
    scores, frames = OnnxModel(files[0]).score(clips)
    found, counted = OnnxModel(tmp_path / "old.onnx").score(clips)
    np.testing.assert_array_equal(found, scores)
    np.testing.assert_array_equal(counted, frames)


class TestFeaturesIn:
    @pytest.mark.parametrize("frames", [1, 2, 3, 140])
    def test_any_number_of_frames(
        self, frames: int, folder: Path, files: tuple[Path, Path]
    ) -> None:
        network, _ = load_model(folder)
        values = torch.randn(2, frames, 39, generator=torch.manual_seed(frames))
        mask = torch.ones(2, frames, dtype=torch.int64)
        self.assert_same(network, files[1], values, mask)

    def test_masks_of_any_form(self, folder: Path, files: tuple[Path, Path]) -> None:
        network, _ = load_model(folder)
        values = torch.randn(5, 60, 39, generator=torch.manual_seed(0))
        mask = torch.ones(5, 60, dtype=torch.int64)
        mask[1, 40:] = 0  # padding behind, before, in between, and all but one frame
        mask[2, :33] = 0
        mask[3, ::3] = 0
        mask[4, 1:] = 0
        values[mask == 0] = torch.nan
        self.assert_same(network, files[1], values, mask)

    def assert_same(
        self,
        network: TimNetForAudioClassification,
        path: Path,
        values: torch.Tensor,
        mask: torch.Tensor,
    ) -> None:
        session = open_session(path.read_bytes())
        feed = {"input_values": values.numpy(), "attention_mask": mask.numpy()}
        probabilities, logits = session.run(["probabilities", "logits"], feed)
        with torch.inference_mode():
            wanted = network(values, attention_mask=mask).logits
        np.testing.assert_allclose(logits, wanted, atol=1e-4)
        np.testing.assert_allclose(probabilities, wanted.softmax(-1), atol=1e-4)


class TestFile:
    def test_says_what_it_is(self, folder: Path, files: tuple[Path, Path]) -> None:
        weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        for path, kind in zip(files, ("waveform", "features"), strict=True):
            model = onnx.load(path)
            onnx.checker.check_model(model, full_check=True)
            said = {prop.key: prop.value for prop in model.metadata_props}
            assert json.loads(said["labels"]) == LABELS
            assert said["input"] == kind
            assert said["sampling_rate"] == "16000"
            assert said["temperature"] == "1.0"
            assert said["apply_temperature"] == "false"
            assert said["weights"] == "float32"
            assert said["model_sha256"] == weights
            assert said["timnet_hf_version"] == __version__
            assert json.loads(said["feature_extractor"])["hop_length"] == 320
            assert str(folder) not in str(said)

    def test_lengths_and_batches_are_open(self, files: tuple[Path, Path]) -> None:
        session = open_session(files[0].read_bytes())
        shapes = [value.shape for value in session.get_inputs()]
        assert shapes == [["batch", "samples"], ["batch", "samples_or_1"]]
        assert session.get_outputs()[0].shape == ["batch", len(LABELS)]

    def test_the_same_model_makes_the_same_bytes(
        self, folder: Path, files: tuple[Path, Path], tmp_path: Path
    ) -> None:
        (again,) = export_onnx(folder, tmp_path / "again.onnx")
        assert again.path.read_bytes() == files[0].read_bytes()
        assert again.size == files[0].stat().st_size

    def test_needs_no_branch_and_no_loop(self, files: tuple[Path, Path]) -> None:
        for path in files:
            kinds = {node.op_type for node in onnx.load(path).graph.node}
            assert not kinds & {"If", "Loop", "Scan", "STFT", "DFT"}


class TestInt8:
    def test_is_smaller_and_nearly_the_same(self, tmp_path: Path) -> None:
        """With the network at its usual width; the features are as long as ever."""
        sizes, scores = [], []
        clips = [synthesise_speech(1.5, seed=seed) for seed in range(4)]
        for name in ("float", "int8"):
            (made,) = export_onnx(None, tmp_path / f"{name}.onnx", int8=name == "int8")
            sizes.append(made.size)
            scores.append(np.concatenate([OnnxModel(made.path).score([x])[0] for x in clips]))
        assert sizes[1] < sizes[0] - 100_000
        assert OnnxModel(tmp_path / "int8.onnx").metadata["weights"] == "int8"
        np.testing.assert_allclose(scores[0], scores[1], atol=0.03)
        assert (scores[0] != scores[1]).any()

    def test_is_not_written_where_it_changes_the_answers(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("timnet_hf.export.INT8_TOLERANCE", 1e-9)
        with pytest.raises(ExportError, match="a.onnx: not written.*without int8"):
            export_onnx(folder, tmp_path / "a.onnx", int8=True)
        assert list(tmp_path.iterdir()) == []

    def test_neither_file_is_written_where_one_is_not_right(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deviations = iter([0.0, 1.0])
        monkeypatch.setattr("timnet_hf.export._deviation", lambda *_: next(deviations))
        with pytest.raises(ExportError, match=r"b\.onnx: not written"):
            export_onnx(folder, tmp_path / "a.onnx", features_in=tmp_path / "b.onnx")
        assert list(tmp_path.iterdir()) == []


class TestErrors:
    def test_a_name_that_would_not_be_recognised(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="a.bin: the name must end in .onnx"):
            export_onnx(folder, tmp_path / "a.bin")

    def test_one_name_for_two_files(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="a.onnx: both files have this name"):
            export_onnx(folder, tmp_path / "a.onnx", features_in=tmp_path / "a.onnx")

    def test_damaged_weights_are_noticed(self, tmp_path: Path) -> None:
        network, extractor = random_model(TimNetFeatureExtractor())
        with torch.no_grad():
            network.classifier.weight[0, 0] = torch.nan
        save((network, extractor), tmp_path)
        with pytest.raises(ExportError, match="not written"):
            export_onnx(tmp_path, tmp_path / "a.onnx")
        assert not (tmp_path / "a.onnx").exists()

    @pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
    def test_a_package_that_is_not_installed(
        self, package: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(ImportError, match=rf'needs {package}: pip install "timnet-hf\[onnx\]"'):
            export_onnx(folder, tmp_path / "a.onnx")


class TestCommand:
    @pytest.fixture
    def timnet(self, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Timnet:
        return in_this_process(monkeypatch, capsys)

    def test_writes_both_files_and_says_how_close_they_are(
        self, timnet: Timnet, folder: Path, tmp_path: Path
    ) -> None:
        one, two = tmp_path / "new" / "w.onnx", tmp_path / "f.onnx"
        ended = timnet("export", "--model", folder, "--output", one, "--features-in", two)
        assert ended.status == 0, ended.err
        assert f"timnet predict --model {one}" in ended.out
        assert "w.onnx" in ended.out and "f.onnx" in ended.out and "of PyTorch's" in ended.out
        assert OnnxModel(one).labels == LABELS and two.is_file()

    def test_of_no_model(self, timnet: Timnet, tmp_path: Path) -> None:
        ended = timnet("export", "-m", tmp_path / "gone", "-o", tmp_path / "a.onnx")
        assert ended.status == 2 and "gone" in ended.message


# --- the shipped checkpoint on fifty recordings of two corpora, 1.5 to 5.5 seconds long ----------


@pytest.fixture(scope="module")
def recordings(emodb_dir: Path, ravdess_dir: Path) -> list[np.ndarray]:
    german = sorted((emodb_dir / "wav").glob("*.wav"))[::18][:30]
    english = sorted(path for path in ravdess_dir.glob("Actor_*/*") if path.is_file())
    paths = german + english[:: len(english) // 20][:20]
    assert len(paths) == 50
    return [load_audio(path, RATE) for path in paths]


def test_real_recordings(recordings: list[np.ndarray], tmp_path: Path) -> None:
    export_onnx(None, tmp_path / "a.onnx")
    assert_same(load_model(), tmp_path / "a.onnx", recordings)


def test_real_recordings_in_int8(recordings: list[np.ndarray], tmp_path: Path) -> None:
    export_onnx(None, tmp_path / "a.onnx", int8=True)
    scores, _ = expected(load_model(), recordings)
    file = OnnxModel(tmp_path / "a.onnx")
    found = np.concatenate([file.score([clip])[0] for clip in recordings])
    np.testing.assert_allclose(found, scores, atol=0.03)
