# SPDX-License-Identifier: Apache-2.0
"""Speech told from every other sound by silero-vad, which is an extra.

What we ask of the library is tested twice: with the library itself, where it is installed, and
with a stand-in that takes nothing but what the library takes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from timnet_hf.sound_timnet import SileroDetector
from timnet_hf.timeline_timnet import TimelineStream

#: Reading its network, the library uses a function that torch is about to retire.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning"
)


class StandIn:
    """A network with the interface of silero-vad's: to it, what is loud is speech.

    It is called with 512 samples at 16 kHz, returns a probability of shape (1, 1), and remembers.
    """

    made: list[StandIn]

    def __init__(self) -> None:
        self.heard: list[np.ndarray] = []
        self.made.append(self)

    def __call__(self, samples: torch.Tensor, sampling_rate: int) -> torch.Tensor:
        if sampling_rate != 16_000 or samples.shape[-1] != 512 or samples.dim() > 2:
            raise ValueError(f"Provided number of samples is {samples.shape[-1]}")
        assert samples.dtype == torch.float32
        assert not torch.is_grad_enabled(), "the graph of a long recording would fill the memory"
        self.heard.append(samples.numpy().copy())
        return torch.tensor([[0.5 if float(samples.abs().mean()) > 0.01 else 0.49]])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """The stand-in, where `silero_vad` is looked for."""
    StandIn.made = []
    module: Any = ModuleType("silero_vad")
    module.load_silero_vad = StandIn
    monkeypatch.setitem(sys.modules, "silero_vad", module)
    return StandIn


@pytest.fixture
def library() -> Any:
    """The library itself."""
    return pytest.importorskip("silero_vad", reason="silero-vad, the extra vad, is not installed")


def frames(sound: np.ndarray, length: int) -> np.ndarray:
    return sound[: len(sound) // length * length].reshape(-1, length)


def heard(detector: SileroDetector, sound: np.ndarray) -> np.ndarray:
    return np.array(detector.feed(frames(sound, detector.frame_length)) + detector.finish())


def timeline(sound: np.ndarray, rate: int, block: int) -> list[tuple[float, float]]:
    def classify(waveforms: list[np.ndarray]) -> np.ndarray:
        return np.tile([0.8, 0.2], (len(waveforms), 1))

    stream = TimelineStream(classify, ["calm", "tense"], rate, vad="silero")
    events = [
        event
        for first in range(0, len(sound), block)
        for event in stream.feed(sound[first : first + block])
    ]
    return [(event["start"], event["end"]) for event in events + stream.finish()]


# --- with the stand-in --------------------------------------------------------------------------


def test_the_network_hears_every_sample_once_and_in_order(stand_in: type[StandIn]) -> None:
    sound = np.random.default_rng(0).uniform(-1, 1, 512 * 20).astype(np.float32)

    assert heard(SileroDetector(16_000), sound).all(), "one half is speech"
    (network,) = stand_in.made
    assert np.array_equal(np.concatenate(network.heard), sound)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_at_any_rate_the_network_hears_16_khz(stand_in: type[StandIn], rate: int) -> None:
    sound = np.sin(np.arange(rate) * 2 * np.pi * 300 / rate).astype(np.float32)

    decisions = heard(SileroDetector(rate), sound)

    (network,) = stand_in.made
    assert len(network.heard) == len(decisions) == rate // round(0.032 * rate)
    for piece in network.heard[2:]:  # the tone is still one of 300 Hz
        spectrum = np.abs(np.fft.rfft(piece * np.hanning(512)))
        assert spectrum.argmax() * 16_000 / 512 == pytest.approx(300, abs=20)


def test_each_stream_has_a_network_of_its_own(stand_in: type[StandIn]) -> None:
    """It remembers what it heard: two calls at a time would confuse one another."""
    first, second = SileroDetector(16_000), SileroDetector(16_000)
    heard(first, np.ones(5_120, dtype=np.float32))
    heard(second, np.zeros(5_120, dtype=np.float32))

    assert [np.max(network.heard) for network in stand_in.made] == [1, 0]


@pytest.mark.parametrize("block", [1_000, 16_000, 10**6])
def test_a_timeline_leaves_out_what_is_no_speech(stand_in: type[StandIn], block: int) -> None:
    loud = np.random.default_rng(1).uniform(-0.5, 0.5, 512 * 100).astype(np.float32)
    quiet = np.zeros(512 * 50, dtype=np.float32)

    events = timeline(np.concatenate((quiet, loud, quiet, loud)), 16_000, block)

    assert events == [(1.6, 4.8), (6.4, 9.6)]


# --- with the library ---------------------------------------------------------------------------


def test_the_library_takes_what_the_stand_in_takes(library: Any) -> None:
    network = library.load_silero_vad()
    with torch.no_grad():
        probability = network(torch.zeros(512), 16_000)
    assert probability.numel() == 1 and 0 <= float(probability) <= 1
    for size in (480, 600):
        with pytest.raises(Exception, match="chunk is too short|number of samples"):
            network(torch.zeros(size), 16_000)


@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_silero_hears_speech_and_no_tone(
    library: Any, make_speech: Callable[..., np.ndarray], rate: int
) -> None:
    speech, tone = make_speech(2.0, rate), np.sin(np.arange(2 * rate) / 20).astype(np.float32)
    assert heard(SileroDetector(rate), speech).mean() > 0.8
    assert heard(SileroDetector(rate), 0.5 * tone).mean() < 0.2


def test_a_timeline_leaves_out_a_tone(library: Any, make_speech: Callable[..., np.ndarray]) -> None:
    tone = 0.5 * np.sin(np.arange(48_000) / 20).astype(np.float32)

    events = timeline(np.concatenate((tone, make_speech(3.0), tone)), 16_000, 16_000)

    ((start, end),) = events
    assert start == pytest.approx(3, abs=0.4)
    assert 5.5 < end < 7, "the network takes its time to believe that speech has ended"
