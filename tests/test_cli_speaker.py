# SPDX-License-Identifier: Apache-2.0
"""``timnet enroll`` and ``timnet predict --speaker``: a voice that is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from timnet_hf.speaker_timnet import SpeakerProfile

from .conftest import synthesise_speech
from .timnet_command import Timnet, in_this_process


@pytest.fixture
def timnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Timnet:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "voice").mkdir()
    for number in range(2):
        waveform = synthesise_speech(2.0 + number)
        soundfile.write(tmp_path / "voice" / f"{number}.wav", waveform, 16_000)
    return in_this_process(monkeypatch, capsys)


def scores(timnet: Timnet, *options: str) -> dict[str, float]:
    ended = timnet("predict", "voice/0.wav", "--format", "json", "--top-k", "7", *options)
    assert ended.status == 0, ended.err
    (record,) = json.loads(ended.out)
    return {entry["label"]: entry["score"] for entry in record["scores"]}


def test_an_enrolled_voice_changes_the_answer(timnet: Timnet, tmp_path: Path) -> None:
    ended = timnet("enroll", "voice", "--name", "anna")
    assert ended.status == 0 and "2 recording(s)" in ended.out
    assert SpeakerProfile.load(tmp_path / "anna.json").name == "anna"
    plain, adapted = scores(timnet), scores(timnet, "--speaker", "anna.json")
    assert set(plain) == set(adapted) and sum(adapted.values()) == pytest.approx(1, abs=1e-3)
    assert max(abs(plain[label] - adapted[label]) for label in plain) > 1e-3


def test_a_name_cannot_lead_out_of_the_folder(timnet: Timnet, tmp_path: Path) -> None:
    assert timnet("enroll", "voice", "--name", "../../anna").status == 0
    assert (tmp_path / "anna.json").is_file()
    assert timnet("enroll", "voice", "--name", "..").status == 0
    assert (tmp_path / "speaker.json").is_file()


def test_a_voice_without_a_name_is_refused(timnet: Timnet, tmp_path: Path) -> None:
    ended = timnet("enroll", "voice", "--name", " ")
    assert ended.status == 2 and "--name: is empty" in ended.err
    assert not list(tmp_path.glob("*.json"))


def test_silence_and_no_recording_are_refused_by_name(timnet: Timnet, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "quiet.wav", np.zeros(16_000), 16_000)
    ended = timnet("enroll", "quiet.wav", "--name", "anna")
    assert ended.status == 2 and "quiet.wav: nothing to hear" in ended.err
    (tmp_path / "empty").mkdir()
    assert timnet("enroll", "empty", "--name", "anna").status == 2
    assert not (tmp_path / "anna.json").exists()


def test_a_profile_that_is_none_is_named(timnet: Timnet, tmp_path: Path) -> None:
    (tmp_path / "anna.json").write_text("{}")
    ended = timnet("predict", "voice/0.wav", "--speaker", "anna.json")
    assert ended.status == 2 and "anna.json" in ended.err and "timnet enroll" in ended.err


def test_an_exported_file_cannot_be_adapted(timnet: Timnet, tmp_path: Path) -> None:
    assert timnet("enroll", "voice", "--name", "anna").status == 0
    (tmp_path / "model.onnx").write_bytes(b"")
    ended = timnet("predict", "voice/0.wav", "--model", "model.onnx", "--speaker", "anna.json")
    assert ended.status == 2 and "cannot be adapted to a voice" in ended.err


def test_a_model_can_be_exported_for_one_voice(timnet: Timnet) -> None:
    pytest.importorskip("onnxruntime")
    assert timnet("enroll", "voice", "--name", "anna").status == 0
    ended = timnet("export", "--output", "anna.onnx", "--speaker", "anna.json")
    assert ended.status == 0, ended.err
    adapted = scores(timnet, "--speaker", "anna.json")
    assert scores(timnet, "--model", "anna.onnx") == pytest.approx(adapted, abs=1e-4)
    ended = timnet("export", "--output", "b.onnx", "--speaker", "gone.json")
    assert ended.status == 2 and "gone.json" in ended.err


def test_the_command_it_suggests_names_the_model(timnet: Timnet) -> None:
    ended = timnet("enroll", "voice", "--name", "anna", "--model", "timnet-multi")
    assert "timnet predict --model timnet-multi --speaker anna.json" in ended.out.replace("\n", " ")


def test_a_file_that_is_no_profile_is_not_replaced(timnet: Timnet, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"name": "something else"}')
    ended = timnet("enroll", "voice", "--name", "package")
    assert ended.status == 2 and "no speaker's profile" in ended.err.replace("\n", " ")
    assert "something else" in (tmp_path / "package.json").read_text()
    assert timnet("enroll", "voice", "--name", "anna").status == 0
    assert timnet("enroll", "voice", "--name", "anna").status == 0


def test_a_profile_goes_into_a_folder_that_is_there(timnet: Timnet) -> None:
    ended = timnet("enroll", "voice", "--name", "anna", "-o", "nowhere/anna.json")
    assert ended.status == 2 and "nowhere: no such folder" in ended.err.replace("\n", " ")
