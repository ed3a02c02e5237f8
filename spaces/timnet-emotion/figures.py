# SPDX-License-Identifier: Apache-2.0
"""Pictures of a recording, on a transparent ground: they are read on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from explanation import Explanation
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

#: Letters and lines: as far from the white page as from the dark one.
INK = "#80858d"
WAVE = "#6f8fd6"

_COLOURS = {
    "angry": "#e4572e",
    "anger": "#e4572e",
    "boredom": "#a98467",
    "bored": "#a98467",
    "calm": "#5bb5a2",
    "disgust": "#7a9e3b",
    "fear": "#9b6bd3",
    "fearful": "#9b6bd3",
    "happy": "#f0b429",
    "happiness": "#f0b429",
    "neutral": "#9aa5b1",
    "sad": "#3f7fd1",
    "sadness": "#3f7fd1",
    "surprise": "#ef7fb2",
    "surprised": "#ef7fb2",
}
_OTHER_COLOURS = ("#17a2b8", "#c08457", "#84a98c", "#d16ba5", "#6c757d", "#b5a642")
_COLUMNS = 900


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label: the usual emotions always have the same one."""
    return {
        label: _COLOURS.get(label.lower(), _OTHER_COLOURS[index % len(_OTHER_COLOURS)])
        for index, label in enumerate(labels)
    }


def timeline_figure(
    waveform: np.ndarray,
    sampling_rate: int,
    events: Sequence[dict[str, Any]],
    labels: Sequence[str],
) -> Figure:
    """Waveform, spectrogram, and below them the timeline in colour.

    Args:
        waveform: (samples,).
        sampling_rate: Of the waveform, in Hz.
        events: ``start`` and ``end`` in seconds, ``label``, ``score``.
        labels: All labels of the model.
    """
    duration = len(waveform) / sampling_rate
    figure = _figure(4.8)
    wave, spectrogram, strip = figure.subplots(
        3, 1, sharex=True, gridspec_kw={"height_ratios": (3, 5, 1.6)}
    )
    columns = np.array_split(waveform, min(len(waveform), _COLUMNS))
    middle = (np.arange(len(columns)) + 0.5) * duration / len(columns)
    low, high = (np.array([pick(part) for part in columns]) for pick in (np.min, np.max))
    wave.fill_between(middle, low, high, color=WAVE, linewidth=0.6)
    peak = max(0.05, float(np.abs(waveform).max()))
    wave.set_ylim(-peak, peak)
    wave.set_yticks([])

    top = sampling_rate / 2000
    spectrogram.imshow(
        _spectrogram(waveform, sampling_rate),
        origin="lower",
        aspect="auto",
        extent=(0, duration, 0, top),
        cmap="magma",
        interpolation="bilinear",
    )
    spectrogram.set_ylabel("kHz")
    spectrogram.yaxis.set_major_locator(MaxNLocator(3, integer=True))

    shades = colours(labels)
    unwritten = set()
    for event in events:
        start, length = event["start"], event["end"] - event["start"]
        strip.broken_barh([(start, length)], (0, 1), facecolors=shades[event["label"]])
        if length > 0.022 * duration * len(event["label"]):
            strip.text(
                start + length / 2,
                0.47,
                event["label"],
                color="#1b1f24",
                fontsize=12,
                ha="center",
                va="center",
                clip_on=True,
                parse_math=False,
            )
        else:
            unwritten.add(event["label"])
    strip.set_ylim(0, 1)
    strip.set_yticks([])
    strip.set_xlim(0, duration)
    _time_axis(strip)
    if unwritten:
        heard = {event["label"] for event in events}
        _legend(figure, {label: shade for label, shade in shades.items() if label in heard})
    for axes in (wave, spectrogram, strip):
        _plain(axes)
    return figure


def explanation_figure(explanation: Explanation, duration: float) -> Figure:
    """Frame saliency above; scale weights and what each scale adds to the answer below.

    Args:
        explanation: What is to be shown.
        duration: Of the recording, in seconds.
    """
    figure = _figure(5.4)
    grid = figure.add_gridspec(2, 2, height_ratios=(4, 5))
    when = figure.add_subplot(grid[0, :])
    for sign, colour in ((1, "#3a9d6e"), (-1, "#c8553d")):
        part = np.where(sign * explanation.saliency > 0, explanation.saliency, 0)
        when.fill_between(explanation.times, part, step="mid", color=colour, linewidth=0)
    when.axhline(0, color=INK, linewidth=0.6)
    when.set_xlim(0, duration)
    when.set_ylim(-1.05, 1.05)
    when.set_yticks([-1, 1], ["against", "for"])
    when.set_title(f"When: for or against “{explanation.label}”", parse_math=False)
    _time_axis(when)

    places = np.arange(len(explanation.scales))
    panels = (
        ("Weight of each scale", explanation.weights),
        ("What each scale adds", explanation.contributions),
    )
    for column, (title, values) in enumerate(panels):
        axes = figure.add_subplot(grid[1, column])
        shades = np.where(values >= 0, "#3a9d6e", "#c8553d") if column else WAVE
        axes.barh(places, values, color=shades)
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.set_yticks(places, explanation.scales if not column else [""] * len(places))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.invert_yaxis()
        axes.set_title(title)
        _plain(axes)
    _plain(when)
    return figure


def _figure(height: float) -> Figure:
    # Small in inches, so that letters are still read when the picture is as narrow as a phone.
    figure = Figure(figsize=(6, height), dpi=170, layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def _plain(axes: Axes) -> None:
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, labelsize=12)
    axes.xaxis.label.set(color=INK, fontsize=12)
    axes.yaxis.label.set(color=INK, fontsize=12)
    axes.title.set(color=INK, fontsize=12.5)
    for spine in axes.spines.values():
        spine.set(color=INK, linewidth=0.6)


def _time_axis(axes: Axes) -> None:
    def clock(seconds: float, _: object) -> str:
        if axes.get_xlim()[1] < 90:
            return f"{seconds:g} s"
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

    axes.xaxis.set_major_formatter(FuncFormatter(clock))
    axes.xaxis.set_major_locator(MaxNLocator(7))


def _legend(figure: Figure, shades: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=_escaped(label)) for label, colour in shades.items()]
    legend = figure.legend(
        handles=patches,
        loc="outside lower center",
        ncols=min(4, len(patches)),
        frameon=False,
        fontsize=12,
        handlelength=1,
        handleheight=1,
    )
    for text in legend.get_texts():
        text.set_color(INK)


def _escaped(label: str) -> str:
    """A label is text, whatever matplotlib takes dollar signs and a leading underscore for."""
    return label.replace("$", r"\$").lstrip("_") or "–"


def _spectrogram(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Level in dB, (frequencies, columns), 70 dB deep: one frame a column of the picture."""
    size = 2 ** round(np.log2(0.032 * sampling_rate))
    padded = np.pad(waveform, (size // 2, size // 2))
    columns = min(_COLUMNS, max(1, 4 * len(waveform) // size))
    starts = np.linspace(0, len(waveform), columns, endpoint=False).astype(int)
    frames = padded[starts[:, None] + np.arange(size)] * np.hanning(size)
    level = 20 * np.log10(np.abs(np.fft.rfft(frames)).T + 1e-6)
    return level.clip(min=level.max() - 70)


__all__ = ["INK", "colours", "explanation_figure", "timeline_figure"]
