# SPDX-License-Identifier: Apache-2.0
"""A saved folder loads in a fresh process, offline, with the package and without it.

Each of the two ways is one process that does everything a reader of the card would do, and prints
what came out; the tests then look at its answers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from timnet_hf import TimNetFeatureExtractor, TimNetForAudioClassification, resample

from .model_folders import LABELS, run_python, write_model_folder

EVERYTHING = """
import json, sys
folder, sounds, trusting = sys.argv[1], sys.argv[2], sys.argv[3] == "trusting"
options = {"trust_remote_code": True} if trusting else {}
if not trusting:
    import timnet_hf
import numpy as np
import torch
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline
)
try:
    import timnet_hf
    importable = True
except ImportError:
    importable = False

clips = dict(np.load(f"{sounds}/clips.npz"))
clip = clips["clip0"]
config = AutoConfig.from_pretrained(folder, **options)
extractor = AutoFeatureExtractor.from_pretrained(folder, **options)
backbone = AutoModel.from_pretrained(folder, **options)
model = AutoModelForAudioClassification.from_pretrained(folder, **options)
inputs = extractor(clip, sampling_rate=16000, return_tensors="pt")
with torch.inference_mode():
    fused = backbone(**inputs).pooler_output
    logits = model(**inputs).logits

classify = pipeline("audio-classification", model=folder, **options)
scores = lambda answer: {entry["label"]: entry["score"] for entry in answer}
with open(f"{sounds}/clip.wav", "rb") as file:
    encoded = file.read()
answers = {
    "array": scores(classify(clip, top_k=None)),
    "dict": scores(classify({"array": clips["clip0_48k"], "sampling_rate": 48000}, top_k=None)),
    "raw dict": scores(classify({"raw": clips["clip0_48k"], "sampling_rate": 48000}, top_k=None)),
    "path": scores(classify(f"{sounds}/clip.wav", top_k=None)),
    "bytes": scores(classify(encoded, top_k=None)),
}
timeline = pipeline("speech-emotion-timeline", model=folder, **options)
del clips["clip0_48k"]
everyone = [clips[name] for name in sorted(clips)]
print(json.dumps({
    "importable": importable,
    "classes": {
        "AutoConfig": [type(config).__module__, type(config).__name__],
        "AutoFeatureExtractor": [type(extractor).__module__, type(extractor).__name__],
        "AutoModel": [type(backbone).__module__, type(backbone).__name__],
        "AutoModelForAudioClassification": [type(model).__module__, type(model).__name__],
        "pipeline": [type(timeline).__module__, type(timeline).__name__],
    },
    "labels": [config.id2label[index] for index in range(config.num_labels)],
    "fused": fused[0].tolist(),
    "logits": logits[0].tolist(),
    "answers": answers,
    "together": [scores(a) for a in classify(list(everyone), batch_size=8, top_k=None)],
    "alone": [scores(classify(one, top_k=None)) for one in everyone],
    "default": classify(clip),
    "timeline": timeline({"array": clip, "sampling_rate": 16000}),
}))
"""


@pytest.fixture(scope="module")
def sounds(
    tmp_path_factory: pytest.TempPathFactory, make_speech: Callable[..., np.ndarray]
) -> Path:
    """Nine clips of unequal length; the first also at 48 kHz and as a file."""
    folder = tmp_path_factory.mktemp("sounds")
    clips = {
        f"clip{index}": make_speech(1 + 0.4 * index, pitch=90 + 20 * index, seed=index)
        for index in range(9)
    }
    clip_48k = resample(clips["clip0"], 16_000, 48_000)
    soundfile.write(folder / "clip.wav", clips["clip0"], 16_000, subtype="FLOAT")
    np.savez(folder / "clips.npz", **clips, clip0_48k=clip_48k)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model") / "timnet")


@pytest.fixture(scope="module", params=["import timnet_hf", "trust_remote_code"])
def loaded(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    model_folder: Path,
    sounds: Path,
    ffmpeg: str,
) -> dict[str, Any]:
    """What a fresh process says, with the package or without it."""
    trusting = request.param == "trust_remote_code"
    answer = run_python(
        EVERYTHING,
        str(model_folder),
        str(sounds),
        "trusting" if trusting else "importing",
        cwd=tmp_path_factory.mktemp("elsewhere"),
        package=not trusting,
        HF_HUB_OFFLINE="1",
    )
    assert answer["importable"] is not trusting
    answer["home"] = "transformers_modules" if trusting else "timnet_hf"
    return answer


@pytest.fixture(scope="module")
def expected(model_folder: Path, sounds: Path) -> dict[str, Any]:
    """The same from the classes themselves, in this process."""
    import torch

    model = TimNetForAudioClassification.from_pretrained(model_folder)
    extractor = TimNetFeatureExtractor.from_pretrained(model_folder)
    clip = np.load(sounds / "clips.npz")["clip0"]
    inputs = extractor(clip, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits
        fused = model.timnet(**inputs).pooler_output
    scores = dict(zip(LABELS, torch.softmax(logits[0], -1).tolist(), strict=True))
    assert max(scores.values()) - min(scores.values()) > 0.1, "a test on equal scores cannot fail"
    return {"logits": logits[0].tolist(), "fused": fused[0].tolist(), "scores": scores}


def test_each_auto_class_finds_the_class_of_its_role(loaded: dict[str, Any]) -> None:
    names = {auto: name for auto, (_, name) in loaded["classes"].items()}
    assert names == {
        "AutoConfig": "TimNetConfig",
        "AutoFeatureExtractor": "TimNetFeatureExtractor",
        "AutoModel": "TimNetModel",
        "AutoModelForAudioClassification": "TimNetForAudioClassification",
        "pipeline": "TimNetTimelinePipeline",
    }


def test_the_code_is_the_packages_or_the_folders(loaded: dict[str, Any]) -> None:
    homes = {module.partition(".")[0] for module, _ in loaded["classes"].values()}
    assert homes == {loaded["home"]}


def test_labels_come_back_in_order(loaded: dict[str, Any]) -> None:
    assert loaded["labels"] == LABELS


def test_the_backbone_and_the_classifier_compute_what_they_did_before(
    loaded: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert loaded["fused"] == expected["fused"]
    assert loaded["logits"] == expected["logits"]


@pytest.mark.parametrize("source", ["array", "dict", "raw dict", "path", "bytes"])
def test_the_stock_pipeline_scores_every_kind_of_input_alike(
    loaded: dict[str, Any], expected: dict[str, Any], source: str
) -> None:
    # The stock pipeline decodes and resamples by its own means: the same clip, not the same bits.
    tolerance = 1e-5 if source == "array" else 5e-3
    assert loaded["answers"][source] == pytest.approx(expected["scores"], abs=tolerance)


def test_a_batch_of_unequal_clips_scores_as_each_clip_alone(loaded: dict[str, Any]) -> None:
    assert len(loaded["together"]) == 9
    for together, alone in zip(loaded["together"], loaded["alone"], strict=True):
        assert together == pytest.approx(alone, abs=1e-5)
    assert len({max(scores, key=scores.__getitem__) for scores in loaded["alone"]}) > 1 or (
        np.ptp([scores[LABELS[0]] for scores in loaded["alone"]]) > 1e-3
    )


def test_the_stock_pipeline_answers_with_the_most_probable_first(loaded: dict[str, Any]) -> None:
    scores = [entry["score"] for entry in loaded["default"]]
    assert scores == sorted(scores, reverse=True)


def test_the_timeline_loads_by_its_own_task_name(loaded: dict[str, Any]) -> None:
    events = loaded["timeline"]
    assert events and {event["label"] for event in events} <= set(LABELS)
    assert all(0 <= event["start"] < event["end"] for event in events)
