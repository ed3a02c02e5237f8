# SPDX-License-Identifier: Apache-2.0
"""What visitors of the demo page may name, and what they must not reach.

The page takes its own checkpoint from a Hub here, by repository id and with the code in it, as it
does when it is published. On the same Hub lie repositories of strangers.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
    for name in ("good", "hostile", "huge", "other", "pickled"):
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


def answer_to(space: Space, file: dict[str, Any]) -> str:
    """Ask for a prediction without a client that would upload the file itself."""
    start = f"{space.url}/gradio_api/call/predict"
    file = {**file, "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [file, OWN]}).encode()
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

        call(client, "predict", clip, "first")
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(60)
        assert not list(running.uploads.glob("timnet-space-*"))
