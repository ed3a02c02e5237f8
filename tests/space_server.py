# SPDX-License-Identifier: Apache-2.0
"""The demo page as it is published: a folder of files, run where `timnet_hf` cannot be imported."""

from __future__ import annotations

import base64
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import soundfile

from .conftest import synthesise_speech
from .model_folders import ONLY_THIS_MACHINE, WITHOUT_PACKAGE, write_model_folder

_RUN = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
runpy.run_path(sys.argv[1] + "/app.py", run_name="__main__")
"""


@dataclass(frozen=True)
class Space:
    """A running page.

    Attributes:
        url: Where it answers.
        uploads: The folder below which it keeps what visitors upload.
        log: What it has printed.
        process: Its process.
    """

    url: str
    uploads: Path
    log: Path
    process: subprocess.Popen[bytes]


def write_models(folder: Path) -> list[Path]:
    """Two small random checkpoints that answer differently."""
    return [
        write_model_folder(folder / name, seed) for seed, name in enumerate(("first", "second"))
    ]


def write_speech(path: Path, duration: float = 3.0, sampling_rate: int = 16_000) -> Path:
    """A recording of something that is built like speech."""
    sound = synthesise_speech(duration, sampling_rate)
    soundfile.write(path, sound, sampling_rate)
    return path


def copy_space(folder: Path) -> Path:
    """The files that are published, and nothing else."""
    from timnet_hf.space import space_files

    for name, source in space_files().items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return folder


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running_space(
    folder: Path, models: Sequence[str | Path], **environment: str
) -> Iterator[Space]:
    """Serve a copy of the page, without `timnet_hf`, until the block is left.

    Args:
        folder: An empty folder for everything that it writes.
        models: Checkpoints on offer.
        **environment: Further environment variables.
    """
    app = copy_space(folder / "space")
    values = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    values |= {
        "HF_HOME": str(folder / "hf"),
        "TMPDIR": str(folder / "tmp"),
        "TIMNET_MODEL": os.pathsep.join(map(str, models)),
        **environment,
    }
    (folder / "tmp").mkdir()
    guard = ONLY_THIS_MACHINE + WITHOUT_PACKAGE
    command = [sys.executable, "-c", guard + _RUN, str(app)]
    with serving(command, values, folder) as (url, process):
        yield Space(url, folder / "tmp", folder / "log.txt", process)


def _hear_ctrl_c() -> None:
    """A shell starts its background jobs deaf to Ctrl-C, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def serving(
    command: list[str], environment: dict[str, str], folder: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a command that serves a page, from when it answers; its output goes to `log.txt`."""
    port = free_port()
    log = folder / "log.txt"
    environment = {**environment, "GRADIO_SERVER_PORT": str(port)}
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_hear_ctrl_c,
        )
    try:
        deadline = time.monotonic() + 900
        while not _answers(url):
            text = log.read_text(errors="replace")
            assert process.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.2)
        yield url, process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# --- talking to it ----------------------------------------------------------------------------


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


def space_module(name: str) -> Any:
    """A module of the page, imported here."""
    from timnet_hf.space import space_folder

    folder = str(space_folder())
    sys.path.insert(0, folder)
    try:
        return __import__(name)
    finally:
        sys.path.remove(folder)
