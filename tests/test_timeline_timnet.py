# SPDX-License-Identifier: Apache-2.0
"""The machine behind a timeline, with a classifier that can be foretold."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timnet_hf.timeline_timnet import MIN_PAUSE, TimelineStream

RATE = 16_000
LABELS = ["low", "high"]
Event = dict[str, Any]


def tone(frequency: float, seconds: float) -> np.ndarray:
    samples = np.arange(round(RATE * seconds))
    return (0.3 * np.sin(2 * np.pi * frequency / RATE * samples)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(RATE * seconds), dtype=np.float32)


class Pitch:
    """Tells low tones from high ones by the share of samples where the sign changes."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, waveforms: list[np.ndarray]) -> np.ndarray:
        self.batches.append([len(waveform) for waveform in waveforms])
        high = np.array([np.mean(w[1:] * w[:-1] < 0) / 0.25 for w in waveforms]).clip(0, 1)
        return np.stack([1 - high, high], axis=1)


def timeline(sound: np.ndarray, **options: Any) -> list[Event]:
    stream = TimelineStream(Pitch(), LABELS, RATE, **options)
    return stream.feed(sound) + stream.finish()


def spans(events: list[Event]) -> list[tuple[float, float, str]]:
    return [(event["start"], event["end"], event["label"]) for event in events]


LOW, HIGH = 100, 2_000


# --- what the events are ----------------------------------------------------------------------


def test_silence_is_left_out_and_each_stretch_of_sound_is_an_event() -> None:
    sound = np.concatenate(
        [silence(1), tone(LOW, 4), silence(1), tone(HIGH, 6), silence(2), tone(LOW, 1), silence(1)]
    )
    assert spans(timeline(sound)) == [(1, 5, "low"), (6, 12, "high"), (14, 15, "low")]


def test_a_change_within_speech_starts_an_event_where_most_windows_turn() -> None:
    first, second = spans(timeline(np.concatenate([tone(LOW, 6), tone(HIGH, 6)])))
    assert first == (0, 6, "low")
    assert second == (6, 12, "high")


def test_an_event_carries_the_mean_of_its_scores() -> None:
    (event,) = timeline(tone(LOW, 3))
    assert list(event) == ["start", "end", "label", "score", "scores"]
    assert list(event["scores"]) == LABELS
    assert sum(event["scores"].values()) == pytest.approx(1)
    assert event["score"] == event["scores"]["low"] == max(event["scores"].values())


def test_each_cell_has_the_mean_of_the_windows_over_its_centre() -> None:
    answers = iter([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.0, 1.0]])

    def classify(waveforms: list[np.ndarray]) -> np.ndarray:
        return np.array([next(answers) for _ in waveforms])

    stream = TimelineStream(classify, LABELS, RATE, window=2, hop=1)
    # 4.6 s: windows at 0, 1 and 2 s, and a last one from 2.6 s; cells end at 1, 2, 3, 4, 4.6 s.
    # Their means for "low": .9, (.9+.8)/2, (.8+.1)/2, (.1+0)/2, 0.
    first, second = stream.feed(tone(LOW, 4.6)) + stream.finish()
    assert spans([first, second]) == [(0, 2, "low"), (2, 4.6, "high")]
    assert first["scores"]["low"] == pytest.approx((0.9 + 0.85) / 2)
    assert second["scores"]["low"] == pytest.approx((0.45 + 0.05 + 0) / 3)


@pytest.mark.parametrize("seconds", [0.1, 0.3, 1.0, 2.48])
def test_sound_shorter_than_a_window_is_one_event(seconds: float) -> None:
    ((start, end, label),) = spans(timeline(tone(LOW, seconds)))
    assert (start, end, label) == (0, pytest.approx(seconds, abs=0.02), "low")


def test_a_short_pause_belongs_to_the_speech_and_a_long_one_does_not() -> None:
    def around(pause: float) -> list[Event]:
        return timeline(np.concatenate([tone(LOW, 2), silence(pause), tone(LOW, 2)]))

    assert spans(around(MIN_PAUSE - 0.1)) == [(0, 4.4, "low")]
    assert spans(around(MIN_PAUSE + 0.1)) == [(0, 2, "low"), (2.6, 4.6, "low")]


def test_a_click_is_no_speech() -> None:
    assert timeline(np.concatenate([silence(1), tone(HIGH, 0.04), silence(1)])) == []


def test_an_answer_that_is_no_number_is_no_event() -> None:
    def damaged(waveforms: list[np.ndarray]) -> np.ndarray:
        return np.full((len(waveforms), 2), np.nan)

    stream = TimelineStream(damaged, LABELS, RATE)
    with pytest.raises(ValueError, match="not a number; its weights are damaged"):
        stream.feed(tone(LOW, 5))
        stream.finish()


@pytest.mark.parametrize("sound", [silence(5), silence(0), silence(0.001), tone(LOW, 0.01)])
def test_nothing_said_is_no_event(sound: np.ndarray) -> None:
    assert timeline(sound) == []


@st.composite
def recordings(draw: st.DrawFn) -> np.ndarray:
    parts = draw(
        st.lists(
            st.tuples(st.sampled_from([None, LOW, HIGH]), st.floats(0.01, 5)),
            min_size=1,
            max_size=8,
        )
    )
    return np.concatenate(
        [silence(time) if pitch is None else tone(pitch, time) for pitch, time in parts]
    )


OPTIONS = st.fixed_dictionaries(
    {
        "window": st.sampled_from([0.5, 1.0, 2.5]),
        "hop": st.sampled_from([0.1, 0.3, 0.5]),
        "batch_size": st.sampled_from([1, 4]),
    }
)


@given(recordings(), OPTIONS)
def test_events_come_in_order_and_cover_the_sound_and_no_long_silence(
    sound: np.ndarray, options: dict[str, Any]
) -> None:
    events = timeline(sound, **options)
    ends = [0.0, *(event["end"] for event in events)]
    for event, before in zip(events, ends, strict=False):
        assert before <= event["start"] < event["end"] <= len(sound) / RATE
    loud = np.abs(sound) > 0.01
    covered = np.zeros(len(sound), dtype=bool)
    for event in events:
        first, stop = round(event["start"] * RATE), round(event["end"] * RATE)
        covered[first:stop] = True
        still = np.diff(np.flatnonzero(np.concatenate([[True], loud[first:stop], [True]])))
        assert still.max() < (MIN_PAUSE + 0.05) * RATE
    # What is not covered is silence, a click, or the end that is no whole frame.
    assert (loud & ~covered).sum() <= 8 * 0.14 * RATE


# --- live equals offline ----------------------------------------------------------------------


@given(recordings(), OPTIONS, st.integers(0, 2**32 - 1))
def test_blocks_of_any_size_give_the_same_events(
    sound: np.ndarray, options: dict[str, Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    stream = TimelineStream(Pitch(), LABELS, RATE, **options)
    events, position = [], 0
    while position < len(sound):
        size = int(rng.choice([0, 1, 100, 3_000, 40_000]))
        events += stream.feed(sound[position : position + size])
        position += size
    assert events + stream.finish() == timeline(sound, **options)


def test_sound_at_another_rate_gives_the_same_events() -> None:
    stream = TimelineStream(Pitch(), LABELS, RATE, input_sampling_rate=48_000)
    sound = np.concatenate([tone(LOW, 4), silence(1), tone(HIGH, 3)])
    threefold = np.interp(np.arange(3 * len(sound)) / 3, np.arange(len(sound)), sound)
    events = []
    for block in np.array_split(threefold, 77):
        events += stream.feed(block)
    events += stream.finish()
    for event, expected in zip(events, timeline(sound), strict=True):
        assert event["label"] == expected["label"]
        assert event["start"] == pytest.approx(expected["start"], abs=0.021)
        assert event["end"] == pytest.approx(expected["end"], abs=0.021)
    assert stream.duration == events[-1]["end"] == 8


@pytest.mark.parametrize("batch_size", [1, 6])
@pytest.mark.parametrize("input_rate", [RATE, 2 * RATE])
def test_an_event_comes_within_the_stated_latency(batch_size: int, input_rate: int) -> None:
    stream = TimelineStream(
        Pitch(), LABELS, RATE, input_sampling_rate=input_rate, batch_size=batch_size
    )
    assert 2.5 < stream.latency < 7
    sound = np.concatenate(
        [tone(LOW, 7), tone(HIGH, 5), silence(0.3), tone(LOW, 6), silence(4), tone(HIGH, 1)]
        + [silence(4), tone(LOW, 3), silence(0.4), tone(HIGH, 9), silence(9)]
    )
    if input_rate != RATE:
        sound = np.repeat(sound, input_rate // RATE)
    events = []
    for block in np.array_split(sound, len(sound) // 320):
        for event in stream.feed(block):
            assert stream.duration - event["end"] <= stream.latency + 0.02
            events.append(event)
    assert len(events) >= 6
    assert stream.finish() == []


def test_the_growing_event_can_be_looked_at_within_the_latency() -> None:
    stream = TimelineStream(Pitch(), LABELS, RATE)
    assert stream.current is None
    for _ in range(200):
        assert stream.feed(tone(HIGH, 0.1)) == []  # one event, and it has not ended
        if stream.duration > stream.latency + 0.5:
            assert stream.current is not None
            assert stream.current["label"] == "high"
            assert stream.duration - stream.current["end"] <= stream.latency
    (event,) = stream.finish()
    assert (event["start"], event["end"]) == (0, pytest.approx(20))
    assert stream.current is None


# --- work and memory --------------------------------------------------------------------------


def test_no_window_is_scored_twice_and_batches_are_full() -> None:
    pitch = Pitch()
    stream = TimelineStream(pitch, LABELS, RATE, batch_size=8)
    stream.feed(tone(LOW, 30))
    stream.finish()
    windows = (30 - 2.5) / 0.5 + 1
    assert sum(map(len, pitch.batches)) == windows
    assert [len(batch) for batch in pitch.batches] == [8] * 7
    assert {size for batch in pitch.batches for size in batch} == {round(2.5 * RATE)}


def minutes(count: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for _ in range(6 * count):
        spoken = float(rng.uniform(4, 9))
        yield np.concatenate([tone(float(rng.choice([LOW, HIGH])), spoken), silence(10 - spoken)])


@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_long_recording_takes_the_memory_of_a_few_windows(batch_size: int) -> None:
    stream = TimelineStream(Pitch(), LABELS, RATE, batch_size=batch_size)
    stream.feed(tone(LOW, 3))
    found = 0
    tracemalloc.start()
    try:
        for block in minutes(5):
            found += len(stream.feed(block))
        found += len(stream.finish())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stream.duration == pytest.approx(303)
    assert found >= 25
    whole, window = 300 * RATE * 4, 2.5 * RATE * 4
    assert peak < 60 * window <= whole / 2


def test_what_is_held_does_not_grow_in_an_hour() -> None:
    stream = TimelineStream(Pitch(), LABELS, RATE, batch_size=16)

    def held() -> int:
        waiting = sum(len(window.samples) for window in stream._queue if window.samples is not None)
        return len(stream._buffer) + waiting + len(stream._cells) + len(stream._events)

    largest = 0
    for block in minutes(60):
        stream.feed(block)
        largest = max(largest, held())
    assert stream.duration == pytest.approx(3600)
    assert largest < (16 * stream.window + stream.latency) * RATE


def test_a_recording_in_one_block_is_not_copied() -> None:
    sound = np.concatenate(list(minutes(5)))
    stream = TimelineStream(Pitch(), LABELS, RATE, batch_size=16)
    tracemalloc.start()
    try:
        stream.feed(sound)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < sound.nbytes / 2  # looking for NaN takes a quarter


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (np.array([0.0, np.nan]), r"NaN or infinite samples, the first at 1\.000 s"),
        (np.array([np.inf]), "NaN or infinite"),
        (np.array([0.5, -2e5]), r"reaches -200000 at 1\.000 s. Scale it"),
        (np.array([0.5, 1e300]), r"reaches 1e\+300 at 1\.000 s. Scale it"),
        (torch.zeros(100, dtype=torch.int16), "got int16"),
        (np.zeros((2, 100)), r"mono sound \(samples,\), got shape \(2, 100\)"),
        (np.zeros(100, dtype=np.int16), "got int16. Divide integers by their full scale"),
    ],
)
def test_a_bad_block_is_refused_and_the_stream_goes_on(block: np.ndarray, message: str) -> None:
    sound = tone(LOW, 2)
    stream = TimelineStream(Pitch(), LABELS, RATE)
    events = stream.feed(sound[: RATE - 1])
    with pytest.raises(ValueError, match=message):
        stream.feed(np.append(block, 0) if block.shape == (3,) else block)
    events += stream.feed(sound[RATE - 1 :]) + stream.finish()
    assert events == timeline(sound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_are_taken_with_or_without_a_gradient(dtype: torch.dtype) -> None:
    block = torch.from_numpy(tone(LOW, 2)).to(dtype)
    expected = timeline(block.float().numpy())
    stream = TimelineStream(Pitch(), LABELS, RATE, input_sampling_rate=float(RATE))
    assert stream.feed(block.requires_grad_()) + stream.finish() == expected


def test_a_finished_stream_takes_no_more() -> None:
    stream = TimelineStream(Pitch(), LABELS, RATE)
    stream.feed(tone(LOW, 1))
    assert len(stream.finish()) == 1
    assert stream.finish() == []
    with pytest.raises(RuntimeError, match="finished"):
        stream.feed(tone(LOW, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0.4}, "hop must be at least 0.05 s and window at least hop"),
        ({"hop": 0.0}, "hop must be"),
        ({"hop": 3.0}, "window at least hop"),
        ({"window": float("nan")}, "do not fit"),
        ({"window": float("inf")}, "do not fit"),
        ({"vad": "magic"}, "Unknown vad 'magic'. Choose one of energy, silero"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"input_sampling_rate": 10}, "under 1,000 Hz"),
        ({"input_sampling_rate": 0}, "whole number of Hz, not 0"),
        ({"input_sampling_rate": 44_100.5}, "whole number of Hz, not 44100.5"),
        ({"input_sampling_rate": float("nan")}, "whole number of Hz, not nan"),
        ({"input_sampling_rate": "48000"}, "whole number of Hz, not '48000'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimelineStream(Pitch(), LABELS, RATE, **options)


def test_the_classifier_decides_the_rate(make_speech: Callable[..., np.ndarray]) -> None:
    stream = TimelineStream(Pitch(), LABELS, 22_050)
    events = stream.feed(make_speech(3.0, 22_050)) + stream.finish()
    assert 2.8 < sum(event["end"] - event["start"] for event in events) <= 3
