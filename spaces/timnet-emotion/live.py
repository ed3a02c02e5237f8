# SPDX-License-Identifier: Apache-2.0
"""One visitor's microphone: sound in as it comes, the timeline so far out."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
from checkpoints import Checkpoint
from figures import colours

#: Seconds that the coloured strip shows.
_SHOWN = 30.0
#: Events that are kept; older ones scroll away.
_KEPT = 100


class LiveSession:
    """A timeline that grows.

    Args:
        checkpoint: The model that listens.
        sampling_rate: Of the sound that will be fed, in Hz.
        asked: What the visitor had chosen when it began; with another choice another one begins.
    """

    def __init__(self, checkpoint: Checkpoint, sampling_rate: int, asked: object):
        self.asked = asked
        self._stream = checkpoint.timeline.stream(sampling_rate)
        self._colours = colours(checkpoint.labels)
        self._events: list[dict[str, Any]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> LiveSession:
        return self  # a page's state is one visitor's own; there is nothing to copy

    def feed(self, waveform: np.ndarray) -> None:
        """Take the next piece of sound, (samples,)."""
        self._keep(self._stream.feed(waveform))

    def finish(self) -> None:
        """The microphone is off: decide on what is left."""
        self._keep(self._stream.finish())

    def _keep(self, events: list[dict[str, Any]]) -> None:
        self._events = (self._events + events)[-_KEPT:]

    @property
    def events(self) -> list[dict[str, Any]]:
        """What is decided, the event that still grows at the end."""
        current = self._stream.current
        return self._events + ([current] if current else [])

    @property
    def scores(self) -> dict[str, float] | None:
        """Probabilities of the latest event, or None before there is one."""
        events = self.events
        return dict(events[-1]["scores"]) if events else None

    @property
    def status(self) -> str:
        """One sentence for the visitor."""
        heard = f"Heard {self._stream.duration:.0f} s."
        if self._stream.current:
            return f"{heard} Somebody speaks."
        if not self._events:
            return f"{heard} An answer comes about {self._stream.latency:.0f} s after the words."
        return f"{heard} Silence, or not enough speech yet."

    def strip(self) -> str:
        """The last half minute in colour, as HTML."""
        end = max(_SHOWN, self._stream.duration)
        start = end - _SHOWN
        parts = []
        for event in self.events:
            left, right = max(event["start"], start), min(event["end"], end)
            if right <= left:
                continue
            label = html.escape(event["label"])
            style = (
                f"left:{100 * (left - start) / _SHOWN:.2f}%;"
                f"width:{100 * (right - left) / _SHOWN:.2f}%;"
                f"background:{self._colours[event['label']]}"
            )
            parts.append(f'<span style="{style}" title="{label}">{label}</span>')
        scale = f"<div><i>{start:.0f} s</i><i>{end:.0f} s</i></div>"
        return f'<div class="strip"><div role="img">{"".join(parts)}</div>{scale}</div>'


__all__ = ["LiveSession"]
