# SPDX-License-Identifier: Apache-2.0
"""From recordings to emotions: load a model once, score files one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .audio import AudioError, audio_info, load_audio, stream_audio

if TYPE_CHECKING:
    from .feature_extraction_timnet import TimNetFeatureExtractor
    from .modeling_timnet import TimNetForAudioClassification

#: Where the checkpoints that come with the package lie.
CHECKPOINTS = Path(__file__).parent / "checkpoints"
DEFAULT_CHECKPOINT = "timnet-emodb"

#: A longer recording is read and scored in blocks, so that memory stays bounded.
LONGEST_SINGLE_CLIP = 60.0
BLOCK_DURATION = 30.0


class ModelError(ValueError):
    """A model cannot be loaded; the message says from where, why, and what to do."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of one recording.

    Attributes:
        path: The recording.
        scores: Probability of each label, highest first; empty where there is an error.
        duration: Length in seconds.
        silent: There was nothing to hear, so the scores are the model's answer to silence.
        error: Why the recording has no scores, or None.
    """

    path: str
    scores: dict[str, float]
    duration: float = 0.0
    silent: bool = False
    error: str | None = None

    @property
    def label(self) -> str | None:
        """The most probable label, or None where there is an error."""
        return next(iter(self.scores), None)


def resolve_model(name: str | Path | None = None) -> str:
    """A shipped checkpoint's name, a folder or a Hub id → what ``from_pretrained`` takes.

    Raises:
        ModelError: The checkpoint that comes with the package is not there, or the name can only
            be that of a folder, and there is none.
    """
    name = str(name or DEFAULT_CHECKPOINT)
    if Path(name).is_dir():
        return name
    shipped = CHECKPOINTS / name
    if shipped.parent == CHECKPOINTS and shipped.is_dir():
        return str(shipped)
    if name == DEFAULT_CHECKPOINT:
        raise ModelError(f"{shipped}: the shipped checkpoint is missing. Reinstall timnet-hf.")
    path = Path(name)
    if path.exists() or path.is_absolute() or name[0] in ".~" or name.count("/") > 1:
        raise ModelError(f"{name}: not a folder. Give a folder that `timnet train` wrote.")
    return name


def load_model(
    name: str | Path | None = None, revision: str | None = None
) -> tuple[TimNetForAudioClassification, TimNetFeatureExtractor]:
    """Load a TIM-Net and its feature extractor, ready to score.

    Args:
        name: A shipped checkpoint (by default ``timnet-emodb``), a folder, or a Hub id.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ModelError: There is no such model, it is not a TIM-Net, or its weights do not fit it.
    """
    from .configuration_timnet import TimNetConfig
    from .feature_extraction_timnet import TimNetFeatureExtractor
    from .modeling_timnet import TimNetForAudioClassification

    source = resolve_model(name)
    pinned: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        values, _ = TimNetConfig.get_config_dict(source, **pinned)
        if values.get("model_type") != TimNetConfig.model_type:
            raise ModelError(
                f"{source}: holds a {values.get('model_type') or 'nameless'} model, not a timnet. "
                "Give the folder or Hub id of a TIM-Net."
            )
        with _silent_loading():
            from_pretrained: Any = TimNetForAudioClassification.from_pretrained
            model, loaded = from_pretrained(
                source,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are told below
                output_loading_info=True,
                **pinned,
            )
        extractor = TimNetFeatureExtractor.from_pretrained(source, **pinned)
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if loaded[what]:
                raise ValueError(f"{what.replace('_', ' ')}: {sorted(loaded[what])[0]} …")
        if extractor.feature_size != model.config.input_size:
            raise ValueError(
                f"its features have {extractor.feature_size} coefficients, and its network reads "
                f"{model.config.input_size}"
            )
    except ModelError:
        raise
    except Exception as error:  # a folder may hold anything: broken JSON, weights cut short …
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{source}: cannot be loaded ({reason}). Give a folder that `timnet train` or "
            "`timnet convert` wrote, or a Hub id."
        ) from error
    return model.eval(), extractor


@contextmanager
def _silent_loading() -> Iterator[None]:
    """Keep transformers from printing a bar and a table of the weights it loads."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def predict_files(
    paths: Iterable[str | Path],
    model: TimNetForAudioClassification,
    extractor: TimNetFeatureExtractor,
) -> Iterator[Prediction]:
    """Score recordings one by one; one that cannot be read becomes a record with its error.

    A recording of more than a minute is scored in blocks of half a minute, and its probabilities
    are the blocks' mean, weighted by how much of each block is not silence. An extractor with a
    fixed clip length (the paper's preset) gets blocks of that length instead, so that it cuts
    nothing off; they all count the same.
    """
    for path in paths:
        try:
            yield _predict_file(str(path), model, extractor)
        except (ValueError, OSError) as error:
            text = str(error)
            yield Prediction(str(path), {}, error=text if str(path) in text else f"{path}: {text}")


def _predict_file(
    path: str, model: TimNetForAudioClassification, extractor: TimNetFeatureExtractor
) -> Prediction:
    rate = extractor.sampling_rate
    info = audio_info(path)
    if info.duration <= LONGEST_SINGLE_CLIP:
        blocks: Iterable[np.ndarray] = [load_audio(path, rate)]
    else:
        fixed = extractor.num_samples
        blocks = stream_audio(path, rate, block_duration=fixed / rate if fixed else BLOCK_DURATION)
    names = {int(index): str(name) for index, name in (model.config.id2label or {}).items()}
    total = np.zeros(len(names))
    weight, samples, heard = 0.0, 0, False
    for block in blocks:
        samples += block.size
        loud = bool(np.abs(block).max(initial=0.0) > 1e-4)
        if block.size == 0 or (heard and not loud):
            continue
        if loud and not heard:
            total, weight, heard = np.zeros_like(total), 0.0, True
        probabilities, frames = _probabilities(block, model, extractor)
        total += frames * probabilities
        weight += frames
    if weight == 0:
        raise AudioError(f"{path}: holds no sample; record it again or leave it out.")
    if not np.isfinite(total).all():
        raise ValueError(f"{path}: the model's answer is not a number; its weights are damaged.")
    ranked = np.argsort(-total, kind="stable")
    scores = {names[int(index)]: float(total[index] / weight) for index in ranked}
    return Prediction(path, scores, duration=samples / rate, silent=not heard)


def _probabilities(
    waveform: np.ndarray, model: TimNetForAudioClassification, extractor: TimNetFeatureExtractor
) -> tuple[np.ndarray, int]:
    """Probabilities (num_labels,) of one waveform, and the frames they rest on."""
    import torch

    inputs = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    with torch.inference_mode():
        logits = model(inputs["input_values"]).logits[0]
    return logits.softmax(-1).double().numpy(), inputs["input_values"].shape[1]


__all__ = [
    "CHECKPOINTS",
    "DEFAULT_CHECKPOINT",
    "ModelError",
    "Prediction",
    "load_model",
    "predict_files",
    "resolve_model",
]
