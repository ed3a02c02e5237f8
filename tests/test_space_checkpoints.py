# SPDX-License-Identifier: Apache-2.0
"""The demo page's checkpoints: any TIM-Net gets the answer that the package gives.

The page knows nothing of the package, so what it shares with it is held together here.
"""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from timnet_hf.audio import load_audio

from .conftest import synthesise_speech
from .model_folders import write_model_folder
from .space_server import expected, space_module


def loaded(folder: Path) -> Any:
    return space_module("checkpoints").Checkpoints([str(folder)]).get()


def changed(folder: Path, file: str, **values: Any) -> Path:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model") / "plain")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.fixture(scope="module")
def long_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 s in which every few seconds sound otherwise."""
    parts = [synthesise_speech(5.0) * (1 + index) / 14 for index in range(14)]
    path = tmp_path_factory.mktemp("long") / "long.wav"
    soundfile.write(path, np.concatenate(parts), 16_000)
    return path


@pytest.mark.parametrize("num_samples", [None, 48_000])
def test_a_long_recording_is_cut_as_the_package_cuts_it(
    copy: Path, long_recording: Path, num_samples: int | None
) -> None:
    changed(copy, "preprocessor_config.json", num_samples=num_samples)

    found, silent = loaded(copy).score(load_audio(long_recording, 16_000))

    assert found == pytest.approx(expected(long_recording, copy), abs=1e-5) and not silent


def test_labels_that_do_not_exclude_one_another_each_get_a_probability(copy: Path) -> None:
    changed(copy, "config.json", problem_type="multi_label_classification")
    checkpoint = loaded(copy)
    sound = synthesise_speech(3.0)

    found, _ = checkpoint.score(sound)

    logits = checkpoint.timeline.model(checkpoint.inputs(sound)["input_values"]).logits[0]
    probabilities = torch.sigmoid(logits).tolist()
    assert found == pytest.approx(dict(zip(checkpoint.labels, probabilities, strict=True)))


@pytest.mark.parametrize("visited", [False, True])
def test_that_kind_of_labels_is_known_of_a_visitors_repository_too(
    copy: Path, visited: bool
) -> None:
    module = space_module("checkpoints")
    kind = "multi_label_classification" if visited else "regression"
    changed(copy, "config.json", problem_type=kind)
    config_class = type(loaded(copy).timeline.model.config)

    config = module._config(copy / "config.json", config_class)

    assert config.problem_type == (kind if visited else None)


def test_weights_of_a_short_type_are_taken_as_float32(copy: Path, model: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    short = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in weights.items()
    }
    save_file(short, copy / "model.safetensors", metadata={"format": "pt"})
    changed(copy, "config.json", dtype="bfloat16")
    sound = synthesise_speech(3.0)

    found, _ = loaded(copy).score(sound)

    assert found == pytest.approx(loaded(model).score(sound)[0], abs=0.1)


def test_damaged_weights_give_a_sentence_and_no_answer(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["classifier.weight"][0, 0] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match=r"the answer of copy is not a number"):
        loaded(copy).score(synthesise_speech(3.0))


def test_a_live_piece_is_decoded_in_blocks_however_high_its_rate(tmp_path: Path) -> None:
    """Two minutes of silence at 655 kHz are 315 MB, and as a FLAC some kB."""
    soundfile.write(tmp_path / "fast.flac", np.zeros(60 * 655_350, np.int16), 655_350)
    blocks = space_module("recording").decode_recording(str(tmp_path / "fast.flac"), 2)
    tracemalloc.start()
    try:
        count = sum(len(block) for _, block in blocks)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 60 * 655_350 and peak < 10e6
