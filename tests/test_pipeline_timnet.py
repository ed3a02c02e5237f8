# SPDX-License-Identifier: Apache-2.0
"""The pipeline `speech-emotion-timeline`: every kind of input, with the package and without it."""

from __future__ import annotations

import io
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline

import timnet_hf
from timnet_hf import TimNetConfig, TimNetFeatureExtractor, TimNetForAudioClassification
from timnet_hf.pipeline_timnet import TASK, TimNetTimelinePipeline

LABELS = ["angry", "happy", "neutral", "sad"]
Event = dict[str, Any]


@pytest.fixture(scope="module")
def model() -> TimNetForAudioClassification:
    """A random network that calls voices neutral and noise happy, most of the time."""
    torch.manual_seed(3)
    config = TimNetConfig(
        hidden_size=8, pooling="statistics", id2label=dict(enumerate(LABELS)), num_labels=4
    )
    model = TimNetForAudioClassification(config)
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def extractor() -> TimNetFeatureExtractor:
    return TimNetFeatureExtractor(mean=[-5.0] * 39, std=[30.0] * 39)


@pytest.fixture(scope="module")
def timeline(
    model: TimNetForAudioClassification, extractor: TimNetFeatureExtractor
) -> TimNetTimelinePipeline:
    return pipeline(TASK, model=model, feature_extractor=extractor)


@pytest.fixture(scope="module")
def call(make_speech: Callable[..., np.ndarray]) -> np.ndarray:
    """12.5 s: three stretches of voice and noise with pauses before, between and behind them."""
    pause = np.zeros(16_000, dtype=np.float32)
    noise = (0.1 * np.random.default_rng(0).standard_normal(32_000)).astype(np.float32)
    first = np.concatenate([make_speech(2.5), noise[:24_000]])
    second = make_speech(1, seed=1)
    third = np.concatenate([noise, make_speech(1.5, seed=2, pitch=220)])
    return np.concatenate([pause, first, pause, second, pause, third, pause])


@pytest.fixture(scope="module")
def expected(timeline: TimNetTimelinePipeline, call: np.ndarray) -> list[Event]:
    events = timeline(call)
    assert len(events) > 3
    return events


def assert_close(events: list[Event], expected: list[Event], tolerance: float = 1e-5) -> None:
    """Equal but for the last digits of the scores: other batches sum up in another order."""
    for event, other in zip(events, expected, strict=True):
        assert event["label"] == other["label"]
        assert (event["start"], event["end"]) == (other["start"], other["end"])
        assert event["scores"] == pytest.approx(other["scores"], abs=tolerance)


# --- what comes out ---------------------------------------------------------------------------


def test_the_task_makes_this_pipeline(timeline: TimNetTimelinePipeline) -> None:
    assert type(timeline) is TimNetTimelinePipeline
    assert timeline.task == TASK == "speech-emotion-timeline"
    assert not timeline.model.training


def test_events_are_plain_values_about_speech_alone(
    expected: list[Event], call: np.ndarray
) -> None:
    spoken = [(1.0, 5.0), (6.0, 7.0), (8.0, 11.5)]
    last = 0.0
    for event in expected:
        assert [type(event[name]) for name in ("start", "end", "label", "score")] == [
            float,
            float,
            str,
            float,
        ]
        assert list(event["scores"]) == LABELS
        assert sum(event["scores"].values()) == pytest.approx(1)
        assert event["score"] == event["scores"][event["label"]] == max(event["scores"].values())
        assert last <= event["start"] < event["end"]
        assert any(a - 0.02 <= event["start"] < event["end"] <= b + 0.02 for a, b in spoken)
        last = event["end"]
    covered = sum(event["end"] - event["start"] for event in expected)
    assert covered > 0.95 * sum(end - start for start, end in spoken)


def test_a_clip_that_fits_a_window_scores_as_the_model_scores_it(
    timeline: TimNetTimelinePipeline, make_speech: Callable[..., np.ndarray]
) -> None:
    clip = make_speech(2.0)
    (event,) = timeline(clip)
    heard = clip[round(event["start"] * 16_000) : round(event["end"] * 16_000)]
    inputs = timeline.feature_extractor(heard, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        scores = timeline.model(**inputs).logits.softmax(-1)[0]
    assert list(event["scores"].values()) == pytest.approx(scores.tolist(), abs=1e-6)


def test_multi_label_models_score_each_label_on_its_own(
    model: TimNetForAudioClassification, extractor: TimNetFeatureExtractor, call: np.ndarray
) -> None:
    made = TimNetTimelinePipeline(model=model, feature_extractor=extractor)
    model.config.problem_type = "multi_label_classification"
    try:
        sums = [sum(event["scores"].values()) for event in made(call)]
    finally:
        model.config.problem_type = None
    assert max(abs(total - 1) for total in sums) > 0.01


# --- what goes in -----------------------------------------------------------------------------


def wav(call: np.ndarray, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, call, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


INPUTS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "array": lambda call, path: call,
    "float64": lambda call, path: call.astype(np.float64),
    "tensor": lambda call, path: torch.from_numpy(call),
    "dict": lambda call, path: {"array": call, "sampling_rate": 16_000, "path": None},
    "raw": lambda call, path: {"raw": call, "sampling_rate": 16_000},
    "blocks": lambda call, path: {
        "blocks": (block for block in np.array_split(call, 99)),
        "sampling_rate": 16_000,
    },
    "bytes": lambda call, path: wav(call),
    "path": lambda call, path: path,
    "name": lambda call, path: str(path),
    "undecoded": lambda call, path: {"bytes": wav(call), "path": "unknown.wav"},
    "undecoded path": lambda call, path: {"bytes": None, "path": str(path)},
    "torchcodec": lambda call, path: SimpleNamespace(
        get_all_samples=lambda: SimpleNamespace(
            data=torch.from_numpy(np.stack([call, call])), sample_rate=16_000
        )
    ),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_every_kind_of_input_gives_the_same_events(
    timeline: TimNetTimelinePipeline,
    call: np.ndarray,
    expected: list[Event],
    tmp_path: Path,
    kind: str,
) -> None:
    path = tmp_path / "call.wav"
    path.write_bytes(wav(call))
    assert timeline(INPUTS[kind](call, path)) == expected


@pytest.mark.parametrize("rate", [48_000, 22_050])
def test_another_rate_gives_the_same_events_up_to_the_resampler(
    timeline: TimNetTimelinePipeline, call: np.ndarray, expected: list[Event], rate: int
) -> None:
    other = timnet_hf.resample(call, 16_000, rate)
    events = timeline({"array": other, "sampling_rate": rate})
    assert [event["label"] for event in events] == [event["label"] for event in expected]
    for event, same in zip(events, expected, strict=True):
        assert event["start"] == pytest.approx(same["start"], abs=0.05)
        assert event["end"] == pytest.approx(same["end"], abs=0.05)
        assert event["score"] == pytest.approx(same["score"], abs=0.1)
    assert timeline(wav(other, rate)) == events


def test_several_recordings_give_a_timeline_each(
    timeline: TimNetTimelinePipeline, call: np.ndarray, expected: list[Event]
) -> None:
    silent = np.zeros(16_000, dtype=np.float32)
    assert timeline([call, silent, call]) == [expected, [], expected]
    lazily = timeline(one for one in (call, silent))
    assert next(lazily) == expected
    assert list(lazily) == [[]]

    class Calls(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> np.ndarray:
            return call

    assert list(timeline(Calls())) == [expected, expected]


def test_a_column_of_a_data_set_gives_a_timeline_each(
    timeline: TimNetTimelinePipeline, call: np.ndarray, expected: list[Event], tmp_path: Path
) -> None:
    path = tmp_path / "call.wav"
    path.write_bytes(wav(call))
    rows = datasets.Dataset.from_dict({"audio": [str(path), str(path)]})
    rows = rows.cast_column("audio", datasets.Audio(decode=False))
    assert timeline(rows["audio"]) == [expected, expected]
    with pytest.raises(TypeError, match='pass the column .* such as dataset."audio"'):
        timeline(rows)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_changes_nothing_but_the_last_digits(
    timeline: TimNetTimelinePipeline, call: np.ndarray, expected: list[Event], batch_size: int
) -> None:
    assert_close(timeline(call, batch_size=batch_size), expected)


def test_windows_go_through_the_model_in_batches_and_once(
    timeline: TimNetTimelinePipeline, make_speech: Callable[..., np.ndarray]
) -> None:
    sizes: list[int] = []
    hook = timeline.model.timnet.register_forward_hook(
        lambda module, inputs, output: sizes.append(len(output.pooler_output))
    )
    sound = make_speech(12.5)
    with hook:
        timeline(sound, batch_size=7)
        assert sizes == [7, 7, 7]
        sizes.clear()
        timeline(sound, batch_size=7, window=2.0, hop=2.0)
        assert sizes == [6]  # side by side; the rest is less than half a cell


def test_parameters_are_taken_at_construction_and_at_the_call(
    timeline: TimNetTimelinePipeline, call: np.ndarray
) -> None:
    made = pipeline(
        TASK,
        model=timeline.model,
        feature_extractor=timeline.feature_extractor,
        window=1.0,
        hop=0.25,
    )
    assert_close(made(call), timeline(call, window=1.0, hop=0.25))
    assert_close(made(call, window=2.5, hop=0.5), timeline(call))
    assert (made.stream().window, made.stream(hop=0.5).hop) == (1.0, 0.5)


# --- live -------------------------------------------------------------------------------------


def test_live_gives_what_the_file_gives(
    timeline: TimNetTimelinePipeline, call: np.ndarray, expected: list[Event]
) -> None:
    live, rng = timeline.stream(), np.random.default_rng(0)
    events, position = [], 0
    while position < len(call):
        size = int(rng.integers(1, 8_000))
        for event in live.feed(call[position : position + size]):
            assert live.duration - event["end"] <= live.latency + 0.5
            events.append(event)
        position += size
    events += live.finish()
    assert events == timeline(call, batch_size=1)
    assert_close(events, expected)


def test_live_sound_may_have_the_rate_of_the_microphone(
    timeline: TimNetTimelinePipeline, call: np.ndarray
) -> None:
    live = timeline.stream(48_000)
    sound = timnet_hf.resample(call, 16_000, 48_000)
    events = [event for block in np.array_split(sound, 50) for event in live.feed(block)]
    events += live.finish()
    assert events == timeline({"array": sound, "sampling_rate": 48_000}, batch_size=1)


# --- an hour ----------------------------------------------------------------------------------


class Quick(TimNetTimelinePipeline):
    """Without features and network, which take a minute for an hour of sound."""

    def _classify(self, waveforms: list[np.ndarray]) -> np.ndarray:
        return np.tile([0.1, 0.2, 0.3, 0.4], (len(waveforms), 1))


@pytest.fixture
def quick(model: TimNetForAudioClassification, extractor: TimNetFeatureExtractor) -> Quick:
    return Quick(model=model, feature_extractor=extractor)


def test_an_hour_in_blocks_is_never_held_as_a_whole(
    quick: Quick, make_speech: Callable[..., np.ndarray]
) -> None:
    minute = np.concatenate([make_speech(58), np.zeros(32_000, dtype=np.float32)])
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def hour() -> Iterator[np.ndarray]:
        nonlocal most
        for _ in range(60):
            block = minute.copy()
            alive.append(weakref.ref(block))
            yield block
            del block
            most = max(most, sum(ref() is not None for ref in alive))

    events = quick({"blocks": hour(), "sampling_rate": 16_000})
    assert {int(event["start"] // 60) for event in events} == set(range(60))
    assert most <= 1


def test_a_file_is_read_block_by_block(quick: Quick, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    burst = 0.1 * np.random.default_rng(0).standard_normal(8_000)
    with soundfile.SoundFile(path, "w", 8_000, 1) as file:
        for _ in range(40):
            file.write(np.append(burst, np.zeros(29 * 8_000)))
    quick(np.zeros(16_000))
    tracemalloc.start()
    try:
        events = quick(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [round(event["start"]) for event in events] == list(range(0, 1200, 30))
    assert peak < 12e6 < 1200 * 16_000 * 4 / 6


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (np.zeros(0), ValueError, "The recording is empty"),
        ({"blocks": [], "sampling_rate": 16_000}, ValueError, "The recording is empty"),
        (np.array([0.0, np.nan]), ValueError, "NaN or infinite"),
        (np.zeros((16_000, 2)), ValueError, r"mono sound .* got shape \(16000, 2\)"),
        (np.zeros(16_000, dtype=np.int16), ValueError, "got int16"),
        ({"array": np.zeros(16_000)}, ValueError, 'Give the "sampling_rate" of "array"'),
        ({"array": np.zeros(9), "sampling_rate": 9}, ValueError, "9 Hz is under 1,000 Hz"),
        ({}, TypeError, "Expected a path, the bytes of a file, a waveform"),
        (7, TypeError, "got int"),
        ("absent.wav", ValueError, "absent.wav"),
        (b"no recording", ValueError, "<bytes>|bytes"),
    ],
)
def test_what_cannot_be_heard_is_an_error_that_says_so(
    timeline: TimNetTimelinePipeline, source: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        timeline(source)


def test_silence_is_an_empty_timeline(timeline: TimNetTimelinePipeline) -> None:
    assert timeline(np.zeros(80_000)) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"windows": 3}, TypeError, "does not know the argument windows"),
        ({"hop": 9.0}, ValueError, "window at least hop"),
        ({"vad": "magic"}, ValueError, "Unknown vad"),
    ],
)
def test_wrong_parameters_are_refused(
    timeline: TimNetTimelinePipeline,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        timeline(np.zeros(16_000), **options)


# --- real recordings --------------------------------------------------------------------------


def test_real_utterances_in_a_row_are_found_one_by_one(
    timeline: TimNetTimelinePipeline, emodb_dir: Path
) -> None:
    files = sorted((emodb_dir / "wav").glob("*.wav"))[::90]
    assert len(files) == 6
    parts, spoken, position = [], [], 0.0
    for file in files:
        clip = timnet_hf.load_audio(file, 16_000)
        parts += [np.zeros(24_000, dtype=np.float32), clip]
        position += 1.5 + len(clip) / 16_000
        spoken.append((position - len(clip) / 16_000, position))
    events = timeline(np.concatenate(parts))
    for start, end in spoken:
        inside = [e for e in events if start - 0.02 <= e["start"] and e["end"] <= end + 0.02]
        assert sum(event["end"] - event["start"] for event in inside) > 0.75 * (end - start)
    assert sum(e["end"] - e["start"] for e in events) <= sum(b - a for a, b in spoken)


@pytest.mark.parametrize("adapt", ["model", "extractor"])
def test_half_an_adaptation_is_refused(
    model: TimNetForAudioClassification,
    extractor: TimNetFeatureExtractor,
    call: np.ndarray,
    adapt: str,
) -> None:
    profile = model.describe_speaker("anna", [call], extractor)
    adapted = {"model": model.adapted_to(profile), "extractor": extractor.adapted_to(profile)}
    TimNetTimelinePipeline(model=adapted["model"], feature_extractor=adapted["extractor"])
    both = {"model": model, "extractor": extractor, adapt: adapted[adapt]}
    with pytest.raises(ValueError, match="one alone is adapted"):
        TimNetTimelinePipeline(model=both["model"], feature_extractor=both["extractor"])
