# SPDX-License-Identifier: Apache-2.0
"""Blocks of sound in, emotion events out: the machine behind a timeline, live or from a file.

::

    blocks ─→ resampler ─→ frames of 20 ms ─→ speech or silence? ─→ segments of speech
                                                                        │
    events ←─ neighbours with one label ←─ cells of one hop ←─ windows ─┘
                                           (mean of the windows over them)

A segment is speech without a pause of `MIN_PAUSE` or more. Windows start at its onset, one hop
apart, and never reach into silence; a last one ends where the segment ends. Each hop-long cell of
the segment gets the mean probabilities of the windows that cover its centre. Every decision hangs
on the position in the recording and on nothing else, least of all on how the sound was cut into
blocks: a live stream and a file give the same events. What is kept is one window of sound and
the windows that wait for their batch, so a recording may last for ever.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from .sound_timnet import DETECTORS, MAX_AMPLITUDE, StreamResampler, as_array

#: Seconds of silence that end a segment of speech; shorter pauses belong to it.
MIN_PAUSE = 0.5
#: Seconds of sound that a segment must hold; clicks and knocks are shorter.
MIN_SPEECH = 0.1


@dataclass
class _Window:
    """Speech on its way through the model.

    Attributes:
        onset: Sample at which its segment begins.
        samples: The sound; None where a segment ends and needs no further window.
        ready: Position of the stream, in samples, when it was cut out.
        end: Sample at which the segment ends, if this is its last window.
    """

    onset: int
    samples: np.ndarray | None
    ready: int
    end: int | None = None


@dataclass
class _Event:
    """Neighbouring cells with the same label, from sample ``start`` to sample ``end``."""

    start: int
    end: int
    label: int
    total: np.ndarray
    cells: int = 1


class TimelineStream:
    """Feed sound as it arrives, get events as they are decided.

    Args:
        classify: Scores a list of waveforms (samples,) at ``sampling_rate``: probabilities
            (waveforms, labels).
        labels: Names of the labels, in the order of the probabilities.
        sampling_rate: Rate that ``classify`` wants, in Hz.
        input_sampling_rate: Rate of the blocks, a whole number of Hz from 1,000; by default the
            same.
        window: Seconds of speech that are scored at a time.
        hop: Seconds from one window to the next, and the grain of the events; at least 0.05, at
            most ``window``.
        vad: How speech is told from silence: ``"energy"``, or ``"silero"`` where silero-vad is
            installed.
        batch_size: Windows scored in one call. More than 1 is faster on files and adds to the
            latency.

    Raises:
        ValueError: A value is out of its range.
        ImportError: silero-vad is asked for and not installed.

    Example:
        >>> import numpy as np
        >>> from timnet_hf.timeline_timnet import TimelineStream
        >>> def classify(waveforms):
        ...     return np.array([[0.9, 0.1] for _ in waveforms])
        >>> stream = TimelineStream(classify, ["calm", "tense"], 16_000)
        >>> tone = np.sin(np.arange(16_000) / 20).astype("float32")
        >>> events = stream.feed(tone) + stream.feed(0 * tone) + stream.finish()
        >>> [(event["start"], event["end"], event["label"]) for event in events]
        [(0.0, 1.0, 'calm')]
    """

    def __init__(
        self,
        classify: Callable[[list[np.ndarray]], np.ndarray],
        labels: Sequence[str],
        sampling_rate: int,
        *,
        input_sampling_rate: int | None = None,
        window: float = 2.5,
        hop: float = 0.5,
        vad: str = "energy",
        batch_size: int = 1,
    ):
        if not 0.05 <= hop <= window < math.inf:
            raise ValueError(
                f"window ({window} s) and hop ({hop} s) do not fit: hop must be at least 0.05 s "
                "and window at least hop."
            )
        if vad not in DETECTORS:
            raise ValueError(f"Unknown vad {vad!r}. Choose one of {', '.join(DETECTORS)}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
        rate: Any = sampling_rate if input_sampling_rate is None else input_sampling_rate
        hertz = float(rate) if isinstance(rate, Real) else math.nan
        if not (hertz.is_integer() and hertz > 0):
            raise ValueError(f"A sampling rate is a whole number of Hz, not {rate!r}.")
        self.labels = list(labels)
        self.sampling_rate = sampling_rate
        self.input_sampling_rate = int(hertz)
        self.window, self.hop, self.batch_size = window, hop, batch_size
        self._window, self._hop = round(window * sampling_rate), round(hop * sampling_rate)
        self._classify = classify
        self._resampler = None
        if self.input_sampling_rate != sampling_rate:
            self._resampler = StreamResampler(self.input_sampling_rate, sampling_rate)
        self._detector = DETECTORS[vad](sampling_rate)
        self._frame = self._detector.frame_length
        self._pause = round(MIN_PAUSE * sampling_rate)
        self._speech = MIN_SPEECH * sampling_rate / self._frame
        self._fed = 0
        self._finished = False
        # Positions are in samples. The sound still needed begins at _start; frames are cut up to
        # _framed, and up to _decided they are speech or silence.
        self._buffer = np.zeros(0, dtype=np.float32)
        self._start = self._framed = self._decided = 0
        # The open segment: where it begins, how far it surely goes, how many of its frames are
        # speech, and where its next window begins.
        self._onset: int | None = None
        self._reach = self._heard = self._next = 0
        self._queue: list[_Window] = []
        # [sum of probabilities, windows] of the cells that wait for windows; the first at _cell.
        self._cells: deque[list[Any]] = deque()
        self._cell = 0
        self._event: _Event | None = None
        self._events: list[dict[str, Any]] = []

    @property
    def latency(self) -> float:
        """Seconds within which a moment is decided on, and an event returned after its end.

        They are what must be heard first; computing time, and the length of the blocks that are
        fed, come on top.
        """
        waiting = self.window + (self.batch_size - 1) * self.hop + MIN_PAUSE
        delay = self._resampler.delay if self._resampler else 0.0
        return waiting + self._detector.lookahead + 2 * self._frame / self.sampling_rate + delay

    @property
    def duration(self) -> float:
        """Seconds fed so far."""
        return self._fed / self.input_sampling_rate

    @property
    def current(self) -> dict[str, Any] | None:
        """The event that still grows, as decided so far; None while nobody speaks."""
        return None if self._event is None else self._as_dict(self._event)

    def feed(self, block: np.ndarray) -> list[dict[str, Any]]:
        """Take the next block of the recording.

        Args:
            block: Mono floats of shape (samples,), full scale ±1, of any length; an array, a list
                or a tensor.

        Returns:
            The events that ended, in order: ``start`` and ``end`` in seconds, ``label``, its mean
            probability ``score``, and ``scores``, the probabilities of all labels. Events never
            overlap, and hold no silence of `MIN_PAUSE` or more.

        Raises:
            ValueError: The block is not mono, not of floats, or has samples that are NaN, infinite
                or beyond ±100,000. It is left out, as if it had not been fed.
            RuntimeError: The stream is finished.
        """
        block = self._checked(block)
        for first in range(0, len(block), self.input_sampling_rate):
            piece = block[first : first + self.input_sampling_rate]
            self._fed += len(piece)
            self._take(self._resampler.feed(piece) if self._resampler else piece)
        return self._ended()

    def finish(self) -> list[dict[str, Any]]:
        """Say that the recording is over, and get the events that are left."""
        if not self._finished:
            self._finished = True
            if self._resampler:
                self._take(self._resampler.finish())
            for is_speech in self._detector.finish():
                self._step(is_speech)
            self._close()
            self._run()
        return self._ended()

    def _ended(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

    def _checked(self, block: Any) -> np.ndarray:
        if self._finished:
            raise RuntimeError("This stream is finished. Make a new one for the next recording.")
        block = as_array(block)
        if block.ndim != 1:
            raise ValueError(
                f"Expected mono sound (samples,), got shape {block.shape}. "
                "Mix the channels down first."
            )
        if len(block) and not np.issubdtype(block.dtype, np.floating):
            raise ValueError(
                f"Expected floats in ±1, got {block.dtype}. Divide integers by their full scale "
                "first, for example block / 32768 for int16."
            )
        if len(block) and not max(-block.min(), block.max()) <= MAX_AMPLITUDE:  # or NaN
            first = int((np.abs(block) <= MAX_AMPLITUDE).argmin())
            what = "has NaN or infinite samples, the first"
            if np.isfinite(block[first]):
                what = f"reaches {block[first]:g}"
            moment = self.duration + first / self.input_sampling_rate
            raise ValueError(
                f"The sound {what} at {moment:.3f} s. Scale it to lie within ±1, repair it, or "
                "leave it out."
            )
        return block.astype(np.float32, copy=False)

    # --- sound → segments → windows ---------------------------------------------------------

    def _take(self, samples: np.ndarray) -> None:
        """Cut sound into frames, follow the speech in them, forget what is past."""
        self._buffer = np.concatenate((self._buffer, samples))
        fresh = self._buffer[self._framed - self._start :]
        whole = len(fresh) // self._frame * self._frame
        self._framed += whole
        for is_speech in self._detector.feed(fresh[:whole].reshape(-1, self._frame)):
            self._step(is_speech)
        needed = self._decided
        if self._onset is not None:  # the last window may begin this early
            needed = max(self._onset, self._reach - self._window)
        self._buffer = self._buffer[needed - self._start :].copy()
        self._start = needed

    def _step(self, is_speech: bool) -> None:
        """Go on by one frame."""
        begin, self._decided = self._decided, self._decided + self._frame
        if is_speech:
            if self._onset is None:
                self._onset = self._next = begin
                self._heard = 0
            self._heard += 1
            self._reach = self._decided
            while self._heard >= self._speech and self._next + self._window <= self._reach:
                self._enqueue(self._onset, self._next, self._next + self._window)
                self._next += self._hop
        elif self._decided - self._reach >= self._pause:
            self._close()
        if self._queue:
            waited = self._decided - self._queue[0].ready
            if waited >= (self.batch_size - 1) * self._hop:
                self._run()

    def _close(self) -> None:
        """End the open segment, with a window over what the others leave uncovered."""
        onset, self._onset = self._onset, None
        if onset is None or self._heard < self._speech:
            return
        end, windows = self._reach, (self._next - onset) // self._hop
        covered = windows > 0 and self._next - self._hop + self._window == end
        if covered or self._cell_count(end - onset) <= windows:
            self._enqueue(onset, end, end, end)
        else:
            self._enqueue(onset, max(onset, end - self._window), end, end)

    def _cell_count(self, length: int) -> int:
        """Cells whose centre lies before ``length``, at least one."""
        return max(1, (2 * length + self._hop - 1) // (2 * self._hop))

    def _enqueue(self, onset: int, begin: int, stop: int, end: int | None = None) -> None:
        samples = self._buffer[begin - self._start : stop - self._start].copy()
        self._queue.append(_Window(onset, samples if stop > begin else None, self._decided, end))
        if sum(window.samples is not None for window in self._queue) == self.batch_size:
            self._run()

    # --- windows → cells → events -----------------------------------------------------------

    def _run(self) -> None:
        """Score the windows that wait."""
        queue, self._queue = self._queue, []
        waveforms = [window.samples for window in queue if window.samples is not None]
        scores = iter(self._classify(waveforms) if waveforms else ())
        for window in queue:
            probabilities = None
            if window.samples is not None:
                probabilities = np.asarray(next(scores), dtype=np.float64)
                if not np.isfinite(probabilities).all():
                    raise ValueError("the model's answer is not a number; its weights are damaged")
            if self._event is None:
                self._cell = window.onset
            if window.end is None:
                self._cover(self._cell_count(self._window), probabilities)
                self._decide(self._cell + self._hop)
            else:
                self._end_segment(window.end, window.onset, probabilities)

    def _cover(self, cells: int, probabilities: np.ndarray | None) -> None:
        """Add a window's probabilities to the next cells."""
        while len(self._cells) < cells:
            self._cells.append([0.0, 0])
        if probabilities is not None:
            for index in range(cells):
                self._cells[index][0] = self._cells[index][0] + probabilities
                self._cells[index][1] += 1

    def _decide(self, end: int) -> None:
        """Give the next cell its label, and join it to the event before it if that is the same."""
        total, windows = self._cells.popleft()
        mean = total / windows
        label = int(mean.argmax())
        if self._event is not None and self._event.label == label:
            self._event.end = end
            self._event.total = self._event.total + mean
            self._event.cells += 1
        else:
            self._end_event()
            self._event = _Event(self._cell, end, label, mean)
        self._cell = end

    def _end_segment(self, end: int, onset: int, probabilities: np.ndarray | None) -> None:
        """Decide on the cells that are left; the last one takes in the rest of the segment."""
        left = self._cell_count(end - onset) - (self._cell - onset) // self._hop
        self._cover(left, probabilities)
        for _ in range(left):
            self._decide(self._cell + self._hop)
        if self._event is not None:
            self._event.end = end
        self._end_event()
        self._cells.clear()

    def _end_event(self) -> None:
        if self._event is not None:
            self._events.append(self._as_dict(self._event))
        self._event = None

    def _as_dict(self, event: _Event) -> dict[str, Any]:
        mean = event.total / event.cells
        return {
            "start": event.start / self.sampling_rate,
            # Resampling may add a part of a sample at the very end.
            "end": min(event.end / self.sampling_rate, self.duration),
            "label": self.labels[event.label],
            "score": float(mean[event.label]),
            "scores": dict(zip(self.labels, mean.tolist(), strict=True)),
        }


__all__ = ["MIN_PAUSE", "MIN_SPEECH", "TimelineStream"]
