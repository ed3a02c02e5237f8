# SPDX-License-Identifier: Apache-2.0
"""Predictions with an exported file: as PyTorch's, without PyTorch, and safe with any file."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from timnet_hf import TimNetFeatureExtractor
from timnet_hf.prediction import (
    ModelError,
    Prediction,
    is_onnx,
    load_model,
    load_scorer,
    predict_files,
    predict_recordings,
)
from timnet_hf.timeline_formats import timeline_files, timeline_recordings

from .conftest import synthesise_speech
from .model_folders import LABELS, run_python, write_model_folder
from .timnet_command import Timnet, in_this_process

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from timnet_hf.export import export_onnx  # noqa: E402  (needs what is above)
from timnet_hf.onnx_inference import OnnxModel  # noqa: E402
from timnet_hf.sound_timnet import MAX_AMPLITUDE  # noqa: E402

RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    export_onnx(folder, folder / "random.onnx", features_in=folder / "features.onnx")
    return folder / "random.onnx"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Speech, a click, silence, ninety seconds, and a file that is no recording."""
    folder = tmp_path_factory.mktemp("clips")
    sounds = {
        "1 speech": synthesise_speech(2.0),
        "2 other": synthesise_speech(3.3, seed=5),
        "3 click": np.full(10, 0.5),
        "4 silence": np.zeros(RATE),
        "5 long": np.concatenate([np.tile(synthesise_speech(5.0, seed=2), 18), np.zeros(999)]),
    }
    for name, sound in sounds.items():
        soundfile.write(folder / f"{name}.wav", sound, RATE, subtype="FLOAT")
    (folder / "6 text.wav").write_text("not sound")
    return sorted(folder.iterdir())


@pytest.fixture
def timnet(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Timnet:
    return in_this_process(monkeypatch, capsys)


def assert_alike(found: Prediction, wanted: Prediction) -> None:
    assert (found.path, found.label, found.duration) == (wanted.path, wanted.label, wanted.duration)
    assert (found.silent, found.error) == (wanted.silent, wanted.error)
    assert found.scores == pytest.approx(wanted.scores, abs=1e-4)


class TestPredictions:
    def test_are_those_of_pytorch(self, folder: Path, file: Path, clips: list[Path]) -> None:
        found = list(predict_recordings(clips, load_scorer(file)))
        wanted = list(predict_files(clips, *load_model(folder)))
        assert [one.error is None for one in found] == [True] * 5 + [False]
        for one, other in zip(found, wanted, strict=True):
            assert_alike(one, other)

    def test_timelines_too(self, folder: Path, file: Path, clips: list[Path]) -> None:
        found = list(timeline_recordings(clips, load_scorer(file), window=1.0))
        wanted = list(timeline_files(clips, *load_model(folder), window=1.0))
        for one, other in zip(found, wanted, strict=True):
            assert (one.path, one.duration, one.error) == (other.path, other.duration, other.error)
            assert len(one.events) == len(other.events)
            for event, its in zip(one.events, other.events, strict=True):
                assert event["scores"] == pytest.approx(its["scores"], abs=1e-4)
                assert [event[key] for key in ("start", "end", "label")] == [
                    its[key] for key in ("start", "end", "label")
                ]
        assert len(found[4].events) > 0

    def test_of_a_fixed_clip_length(self, tmp_path: Path, clips: list[Path], folder: Path) -> None:
        network, _ = load_model(folder)
        extractor = TimNetFeatureExtractor.from_preset("paper", num_samples=60_000)
        for part in (network, extractor):
            part.save_pretrained(tmp_path)
        export_onnx(tmp_path, tmp_path / "a.onnx")
        scorer = load_scorer(tmp_path / "a.onnx")
        assert scorer.num_samples == 60_000 and scorer.sampling_rate == 22_050
        found = list(predict_recordings(clips, scorer))
        for one, other in zip(found, predict_files(clips, network, extractor), strict=True):
            assert_alike(one, other)


class TestCommand:
    @pytest.mark.parametrize("output_format", ["json", "csv", "table"])
    def test_prints_what_the_model_does(
        self, output_format: str, timnet: Timnet, folder: Path, file: Path, clips: list[Path]
    ) -> None:
        chosen = ["--format", output_format]
        found = timnet("predict", *clips, "--model", file, *chosen)
        wanted = timnet("predict", *clips, "--model", folder, *chosen)
        assert found.status == wanted.status == 2  # one of them is no recording
        if output_format == "table":
            assert found.out == wanted.out
            return
        values = [self.values(ended.out, output_format) for ended in (found, wanted)]
        assert values[0] == pytest.approx(values[1], abs=1e-4)

    @staticmethod
    def values(text: str, output_format: str) -> dict[str, Any]:
        """All that was printed, flat, so that it can be compared as numbers and as text."""
        if output_format == "csv":
            cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
        else:
            assert [label["label"] for label in json.loads(text)[0]["scores"]]
            cells = json.dumps(json.loads(text)).replace(",", " ").replace("}", " ").split(" ")
        flat: dict[str, Any] = {}
        for index, cell in enumerate(cells):
            try:
                flat[str(index)] = float(cell.strip("[]"))
            except ValueError:
                flat[f"{index} {cell}"] = 0.0
        return flat

    @pytest.mark.parametrize("more", [[], ["--segments", "--format", "rttm"]], ids=str)
    def test_needs_neither_torch_nor_transformers(
        self, more: list[str], file: Path, clips: list[Path], tmp_path: Path
    ) -> None:
        script = """
import json, sys
from timnet_hf.cli import main
sys.argv[0] = "timnet"
try:
    main()
except SystemExit as ended:
    status = ended.code
heavy = {"torch", "torchaudio", "transformers", "onnx", "datasets"} & set(sys.modules)
print()
print(json.dumps({"status": status, "heavy": sorted(heavy), "ort": "onnxruntime" in sys.modules}))
"""
        arguments = ["predict", str(clips[0]), "--model", str(file), *more]
        ended = run_python(script, *arguments, cwd=tmp_path, package=True)
        assert ended == {"status": 0, "heavy": [], "ort": True}

    def test_names_a_file_that_is_not_there(
        self, timnet: Timnet, clips: list[Path], tmp_path: Path
    ) -> None:
        ended = timnet("predict", clips[0], "--model", tmp_path / "gone.onnx")
        assert ended.status == 2
        assert "gone.onnx: cannot be read (No such file or directory)" in ended.message
        assert "Give a file that `timnet export` wrote" in ended.message


class TestScores:
    def test_of_no_waveform(self, file: Path) -> None:
        scores, frames = OnnxModel(file).score([])
        assert scores.shape == (0, len(LABELS)) and frames.shape == (0,)

    @pytest.mark.parametrize(
        "waveform",
        [
            np.zeros(0, np.float32),
            np.zeros((2, 9), np.float32),
            np.zeros(9, np.int16),
            np.array([0.1, np.nan]),
            np.array([np.inf, 0.1]),
            np.array([0.1, -2 * MAX_AMPLITUDE]),
        ],
        ids=["empty", "stereo", "integers", "NaN", "infinite", "too large"],
    )
    def test_say_what_is_wrong_as_the_feature_extractor_does(
        self, waveform: np.ndarray, file: Path
    ) -> None:
        with pytest.raises(ValueError) as ours:
            OnnxModel(file).score([np.zeros(100), waveform])
        with pytest.raises(ValueError) as theirs:
            TimNetFeatureExtractor()(list([waveform]), sampling_rate=RATE)
        assert str(ours.value) == str(theirs.value).replace("torch.int", "int")

    def test_take_what_the_feature_extractor_takes(self, file: Path) -> None:
        loud = np.full(400, MAX_AMPLITUDE, dtype=np.float64)
        TimNetFeatureExtractor()(loud, sampling_rate=RATE)
        assert np.isfinite(OnnxModel(file).score([loud])[0]).all()


def changed(file: Path, path: Path, change: Any) -> Path:
    model = onnx.load(file)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def set_metadata(**values: str | None) -> Any:
    def change(model: Any) -> None:
        said = {prop.key: prop.value for prop in model.metadata_props} | values
        del model.metadata_props[:]
        for key, value in said.items():
            if value is not None:
                model.metadata_props.add(key=key, value=value)

    return change


class TestUntrustedFiles:
    def refused(self, path: Path) -> str:
        with pytest.raises(ModelError) as error:
            load_scorer(path)
        message = str(error.value)
        assert message.startswith(f"{path}: ")
        assert message.endswith("Give a file that `timnet export` wrote.")
        return message

    @pytest.mark.parametrize(
        "content",
        [b"", b"\n", b"not a model\n" * 99, b"\x00" * 99, b"\xff" * 99, b"PK\x03\x04" * 9],
    )
    def test_no_onnx_at_all(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").write_bytes(content)
        self.refused(tmp_path / "a.onnx")

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
    def test_cut_short(self, share: float, file: Path, tmp_path: Path) -> None:
        content = file.read_bytes()
        (tmp_path / "a.onnx").write_bytes(content[: int(share * len(content))])
        assert "cut short" in self.refused(tmp_path / "a.onnx")

    @pytest.mark.parametrize("where", ["secret.bin", "../secret.bin", "/etc/hostname"])
    @pytest.mark.parametrize("place", ["weights", "operator"])
    def test_weights_in_another_file_are_not_read(
        self, where: str, place: str, file: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "secret.bin").write_bytes(b"s" * 10**6)

        def point_outside(model: Any) -> None:
            tensor = model.graph.initializer[0]
            if place == "operator":
                node = model.graph.node.add(op_type="Constant", output=["secret"])
                node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
                node.attribute[0].t.CopyFrom(tensor)
                tensor = node.attribute[0].t
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=where)

        path = changed(file, tmp_path / "a.onnx", point_outside)
        assert "it holds weights in another file" in self.refused(path)

    def test_an_external_tensor_without_a_name(self, file: Path, tmp_path: Path) -> None:
        def mark(model: Any) -> None:
            model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL

        path = changed(file, tmp_path / "a.onnx", mark)
        assert "it holds weights in another file" in self.refused(path)

    def test_loops_and_functions(self, file: Path, tmp_path: Path) -> None:
        def loop(model: Any) -> None:
            node = model.graph.node.add(op_type="Loop", output=["out"])
            node.attribute.add(name="body", type=onnx.AttributeProto.GRAPH)
            node.attribute[0].g.name = "body"

        def function(model: Any) -> None:
            model.functions.add(name="f", domain="d")

        path = changed(file, tmp_path / "a.onnx", loop)
        assert "it holds a graph inside an operator" in self.refused(path)
        path = changed(file, tmp_path / "b.onnx", function)
        assert "it holds a function" in self.refused(path)

    def test_the_file_that_takes_features(self, file: Path) -> None:
        assert "it takes features" in self.refused(file.with_name("features.onnx"))

    def test_another_network(self, tmp_path: Path) -> None:
        helper = onnx.helper
        value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        other = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [value], [other])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
        assert "not those of a TIM-Net" in self.refused(tmp_path / "a.onnx")

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"labels": None}, "metadata are broken"),
            ({"labels": "not JSON"}, "metadata are broken"),
            ({"labels": "7"}, "metadata are broken"),
            ({"labels": '["one"]'}, "names 1 labels"),
            ({"sampling_rate": "fast"}, "metadata are broken"),
            ({"sampling_rate": "8000"}, "cannot be"),
            ({"sampling_rate": "-5"}, "cannot be"),
            ({"feature_extractor": "[]"}, "metadata are broken"),
            ({"num_samples": "-5"}, "cannot be"),
        ],
        ids=str,
    )
    def test_broken_metadata(
        self, values: dict[str, str | None], words: str, file: Path, tmp_path: Path
    ) -> None:
        path = changed(file, tmp_path / "a.onnx", set_metadata(**values))
        assert words in self.refused(path)

    def test_labels_that_cannot_be_told_apart(self, file: Path, tmp_path: Path) -> None:
        twins = json.dumps(["same"] * len(OnnxModel(file).labels))
        path = changed(file, tmp_path / "a.onnx", set_metadata(labels=twins))
        assert "two of its labels have the same name" in self.refused(path)

    def test_one_far_too_large(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("timnet_hf.onnx_inference.MAX_SIZE", 1000)
        assert "far more than a TIM-Net" in self.refused(file)

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_damage_is_an_error_or_none_at_all(
        self, data: st.DataObject, file: Path, tmp_path: Path
    ) -> None:
        content = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, 6_000))] = data.draw(st.integers(0, 255))
        (tmp_path / "a.onnx").write_bytes(content)
        try:
            scorer = load_scorer(tmp_path / "a.onnx")
            scorer.score([np.zeros(500, np.float32)])
        except ModelError as error:
            assert "a.onnx" in str(error)


def test_without_onnxruntime(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'onnxruntime: pip install "timnet-hf\[onnx\]"'):
        load_scorer(file)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("a.onnx", True), (Path("b/A.ONNX"), True), ("org/model", False), (None, False)],
)
def test_the_name_tells(name: str | Path | None, is_one: bool) -> None:
    assert is_onnx(name) is is_one


def test_a_folder_of_that_name_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").mkdir()
    assert not is_onnx(tmp_path / "a.onnx")
