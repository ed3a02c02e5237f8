# SPDX-License-Identifier: Apache-2.0
"""What visitors of the demo page may name, and what they must not reach.

The page takes its own checkpoint from a Hub here, by repository id and with the code in it, as it
does when it is published. On the same Hub lie repositories of strangers.
"""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile

from .fake_hub import FakeHub, Repository, serve
from .space_server import (
    Space,
    call,
    expected,
    picture_size,
    refusal,
    running_space,
    scores,
    space_module,
    write_models,
    write_speech,
)

# On a busy machine it takes minutes until Python has loaded torch, and the page is there.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

OWN = "org/timnet-own"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech(tmp_path_factory.mktemp("clip") / "clip.wav")


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that exists when a stranger's code was run."""
    return tmp_path_factory.mktemp("trap") / "sprung"


@pytest.fixture(scope="module")
def hub(
    models: list[Path], trap: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeHub]:
    """The owner's repository, and strangers': a good one, hostile ones, one of something else."""
    folder = tmp_path_factory.mktemp("hub")
    for name in ("good", "hostile", "huge", "fine", "other", "pickled"):
        shutil.copytree(models[1], folder / name)

    def configure(name: str, **values: Any) -> None:
        path = folder / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    for file in (folder / "hostile").glob("*.py"):
        file.write_text(f"open({str(trap)!r}, 'w')\n")
    labels = {"0": "<img src=x onerror=alert(1)>$\\frac", "1": "_", "2": "=1+1", "3": "sad"}
    kernel = {"attn_implementation": "who/kernel", "_attn_implementation": "who/kernel"}
    configure("hostile", id2label=labels, **kernel)
    configure("huge", hidden_size=8192)
    # Each setting is allowed; a minute would be 360,000 frames.
    fine = folder / "fine" / "preprocessor_config.json"
    often = {"sampling_rate": 96_000, "hop_length": 16}
    fine.write_text(json.dumps({**json.loads(fine.read_text()), **often}))
    configure("other", model_type="<b>wav2vec2</b>")
    (folder / "pickled" / "model.safetensors").rename(folder / "pickled" / "pytorch_model.bin")

    with serve() as running:
        repositories = {f"who/{path.name}": path for path in folder.iterdir()} | {OWN: models[0]}
        for repo_id, path in repositories.items():
            repository = Repository("model")
            files = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
            repository.commit("main", files, "all")
            running.repositories["model", repo_id] = repository
        yield running


@pytest.fixture(scope="module")
def space(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    with running_space(tmp_path_factory.mktemp("space"), [OWN], **online) as running:
        yield running


@pytest.fixture(scope="module")
def client(space: Space) -> Any:
    from gradio_client import Client

    return Client(space.url, verbose=False, download_files=False)


def test_the_owners_checkpoint_comes_from_the_hub_with_its_code(
    client: Any, clip: Path, models: list[Path]
) -> None:
    answer = call(client, "predict", clip, OWN)

    assert scores(answer) == pytest.approx(expected(clip, models[0]), abs=1e-5)
    assert call(client, "timeline", clip, OWN)[1]["data"]


def test_any_hub_id_can_be_entered_and_its_numbers_are_used(
    client: Any, clip: Path, models: list[Path]
) -> None:
    answer = call(client, "predict", clip, "who/good")

    assert scores(answer) == pytest.approx(expected(clip, models[1]), abs=1e-5)
    assert answer[1].startswith("who/good hears")
    assert call(client, "timeline", clip, "who/good")[1]["data"]


def test_code_and_markup_of_a_stranger_are_never_run(client: Any, clip: Path, trap: Path) -> None:
    described = call(client, "checkpoint", "who/hostile")
    assert "<img" not in described.replace("\\<img", "")
    assert call(client, "timeline", clip, "who/hostile")[1]["headers"]
    assert picture_size(call(client, "explain", clip, "who/hostile"))
    assert call(client, "batch", [clip], "who/hostile")[0]["data"]
    assert not trap.exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("who/huge", "more than this page loads"),
        ("who/fine", "more for a second of sound than this page can hold"),
        ("who/other", "is not a TIM-Net"),
        ("who/pickled", "cannot be fetched"),
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
    models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    tokens = []

    def note(*_: Any, token: object = None, **__: Any) -> None:
        tokens.append(token)
        raise OSError("far enough")

    checkpoints = space_module("checkpoints")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", note)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", note)
    with pytest.raises(checkpoints.CheckpointError, match="far enough"):
        checkpoints.Checkpoints([str(models[0])]).get("who/good")
    assert tokens == [False]


# --- what a visitor must not reach ------------------------------------------------------------


def answer_to(space: Space, file: dict[str, Any], checkpoint: str = OWN) -> str:
    """Ask for a prediction without a client that would upload the file itself."""
    start = f"{space.url}/gradio_api/call/predict"
    file = {**file, "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [file, checkpoint, None]}).encode()
    request = urllib.request.Request(start, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{start}/{event}", timeout=60) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_of_the_host_is_not_read(
    space: Space, clip: Path, scheme: str, streamed: bool
) -> None:
    answer = answer_to(space, {"path": f"{scheme}{clip}", "is_stream": streamed})

    assert "event: error" in answer and "confidence" not in answer


@pytest.mark.parametrize("streamed", [False, True])
def test_an_address_is_refused_and_never_asked(space: Space, hub: FakeHub, streamed: bool) -> None:
    url = f"{hub.url}/who/good/resolve/main/sound.wav"

    answer = answer_to(space, {"path": url, "url": url, "is_stream": streamed})

    assert "event: error" in answer and "confidence" not in answer
    assert not any("sound.wav" in path for _, path in hub.requests)


def _break_off_an_upload(url: str) -> None:
    """Announce a file of 10 MB, send two, and hang up."""
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", "10000000")
    connection.endheaders()
    connection.send(head + bytes(2_000_000))
    time.sleep(0.5)
    connection.close()


def _click_on_example(url: str, number: int) -> dict[str, Any]:
    """The file that a click on one of the clips to try puts into the page."""
    with urllib.request.urlopen(f"{url}/config") as answer:
        config = json.load(answer)
    (clips,) = [part["id"] for part in config["components"] if part["type"] == "dataset"]
    (event,) = [one["id"] for one in config["dependencies"] if [clips, "click"] in one["targets"]]
    asked = {"data": [number], "fn_index": event, "session_hash": f"click-{number}"}
    headers = {"Content-Type": "application/json"}
    join = f"{url}/gradio_api/queue/join"
    urllib.request.urlopen(urllib.request.Request(join, json.dumps(asked).encode(), headers))
    data = f"{url}/gradio_api/queue/data?session_hash={asked['session_hash']}"
    with urllib.request.urlopen(data, timeout=60) as answer:
        for line in answer:
            if b"process_completed" in line:
                done = json.loads(line.removeprefix(b"data:"))
                return dict(done["output"]["data"][0]["value"])
    raise AssertionError("a click on an example is not answered")


def test_uploads_are_deleted_after_a_while_and_all_of_them_with_the_page(
    models: list[Path], clip: Path, tmp_path: Path
) -> None:
    from gradio_client import Client

    def uploads() -> list[Path]:
        return list(running.uploads.rglob("*.wav"))

    with running_space(tmp_path, models[:1], TIMNET_KEPT="3") as running:
        client = Client(running.url, verbose=False, download_files=False)
        call(client, "predict", clip, "first")
        assert uploads()
        deadline = time.monotonic() + 60
        while uploads() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not uploads()

        # The page's own clips are no uploads, and stay.
        for number in range(6):
            file = _click_on_example(running.url, number)
            assert "confidence" in answer_to(running, file, "first"), file

        _break_off_an_upload(running.url)
        assert any(path.is_file() for path in running.uploads.rglob("*")), "it left something"
        while any(path.is_file() for path in running.uploads.rglob("*")):
            assert time.monotonic() < deadline + 60, "what came of a broken upload stays"
            time.sleep(0.2)

        call(client, "predict", clip, "first")
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(60)
        assert not list(running.uploads.glob("timnet-space-*"))


# --- limits -----------------------------------------------------------------------------------


def test_every_function_of_the_page_is_an_endpoint_with_a_name(client: Any) -> None:
    endpoints = client.view_api(print_info=False, return_format="dict")["named_endpoints"]

    names = {"predict", "timeline", "explain", "batch", "checkpoint", "live", "live_end"}
    assert set(endpoints) == {f"/{name}" for name in names}
    card = (space_module("app").HERE / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in card for name in names)


def test_a_recording_may_be_an_hour_long_and_no_longer(client: Any, tmp_path: Path) -> None:
    minute = np.zeros(60 * 8_000, dtype=np.int16)
    minute[::2_000] = 9_000
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 8_000, 1) as file:
        for _ in range(60):
            file.write(minute)
        file.write(minute[:8_000])

    message = refusal(client, "predict", path, OWN)

    assert message == "long.flac is longer than 60 minutes. Cut it into parts."


def test_a_batch_has_a_largest_number_of_files(client: Any, clip: Path, tmp_path: Path) -> None:
    files = [Path(shutil.copyfile(clip, tmp_path / f"{number}.wav")) for number in range(51)]

    assert refusal(client, "batch", files, OWN) == "51 files are too many: 50 at a time."


def test_a_file_has_a_largest_size(client: Any, space: Space, tmp_path: Path) -> None:
    path = tmp_path / "large.wav"
    with path.open("wb") as file:
        file.truncate(121 * 2**20)

    with pytest.raises(Exception, match="(?i)413|too large|exceed"):
        call(client, "predict", path, OWN)
    assert not [one for one in space.uploads.rglob("large*") if one.stat().st_size > 120 * 2**20]


def test_few_are_served_at_a_time_and_the_others_wait(models: list[Path]) -> None:
    """Work on whole recordings counts together, whichever button it comes from."""
    app = space_module("app")
    blocks = app.build(space_module("checkpoints").Checkpoints([str(models[0])]), [])

    heavy = [one for one in blocks.fns.values() if one.concurrency_id == "scoring"]
    assert {one.api_name for one in heavy} == {"predict", "timeline", "explain", "batch"}
    assert {one.concurrency_limit for one in heavy} == {app.AT_ONCE}
    assert blocks._queue.max_size == app.WAITING
    (listening,) = [one for one in blocks.fns.values() if one.api_name == "listen"]
    assert (listening.concurrency_limit, listening.time_limit) == (
        app.LISTENING,
        app.LISTENING_SECONDS,
    )
