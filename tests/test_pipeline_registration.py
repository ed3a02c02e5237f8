# SPDX-License-Identifier: Apache-2.0
"""The task `speech-emotion-timeline` is there with the package, and with a folder's code alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from timnet_hf import TimNetFeatureExtractor, TimNetForAudioClassification
from timnet_hf.pipeline_timnet import TimNetTimelinePipeline

from .model_folders import run_python, write_model_folder

# A process that loads torch and transformers takes long on a busy machine.
pytestmark = pytest.mark.timeout(600)

REGISTERED = """
import json, sys
for name in sys.argv[1:]:
    __import__(name)
light = "transformers.pipelines" not in sys.modules
from transformers.pipelines import PIPELINE_REGISTRY
task, entry, _ = PIPELINE_REGISTRY.check_task("speech-emotion-timeline")
print(json.dumps({"light": light, "impl": entry["impl"].__name__, "pt": entry["pt"][0].__name__}))
"""


@pytest.mark.parametrize(
    "order",
    [
        ["timnet_hf"],
        ["transformers.pipelines", "timnet_hf"],
        pytest.param(["timnet_hf.pipeline_timnet"], marks=pytest.mark.slow),
    ],
)
def test_importing_the_package_registers_the_task_in_any_order(
    order: list[str], tmp_path: Path
) -> None:
    answer = run_python(REGISTERED, *order, cwd=tmp_path, package=True)
    assert answer["impl"] == "TimNetTimelinePipeline"
    assert answer["pt"] == "AutoModelForAudioClassification"
    assert answer["light"] == (order == ["timnet_hf"])


FROM_FOLDER = """
import json, sys
import numpy as np
from transformers import pipeline
import transformers.utils.logging
transformers.utils.logging.disable_progress_bar()
folder, sound, wav = sys.argv[1:]
timeline = pipeline("speech-emotion-timeline", model=folder, trust_remote_code=True)
stream = timeline.stream()
print(json.dumps({
    "module": type(timeline).__module__,
    "array": timeline(np.load(sound)),
    "path": timeline(wav),
    "live": stream.feed(np.load(sound)) + stream.finish(),
}))
"""


def test_without_the_package_the_code_in_the_folder_does_the_same(
    tmp_path: Path, make_speech: Callable[..., np.ndarray]
) -> None:
    folder = write_model_folder(tmp_path / "model")
    pause = np.zeros(16_000, dtype=np.float32)
    call = np.concatenate([pause, make_speech(4), pause, make_speech(1, seed=1, pitch=220)])
    np.save(tmp_path / "call.npy", call)
    soundfile.write(tmp_path / "call.wav", call, 16_000, subtype="FLOAT")
    answer = run_python(
        FROM_FOLDER,
        *(str(path) for path in (folder, tmp_path / "call.npy", tmp_path / "call.wav")),
        cwd=tmp_path,
        package=False,
    )
    assert answer["module"].startswith("transformers_modules.")
    with_package = TimNetTimelinePipeline(
        model=TimNetForAudioClassification.from_pretrained(folder),
        feature_extractor=TimNetFeatureExtractor.from_pretrained(folder),
    )
    expected = with_package(call)
    assert len(expected) >= 2
    for kind in ("array", "path", "live"):
        for event, other in zip(answer[kind], expected, strict=True):
            assert event["scores"] == pytest.approx(other["scores"], abs=1e-5)
            for name in ("start", "end", "label"):
                assert event[name] == other[name]
