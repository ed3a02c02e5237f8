# SPDX-License-Identifier: Apache-2.0
"""The demo page as its API shows it: good recordings, bad ones, strangers' models, and limits.

Almost everything here goes through `gradio_client` to a page that runs as it would on the Hub,
where this package does not exist.
"""

from __future__ import annotations

import ast
import csv
import os
import re
import signal
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from timnet_hf import load_audio, resample
from timnet_hf.prediction import enroll, load_model, load_scorer, predict_recordings
from timnet_hf.space import SpaceError, launch_space, space_environment, space_files, space_folder

from .model_folders import LABELS
from .space_server import (
    Space,
    call,
    expected,
    picture_size,
    refusal,
    running_space,
    scores,
    serving,
    space_module,
    write_models,
    write_speech,
)

# On a busy machine it takes minutes until Python has loaded torch, and the page is there.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


# --- the page ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def space(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    with running_space(tmp_path_factory.mktemp("space"), models) as running:
        yield running


@pytest.fixture(scope="module")
def client(space: Space) -> Any:
    from gradio_client import Client

    return Client(space.url, verbose=False, download_files=False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech(tmp_path_factory.mktemp("clip") / "clip.wav")


# --- recordings -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_every_format_gets_the_answer_of_timnet_predict(
    client: Any, clip: Path, models: list[Path], tmp_path: Path, suffix: str
) -> None:
    sound, rate = soundfile.read(clip, dtype="float32")
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, sound, rate)

    answer = call(client, "predict", path, "first")

    assert scores(answer) == pytest.approx(expected(path, models[0]), abs=1e-5)
    assert answer[1].startswith("first hears **")


def test_stereo_at_48_khz_is_mixed_down_and_resampled(
    client: Any, models: list[Path], tmp_path: Path
) -> None:
    sound, rate = soundfile.read(write_speech(tmp_path / "a.wav", 2.0, 48_000))
    soundfile.write(tmp_path / "stereo.wav", np.stack((sound, 0.5 * sound), axis=1), rate)

    answer = call(client, "predict", tmp_path / "stereo.wav", "second")

    assert scores(answer) == pytest.approx(expected(tmp_path / "stereo.wav", models[1]), abs=1e-5)


def test_half_an_hour_is_scored_and_drawn(
    client: Any, clip: Path, models: list[Path], tmp_path: Path
) -> None:
    speech = load_audio(clip, 16_000)
    turn = np.concatenate((speech, np.zeros(17 * 16_000, dtype=np.float32)))
    path = tmp_path / "long.flac"
    soundfile.write(path, np.tile(turn, 90), 16_000)

    assert scores(call(client, "predict", path, "first")) == pytest.approx(
        expected(path, models[0]), abs=1e-4
    )
    plot, table = call(client, "timeline", path, "first")
    assert picture_size(plot)[0] > 900
    assert 90 <= len(table["data"]) <= 900 and table["data"][-1][1] > 1780
    assert picture_size(call(client, "explain", path, "first"))[0] > 900
    (row,) = call(client, "batch", [path], "first")[0]["data"]
    assert row[1] in LABELS and row[3] == 1800.0
    assert "longer than 2 minutes" in refusal(client, "live", path, "first"), "a piece at a time"


@pytest.mark.parametrize("kind", ["wav", "mp3", "48 kHz stereo", "broken"])
def test_every_endpoint_takes_what_visitors_have(
    space: Space, clip: Path, tmp_path: Path, kind: str
) -> None:
    from gradio_client import Client

    own = Client(space.url, verbose=False, download_files=False)
    path = tmp_path / ("clip.mp3" if kind == "mp3" else "clip.wav")
    sound, rate = soundfile.read(clip, dtype="float32")
    if kind == "broken":
        path.write_bytes(b"RIFF" + bytes(99))
    elif kind == "48 kHz stereo":
        sound = resample(sound, rate, 48_000)
        soundfile.write(path, np.stack((sound, 0.5 * sound), axis=1), 48_000)
    else:
        soundfile.write(path, sound, rate)

    (row,) = call(own, "batch", [path], "first")[0]["data"]
    if kind == "broken":
        assert "cannot be decoded" in row[-1]
        for name in ("predict", "timeline", "explain", "live"):
            assert "cannot be decoded" in refusal(own, name, path, "first")
        return
    assert row[1] in LABELS and row[3] == pytest.approx(3, abs=0.1)
    assert scores(call(own, "predict", path, "first"))[row[1]] == pytest.approx(row[2], abs=1e-4)
    plot, table = call(own, "timeline", path, "first")
    assert picture_size(plot)[0] > 900 and {event[2] for event in table["data"]} <= {*LABELS}
    assert picture_size(call(own, "explain", path, "first"))[0] > 900
    assert call(own, "live", path, "first")[2].startswith("Heard 3 s.")
    assert call(own, "live_end")[1].count("<span") >= 1


def test_the_timeline_is_that_of_the_pipeline(client: Any, clip: Path, models: list[Path]) -> None:
    from timnet_hf.pipeline_timnet import TimNetTimelinePipeline
    from timnet_hf.prediction import load_model

    model, extractor = load_model(models[0])
    timeline = TimNetTimelinePipeline(model=model, feature_extractor=extractor, device="cpu")
    events = timeline({"array": load_audio(clip, 16_000), "sampling_rate": 16_000})

    _, table = call(client, "timeline", clip, "first")

    assert table["headers"] == ["start", "end", "emotion", "score"]
    assert [row[:3] for row in table["data"]] == [
        [round(event["start"], 2), round(event["end"], 2), event["label"]] for event in events
    ]


def test_the_explanation_adds_up_and_lies_where_the_sound_is(
    clip: Path, models: list[Path]
) -> None:
    import torch

    checkpoint = space_module("checkpoints").Checkpoints([str(models[0])]).get()
    speech = load_audio(clip, 16_000)
    silence = np.zeros(32_000, dtype=np.float32)
    waveform = np.concatenate((silence, speech, silence))
    found = space_module("explanation").explain(checkpoint, waveform)

    model = checkpoint.timeline.model
    with torch.inference_mode():
        logits = model(checkpoint.inputs(waveform)["input_values"]).logits[0]
    best = int(logits.argmax())
    assert found.label == checkpoint.labels[best]
    parts = found.contributions.sum() + model.classifier.bias[best].item()
    assert parts == pytest.approx(float(logits[best]), abs=1e-4)
    assert len(found.scales) == len(found.weights) == model.config.num_scales
    assert found.times[0] == pytest.approx(2.0, abs=0.1)
    assert found.times[-1] == pytest.approx(5.0, abs=0.1)
    assert np.abs(found.saliency).max() == pytest.approx(1.0)


@pytest.mark.parametrize("known_from", ["recordings", "profile"])
def test_a_known_voice_gets_the_answer_of_timnet_predict_with_its_profile(
    client: Any, clip: Path, models: list[Path], tmp_path: Path, known_from: str
) -> None:
    others = [write_speech(tmp_path / f"{seconds}.wav", seconds) for seconds in (2.0, 4.0)]
    profile = tmp_path / "anna.json"
    enroll("anna", others, *load_model(models[0])).save(profile)
    (adapted,) = predict_recordings([clip], load_scorer(models[0], speaker=profile))

    voice = others if known_from == "recordings" else [profile]

    assert scores(call(client, "predict", clip, "first", voice)) == pytest.approx(
        adapted.scores, abs=1e-5
    )
    assert scores(call(client, "predict", clip, "first")) != pytest.approx(adapted.scores, abs=1e-3)
    assert call(client, "timeline", clip, "first", voice)[1]["data"]
    assert picture_size(call(client, "explain", clip, "first", voice))[0] > 100
    (row,) = call(client, "batch", [clip], "first", voice)[0]["data"]
    assert row[2] == pytest.approx(adapted.scores[row[1]], abs=1e-3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"name": "anna"}', "voice.json: lacks what a profile holds"),
        (b"[" * 100_000, "voice.json: is not JSON"),
        (b" " * 2**21, "voice.json is too large for a speaker profile"),
    ],
)
def test_what_is_no_voice_gets_a_sentence(
    client: Any, clip: Path, tmp_path: Path, content: bytes, said: str
) -> None:
    profile = tmp_path / "voice.json"
    profile.write_bytes(content)

    told = refusal(client, "predict", clip, "first", [profile])

    assert told.startswith(said) and str(tmp_path.parent) not in told


def test_a_voice_is_not_known_from_silence_or_from_heaps_of_files(
    client: Any, clip: Path, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "quiet.wav", np.zeros(16_000), 16_000)
    told = refusal(client, "predict", clip, "first", [clip, tmp_path / "quiet.wav"])
    assert told.startswith("quiet.wav holds nothing but silence")
    assert "21 files are too many" in refusal(client, "predict", clip, "first", [clip] * 21)


def test_silence_is_called_silence(client: Any, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(32_000), 16_000)

    assert "nothing to hear" in call(client, "predict", tmp_path / "silence.wav", "first")[1]
    assert call(client, "timeline", tmp_path / "silence.wav", "first")[1]["data"] in ([], [[]])
    assert picture_size(call(client, "explain", tmp_path / "silence.wav", "first"))


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_one_sample_is_enough(client: Any, tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "one.wav", np.array([0.3]), rate)

    assert set(scores(call(client, "predict", tmp_path / "one.wav", "first"))) == set(LABELS)
    assert picture_size(call(client, "timeline", tmp_path / "one.wav", "first")[0])
    assert picture_size(call(client, "explain", tmp_path / "one.wav", "first"))


def test_a_high_sampling_rate_takes_no_more_memory(tmp_path: Path) -> None:
    """A minute at 655 kHz is 160 MB; as a FLAC of silence it is 30 kB."""
    soundfile.write(tmp_path / "fast.flac", np.zeros(60 * 655_350, np.int16), 655_350)
    load = space_module("recording").load_recording
    tracemalloc.start()
    try:
        waveform = load(str(tmp_path / "fast.flac"), 16_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(waveform) == 60 * 16_000 and peak < 40e6


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
def test_recordings_are_read_as_the_package_reads_them(rate: int, tmp_path: Path) -> None:
    path = write_speech(tmp_path / "clip.wav", 20.0, rate)
    found = space_module("recording").load_recording(str(path), 16_000)
    np.testing.assert_array_equal(found, load_audio(path, 16_000))


BAD = {
    "no recording": (b"<script>alert(1)</script>" * 99, "cannot be decoded"),
    "a torn header": (b"RIFF\xff\xff\xff\x7fWAVEfmt ", "cannot be decoded"),
    "no sound": ("empty", "holds no sound"),
    "not a number": ("nan", "no recording has"),
    "garbage": ("huge values", "no recording has"),
    "an impossible rate": ("2 Hz", "Repair its header"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("api_name", ["predict", "timeline", "explain"])
def test_a_bad_recording_gets_a_sentence(
    client: Any, tmp_path: Path, kind: str, api_name: str
) -> None:
    content, said = BAD[kind]
    path = tmp_path / "bad & <b>bold<b>.wav"
    sound = np.full(1600, 0.1, dtype=np.float32)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "empty":
        soundfile.write(path, sound[:0], 16_000)
    elif content == "2 Hz":
        soundfile.write(path, sound, 2)
    else:
        sound[800] = np.nan if content == "nan" else 1e30
        soundfile.write(path, sound, 16_000, subtype="FLOAT")

    message = refusal(client, api_name, path, "first")

    assert said in message and ".wav" in message
    assert "<b>" not in message and "Traceback" not in message


def test_no_recording_gets_a_sentence(client: Any) -> None:
    assert "upload a recording" in refusal(client, "predict", None, "first")
    assert "Choose some recordings" in refusal(client, "batch", [], "first")


# --- several files ----------------------------------------------------------------------------


def test_a_batch_is_a_table_and_a_csv_that_no_spreadsheet_runs(
    space: Space, clip: Path, tmp_path: Path
) -> None:
    from gradio_client import Client

    formulas = [tmp_path / f'{sign}HYPERLINK("x").wav' for sign in "=＝"]
    for formula in formulas:
        formula.write_bytes(clip.read_bytes())
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no")

    downloading = Client(space.url, verbose=False, download_files=str(tmp_path / "got"))
    table, path = call(downloading, "batch", [clip, *formulas, broken], "first")

    assert table["headers"] == ["file", "emotion", "probability", "seconds", *LABELS, "note"]
    good, *_, bad = table["data"]
    assert good[0] == "clip.wav" and good[1] in LABELS and good[3] == 3.0
    assert bad[1] == "" and "cannot be decoded" in bad[-1]
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == table["headers"] and len(rows) == 5
    assert all(not cell.startswith(tuple("=+-@＝＋－＠")) for row in rows for cell in row)


# --- the microphone ---------------------------------------------------------------------------


def test_the_live_endpoint_follows_a_voice(space: Space, clip: Path, tmp_path: Path) -> None:
    from gradio_client import Client

    own = Client(space.url, verbose=False, download_files=False)
    speech = np.tile(load_audio(clip, 48_000), 3)
    chunk = tmp_path / "audio.wav"
    for first in range(0, len(speech), 48_000):
        soundfile.write(chunk, speech[first : first + 48_000], 48_000)
        now, strip, status = call(own, "live", chunk, "first")
    assert status.startswith("Heard 9 s.")  # three times the same three seconds, none left out
    assert now["label"] in LABELS and now["label"] in strip

    _, strip, _ = call(own, "live_end")
    assert strip.count("<span") >= 1


def test_live_sound_of_a_known_voice_is_scored_as_that_voice(
    space: Space, clip: Path, models: list[Path], tmp_path: Path
) -> None:
    from gradio_client import Client

    profile = tmp_path / "anna.json"
    enroll("anna", [write_speech(tmp_path / "o.wav", 2.0)], *load_model(models[0])).save(profile)
    own = Client(space.url, verbose=False, download_files=False)
    answers = {}
    for voice in (None, [profile]):
        for _ in range(2):  # the second piece goes on where the first ended
            answers[voice is None], _, status = call(own, "live", clip, "first", voice)
        assert status.startswith("Heard 6 s.")
        call(own, "live_end")
    assert scores([answers[True]]) != pytest.approx(scores([answers[False]]), abs=1e-3)


# --- checkpoints ------------------------------------------------------------------------------


def test_the_checkpoints_of_the_owner_are_described(client: Any) -> None:
    assert call(client, "checkpoint", "second").startswith("**second** · 5,708 parameters · angry")


# --- starting it ------------------------------------------------------------------------------


def test_the_front_matter_is_complete_and_true() -> None:
    import gradio

    text = (space_folder() / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])

    for key in ("title", "emoji", "colorFrom", "colorTo", "models", "tags", "pinned"):
        assert key in front
    assert (front["sdk"], front["app_file"], front["license"]) == ("gradio", "app.py", "apache-2.0")
    assert front["sdk_version"] == gradio.__version__
    assert len(front["short_description"]) <= 60
    assert front["models"] == [space_module("checkpoints").DEFAULT_MODEL]


def test_the_published_files_hold_the_page_and_clips_to_try() -> None:
    files = space_files()

    assert {"README.md", "app.py", "requirements.txt"} <= set(files)
    assert sum(name.endswith(".flac") for name in files) >= 4
    assert all(path.is_file() for path in files.values())


def test_the_page_needs_what_its_requirements_name_and_no_more() -> None:
    """Each third-party import has its line, and each line its import (torchaudio: the model's)."""
    lines = (space_folder() / "requirements.txt").read_text().splitlines()
    named = {re.split("[<>=]", line)[0] for line in lines if line}
    imported = set()
    for path in space_folder().glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])

    own = {path.stem for path in space_folder().glob("*.py")}
    assert imported - own - set(sys.stdlib_module_names) == named - {"torchaudio"}


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_package_starts_the_page_offline_on_a_checkpoint(
    models: list[Path], clip: Path, tmp_path: Path, repository: Path, ending: signal.Signals
) -> None:
    from gradio_client import Client

    script = "import sys; from timnet_hf.space import launch_space; launch_space(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": str(repository), "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", script, str(models[0])]
    with serving(command, environment, tmp_path) as (url, process):
        client = Client(url, verbose=False, download_files=False)
        assert scores(call(client, "predict", clip, "first"))
        assert "offline" in refusal(client, "checkpoint", "who/good")
        process.send_signal(ending)
        process.wait(30)
        deadline = time.monotonic() + 30
        while _listens(url) and time.monotonic() < deadline:
            time.sleep(0.2)
    assert not _listens(url)


def _listens(url: str) -> bool:
    import socket

    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, int(port))) == 0


def test_a_hub_id_is_served_online_and_a_folder_offline(models: list[Path]) -> None:
    assert space_environment(models[0])["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in space_environment("org/timnet-emodb")
    assert space_environment(models[0], 1234)["GRADIO_SERVER_PORT"] == "1234"


def test_without_gradio_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(SpaceError, match="timnet-hf\\[demo\\]"):
        launch_space()


def test_a_page_that_is_missing_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("timnet_hf.space._PLACES", (tmp_path,))

    with pytest.raises(SpaceError, match="Reinstall"):
        space_folder()
