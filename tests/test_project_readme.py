# SPDX-License-Identifier: Apache-2.0
"""The project's README: its commands and its code run as they are written.

The words in capitals are files and folders of these names here; a Hub id is the shipped checkpoint,
and trainings are those of the tiny recipe.
"""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from timnet_hf import recipes, reporting, space
from timnet_hf.corpora import CORPORA
from timnet_hf.prediction import CHECKPOINTS, load_model

from .conftest import REPOSITORY, synthesise_speech
from .test_conversion import keras_layers, make_model, write
from .test_corpus_download import tiny_emodb
from .timnet_command import Timnet, in_this_process
from .tiny_training import tiny_recipe, write_recordings

TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith(("timnet ", ".venv/bin/timnet "))]

#: 535 recordings, 34 times: a step or two each.
RECIPE = tiny_recipe(num_train_epochs=1, per_device_train_batch_size=256)


def test_the_picture_shows_the_checkpoint_that_is_shipped() -> None:
    record = CHECKPOINTS / "timnet-emodb" / "training_record.json"
    with Image.open(REPOSITORY / "docs" / "space.png") as picture:
        shown = picture.info.get("model_sha256")
    assert shown == json.loads(record.read_text(encoding="utf-8"))["model_sha256"], (
        "Run scripts/picture_space.py"
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the README names."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("FILE…", "your.wav", "call.wav"):
        soundfile.write(folder / name, synthesise_speech(4.0), 16_000, format="WAV")
    write_recordings(folder / "FOLDER")
    write_recordings(folder / "CALLS", metadata=True)
    with zipfile.ZipFile(BytesIO(tiny_emodb())) as archive:
        archive.extractall(folder / "DATA" / "emodb")
    voice = [synthesise_speech(4.0)]
    network, extractor = load_model(CHECKPOINTS / "timnet-emodb")
    network.describe_speaker("anna", voice, extractor).save(folder / "anna.json")
    write(folder / "WEIGHTS.hdf5", keras_layers(make_model(num_labels=4)))
    return folder


@pytest.fixture
def timnet(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Timnet:
    monkeypatch.chdir(world)
    monkeypatch.setattr(recipes, "RECIPES", {"default": RECIPE})
    monkeypatch.setattr(reporting, "BOOTSTRAP_ROUNDS", 10)
    monkeypatch.setattr(space, "launch_space", lambda *_, **__: 0)
    monkeypatch.setitem(CORPORA, "emodb", replace(CORPORA["emodb"], checksum=None))
    return in_this_process(monkeypatch, capsys)


def test_there_are_commands_to_try() -> None:
    assert len(COMMANDS) >= 10


def test_every_command_runs_as_written(timnet: Timnet, world: Path) -> None:
    """In their order: later ones use what earlier ones made."""
    for line in COMMANDS:
        words = shlex.split(line, comments=True)[1:]
        ended = timnet(*words)
        assert ended.status == 0, f"{line}\n{ended.err}"
    assert (world / "my-model" / "model.safetensors").is_file()


def test_every_target_of_make_is_there() -> None:
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    named = set(
        re.findall(r"\bmake (\w+)\b", "\n".join(LINES) + " ".join(re.findall("`.+?`", TEXT)))
    )
    assert named and named <= set(targets)


def test_every_file_that_is_named_is_there() -> None:
    links = re.findall(r"\]\(([\w./-]+)\)", TEXT)
    assert links and all((REPOSITORY / link).exists() for link in links)
    table = TEXT.partition("## How it is built")[2].partition("Data flows")[0]
    names = re.findall(r"`([\w*]+\.py)`", table)
    assert len(names) > 10
    assert all(list((REPOSITORY / "timnet_hf").glob(name)) for name in names)


def test_the_code_runs_as_written(
    world: Path, ffmpeg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    blocks = iter(np.split(synthesise_speech(4.0, 48_000), 8))
    names: dict[str, Any] = {"blocks": blocks}
    for kind, block in BLOCKS:
        if kind == "python":
            local = str(CHECKPOINTS / "timnet-emodb")
            exec(compile(block.replace("org/timnet-emodb", local), "README.md", "exec"), names)
    assert "events" in names and "classifier" in names
