# SPDX-License-Identifier: Apache-2.0
"""The demo page as its API shows it: good recordings, bad ones, strangers' models, and limits.

Almost everything here goes through `gradio_client` to a page that runs as it would on the Hub,
where this package does not exist.
"""

from __future__ import annotations

import base64
import csv
import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from timnet_hf import load_audio
from timnet_hf.space import SpaceError, launch_space, space_environment, space_files, space_folder

from .model_folders import LABELS
from .space_server import Space, running_space, serving, write_models, write_speech

# On a busy machine it takes minutes until Python has loaded torch, and the page is there.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


# --- a Hub of three files a repository --------------------------------------------------------


class _Hub(BaseHTTPRequestHandler):
    """Answers for files of repositories, as the Hub does, and notes what it was asked."""

    repositories: dict[str, Path] = {}
    asked: list[tuple[str, str | None]] = []

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer(with_body=False)

    def do_GET(self) -> None:  # noqa: N802
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        file = match and self.repositories.get(match[1], Path("/nowhere")) / match[2]
        if not file or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = file.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{file.name}-{len(body)}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def _hub(repositories: dict[str, Path]) -> Iterator[str]:
    handler = type("_ThisHub", (_Hub,), {"repositories": repositories, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# --- the page ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def strangers(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Repositories of other people: a good one, one that attacks, one that is something else."""
    import json
    import shutil

    folder = tmp_path_factory.mktemp("hub")
    good, hostile, huge = (folder / name for name in ("good", "hostile", "huge"))
    for target in (good, hostile, huge):
        shutil.copytree(models[1], target)
    trap = f"open({str(folder / 'trapped')!r}, 'w')\n"
    for file in hostile.glob("*.py"):
        file.write_text(trap)
    config = json.loads((hostile / "config.json").read_text())
    config["id2label"]["0"] = "<img src=x onerror=alert(1)>$\\frac"
    config["attn_implementation"] = config["_attn_implementation"] = "somebody/kernel"
    (hostile / "config.json").write_text(json.dumps(config))
    config = json.loads((huge / "config.json").read_text())
    config["hidden_size"] = 8192
    (huge / "config.json").write_text(json.dumps(config))
    other = folder / "other"
    other.mkdir()
    for name in ("preprocessor_config.json", "model.safetensors"):
        shutil.copyfile(good / name, other / name)
    (other / "config.json").write_text('{"model_type": "<b>wav2vec2</b>"}')
    return {"who/good": good, "who/hostile": hostile, "who/huge": huge, "who/other": other}


@pytest.fixture(scope="module")
def space(
    models: list[Path], strangers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Space]:
    folder = tmp_path_factory.mktemp("space")
    with (
        _hub(strangers) as endpoint,
        running_space(
            folder,
            models,
            HF_ENDPOINT=endpoint,
            HF_HUB_OFFLINE="0",
            HF_TOKEN="hf_of_the_owner",
        ) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def client(space: Space) -> Any:
    from gradio_client import Client

    return Client(space.url, verbose=False, download_files=False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech(tmp_path_factory.mktemp("clip") / "clip.wav")


def call(client: Any, api_name: str, *arguments: Any) -> Any:
    """Call an endpoint; a path stands for an upload."""
    from gradio_client import handle_file

    ready = [
        handle_file(value)
        if isinstance(value, Path)
        else [handle_file(path) for path in value]
        if isinstance(value, list)
        else value
        for value in arguments
    ]
    return client.predict(*ready, api_name=f"/{api_name}")


def refusal(client: Any, api_name: str, *arguments: Any) -> str:
    """What the page says when it refuses."""
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError) as caught:
        call(client, api_name, *arguments)
    return str(caught.value)


def scores(answer: Any) -> dict[str, float]:
    return {entry["label"]: entry["confidence"] for entry in answer[0]["confidences"]}


def picture_size(plot: dict[str, Any]) -> tuple[int, int]:
    from PIL import Image

    data = base64.b64decode(plot["plot"].partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        return image.size


def expected(path: Path, model: Path) -> dict[str, float]:
    """What `timnet predict` says of the same file."""
    from timnet_hf.prediction import load_model, predict_files

    (prediction,) = predict_files([path], *load_model(model))
    assert prediction.error is None
    return prediction.scores


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


def test_silence_is_called_silence(client: Any, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(32_000), 16_000)

    assert "nothing to hear" in call(client, "predict", tmp_path / "silence.wav", "first")[1]
    assert call(client, "timeline", tmp_path / "silence.wav", "first")[1]["data"] in ([], [[]])
    assert picture_size(call(client, "explain", tmp_path / "silence.wav", "first"))


def test_one_sample_is_enough(client: Any, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "one.wav", np.array([0.3]), 16_000)

    assert set(scores(call(client, "predict", tmp_path / "one.wav", "first"))) == set(LABELS)
    assert picture_size(call(client, "timeline", tmp_path / "one.wav", "first")[0])
    assert picture_size(call(client, "explain", tmp_path / "one.wav", "first"))


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

    formula = tmp_path / '=HYPERLINK("x").wav'
    formula.write_bytes(clip.read_bytes())
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no")

    downloading = Client(space.url, verbose=False, download_files=str(tmp_path / "got"))
    table, path = call(downloading, "batch", [clip, formula, broken], "first")

    assert table["headers"] == ["file", "emotion", "probability", "seconds", *LABELS, "note"]
    good, _, bad = table["data"]
    assert good[0] == "clip.wav" and good[1] in LABELS and good[3] == 3.0
    assert bad[1] == "" and "cannot be decoded" in bad[-1]
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == table["headers"] and len(rows) == 4
    assert all(not cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)


# --- the microphone ---------------------------------------------------------------------------


def test_the_live_endpoint_follows_a_voice_and_deletes_what_it_heard(
    space: Space, clip: Path, tmp_path: Path
) -> None:
    from gradio_client import Client

    own = Client(space.url, verbose=False, download_files=False)
    speech = np.tile(load_audio(clip, 48_000), 3)
    before = {path for path in space.uploads.rglob("*.wav") if "chunk" in path.name}
    for index, first in enumerate(range(0, len(speech), 48_000)):
        chunk = tmp_path / f"chunk{index}.wav"
        soundfile.write(chunk, speech[first : first + 48_000], 48_000)
        now, strip, status = call(own, "live", chunk, "first")
    assert status.startswith("Heard 9 s.")
    assert now["label"] in LABELS and now["label"] in strip
    assert {path for path in space.uploads.rglob("*.wav") if "chunk" in path.name} == before

    _, strip, _ = call(own, "live_end")
    assert strip.count("<span") >= 1


# --- checkpoints ------------------------------------------------------------------------------


def test_the_checkpoints_of_the_owner_are_described(client: Any) -> None:
    assert call(client, "checkpoint", "second").startswith("**second** · 5,708 parameters · angry")


def test_any_hub_id_can_be_entered_and_its_numbers_are_used(
    client: Any, clip: Path, strangers: dict[str, Path]
) -> None:
    answer = call(client, "predict", clip, "who/good")

    assert scores(answer) == pytest.approx(expected(clip, strangers["who/good"]), abs=1e-5)
    assert "who/good hears" in answer[1]


def test_code_and_markup_of_a_stranger_are_never_run(
    client: Any, clip: Path, strangers: dict[str, Path]
) -> None:
    described = call(client, "checkpoint", "who/hostile")
    assert "<img" not in described.replace("\\<img", "")
    _, table = call(client, "timeline", clip, "who/hostile")
    assert table["headers"]
    assert picture_size(call(client, "explain", clip, "who/hostile"))
    assert not (strangers["who/hostile"].parent / "trapped").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("who/huge", "more than this page loads"),
        ("who/other", "is not a TIM-Net"),
        ("who/nobody", "cannot be fetched"),
        ("spaces/who/good", "org/name"),
        ("../../etc", "org/name"),
        ("/etc/passwd", "org/name"),
        ("https://huggingface.co/who/good", "org/name"),
        ("who/..", "org/name"),
        ("examples", "org/name"),
    ],
)
def test_what_is_no_timnet_on_the_hub_gets_a_sentence(client: Any, name: str, said: str) -> None:
    message = refusal(client, "checkpoint", name)

    assert said in message
    assert "<b>" not in message


def test_the_owners_token_is_not_lent_to_visitors(
    models: list[Path], strangers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = _module("checkpoints")
    from huggingface_hub import constants

    with _hub(strangers) as endpoint:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_owner")
        checkpoints.Checkpoints([str(models[0])])
    assert checkpoints


# --- what a visitor must not reach ------------------------------------------------------------


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:1/x.wav", "file:///etc/passwd"])
def test_only_what_was_uploaded_is_read(client: Any, path: str) -> None:
    from gradio_client.exceptions import AppError

    payload = {"path": path, "meta": {"_type": "gradio.FileData"}}
    with pytest.raises((AppError, ValueError)) as caught:
        client.predict(payload, "first", api_name="/predict")
    assert "root:" not in str(caught.value)


def test_an_address_is_refused_and_never_asked(client: Any) -> None:
    with _hub({}) as endpoint:
        payload = {
            "path": f"{endpoint}/a/b/resolve/main/x.wav",
            "meta": {"_type": "gradio.FileData"},
        }
        with pytest.raises(Exception, match="fetches no address|could not|upload"):
            client.predict(payload, "first", api_name="/predict")


def test_uploads_lie_in_a_folder_that_goes_with_the_page(
    models: list[Path], clip: Path, tmp_path: Path
) -> None:
    from gradio_client import Client

    with running_space(tmp_path, models[:1]) as running:
        call(Client(running.url, verbose=False), "predict", clip, "first")
        assert list(running.uploads.rglob("clip.wav"))
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30)
    assert not list(running.uploads.rglob("*.wav"))


# --- starting it ------------------------------------------------------------------------------


def _module(name: str) -> Any:
    """A module of the page, imported here."""
    folder = str(space_folder())
    sys.path.insert(0, folder)
    try:
        return __import__(name)
    finally:
        sys.path.remove(folder)


def test_the_front_matter_is_complete_and_true() -> None:
    import gradio

    text = (space_folder() / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])

    for key in ("title", "emoji", "colorFrom", "colorTo", "models", "tags", "pinned"):
        assert key in front
    assert (front["sdk"], front["app_file"], front["license"]) == ("gradio", "app.py", "apache-2.0")
    assert front["sdk_version"] == gradio.__version__
    assert len(front["short_description"]) <= 60
    assert front["models"] == [_module("checkpoints").DEFAULT_MODEL]


def test_the_published_files_hold_the_page_and_clips_to_try() -> None:
    files = space_files()

    assert {"README.md", "app.py", "requirements.txt"} <= set(files)
    assert sum(name.endswith(".flac") for name in files) >= 4
    assert all(path.is_file() for path in files.values())


def test_the_page_needs_what_its_requirements_name_and_no_more() -> None:
    """Each third-party import has its line, and each line its import (torchaudio: the model's)."""
    lines = (space_folder() / "requirements.txt").read_text().splitlines()
    named = {re.split("[<>=]", line)[0] for line in lines if line}
    code = "\n".join(path.read_text(encoding="utf-8") for path in space_folder().glob("*.py"))
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", code, flags=re.MULTILINE))

    own = {path.stem for path in space_folder().glob("*.py")}
    assert imported - own - set(sys.stdlib_module_names) == named - {"torchaudio"}


def test_the_package_starts_the_page_offline_on_a_checkpoint(
    models: list[Path], clip: Path, tmp_path: Path, repository: Path
) -> None:
    from gradio_client import Client

    script = "import sys; from timnet_hf.space import launch_space; launch_space(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": str(repository), "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", script, str(models[0])]
    with serving(command, environment, tmp_path) as (url, process):
        client = Client(url, verbose=False, download_files=False)
        assert scores(call(client, "predict", clip, "first"))
        assert "offline" in refusal(client, "checkpoint", "who/good")
        process.send_signal(signal.SIGINT)
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
