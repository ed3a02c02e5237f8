# SPDX-License-Identifier: Apache-2.0
"""From recordings to emotions: load a model once, score files one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .audio import AudioError, load_audio, stream_audio

if TYPE_CHECKING:
    from .feature_extraction_timnet import TimNetFeatureExtractor
    from .modeling_timnet import TimNetForAudioClassification
    from .speaker_timnet import SpeakerProfile

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


class Scorer(Protocol):
    """What names emotions: a model in PyTorch, or an exported file, see `onnx_inference`."""

    labels: list[str]
    sampling_rate: int
    num_samples: int | None

    def score(self, waveforms: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Score waveforms (samples,) at ``sampling_rate``.

        Returns:
            Probabilities (waveforms, labels), and the number of frames each rests on.
        """
        ...


class TorchScorer:
    """A network and its feature extractor, as `load_model` returns them.

    The network is put into evaluation mode.

    Args:
        model: The network.
        extractor: Its feature extractor.
        compiled: See `FoldedTimNet`.

    Attributes:
        labels: Names of the labels, in the order of the probabilities.
        sampling_rate: Rate of the waveforms, in Hz.
        num_samples: Length to which waveforms are padded or cropped, or None.
    """

    def __init__(
        self,
        model: TimNetForAudioClassification,
        extractor: TimNetFeatureExtractor,
        compiled: bool = True,
    ):
        from .folded_network import FoldedTimNet

        self.model, self.extractor = model.eval(), extractor
        # The same answers in less than half of the time.
        self.network = FoldedTimNet(model, compiled)
        names: Any = model.config.id2label
        self.labels = [str(names[index]) for index in range(len(names))]
        self.sampling_rate: int = extractor.sampling_rate
        self.num_samples: int | None = extractor.num_samples

    def score(self, waveforms: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Score waveforms (samples,) in one call."""
        extractor = self.extractor
        features = [extractor.normalize(extractor.extract(waveform)) for waveform in waveforms]
        frames = np.array([len(one) for one in features])
        logits = self.network(features)
        if self.model.config.problem_type == "multi_label_classification":
            return logits.sigmoid().numpy(), frames
        return logits.softmax(-1).numpy(), frames


def is_onnx(name: str | Path | None) -> bool:
    """Whether a model is named by an exported file."""
    return name is not None and Path(name).suffix.lower() == ".onnx" and not Path(name).is_dir()


def load_scorer(
    name: str | Path | None = None,
    revision: str | None = None,
    speaker: str | Path | None = None,
    compiled: bool = True,
) -> Scorer:
    """Load what `load_model` loads, or a file that ``timnet export`` wrote.

    A name that ends in ``.onnx`` is such a file. It needs neither torch nor transformers.

    Args:
        name: See `load_model`.
        revision: Branch, tag or commit on the Hub.
        speaker: The profile of an enrolled voice; then every recording is taken to be of it.
        compiled: See `FoldedTimNet`.

    Raises:
        ModelError: There is no such model, or it is broken, or it cannot be adapted to a voice.
        SpeakerError: The profile is none, or does not fit the model.
        ImportError: The file needs onnxruntime, and it is not installed.
    """
    if name is not None and is_onnx(name):
        from .onnx_inference import OnnxModel

        if speaker is not None:
            raise ModelError(
                f"{name}: an exported file cannot be adapted to a voice afterwards. Give the "
                "model's folder, or export it with --speaker."
            )
        return OnnxModel(name)
    model, extractor = load_model(name, revision)
    if speaker is not None:
        model, extractor = model.adapted_to(speaker), extractor.adapted_to(speaker)
    return TorchScorer(model, extractor, compiled)


def enroll(
    name: str,
    paths: Iterable[str | Path],
    model: TimNetForAudioClassification,
    extractor: TimNetFeatureExtractor,
) -> SpeakerProfile:
    """A voice's profile from recordings of it; no labels are needed.

    Raises:
        AudioError: A recording cannot be read, or holds nothing but silence.
        SpeakerError: There is no recording.
    """
    waveforms = []
    for path in paths:
        waveform = load_audio(path, extractor.sampling_rate)
        if np.abs(waveform).max(initial=0.0) <= 1e-4:
            raise AudioError(f"{path}: nothing to hear; leave it out.")
        waveforms.append(waveform)
    return model.describe_speaker(name, waveforms, extractor)


def resolve_model(name: str | Path | None = None) -> str:
    """A shipped checkpoint's name, a folder or a Hub id → what ``from_pretrained`` takes.

    Raises:
        ModelError: The checkpoint that comes with the package is not there or not as it was
            shipped, or the name can only be that of a folder, and there is none.
    """
    shipped = CHECKPOINTS / str(name or DEFAULT_CHECKPOINT)
    if name and Path(name).is_dir():  # no name means the shipped one, whatever folder lies here
        return _as_shipped(Path(name)) if Path(name).resolve().parent == CHECKPOINTS else str(name)
    if shipped.parent == CHECKPOINTS and shipped.is_dir():
        return _as_shipped(shipped)
    name = str(name or DEFAULT_CHECKPOINT)
    if name == DEFAULT_CHECKPOINT:
        raise ModelError(f"{shipped}: the shipped checkpoint is missing. Reinstall timnet-hf.")
    path = Path(name)
    if path.exists() or path.is_absolute() or name[0] in ".~" or name.count("/") > 1:
        raise ModelError(f"{name}: not a folder. Give a folder that `timnet train` wrote.")
    return name


def _as_shipped(folder: Path) -> str:
    """The folder of a shipped checkpoint, if its weights are those that its record names."""
    from .hub_errors import HubError
    from .model_folder import verify_model_folder

    try:
        verify_model_folder(folder)
    except HubError as error:
        raise ModelError(f"{error} It came with timnet-hf: reinstall the package.") from error
    return str(folder)


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
                dtype="float32",  # whatever the configuration says: the features are
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
    """Score recordings with a network in PyTorch, see `predict_recordings`."""
    return predict_recordings(paths, TorchScorer(model, extractor))


def predict_recordings(paths: Iterable[str | Path], scorer: Scorer) -> Iterator[Prediction]:
    """Score recordings one by one; one that cannot be read becomes a record with its error.

    A recording of more than a minute is scored in blocks of half a minute, and its probabilities
    are the blocks' mean, weighted by how much of each block is not silence. A model with a fixed
    clip length (the paper's preset) gets blocks of that length instead, so that it cuts nothing
    off; they all count the same.
    """
    for path in paths:
        try:
            yield _predict_recording(str(path), scorer)
        except (ValueError, OSError) as error:
            text = str(error)
            yield Prediction(str(path), {}, error=text if str(path) in text else f"{path}: {text}")


def clips_of(pieces: Iterable[np.ndarray], rate: int, fixed: int | None) -> Iterator[np.ndarray]:
    """What is scored at a time: a recording of up to a minute whole, a longer one in blocks.

    Args:
        pieces: A recording's mono samples, in pieces of any length.
        rate: Their sampling rate in Hz.
        fixed: The extractor's own length of a clip in samples, if it has one.

    Yields:
        float32 of shape (samples,), at least one sample each.
    """
    whole = round(LONGEST_SINGLE_CLIP * rate)
    size = fixed or round(BLOCK_DURATION * rate)
    held: list[np.ndarray] = []
    count, long = 0, False
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count > whole or (long and count >= size):
            long = True
            joined = np.concatenate(held)
            cut = count - count % size
            yield from joined[:cut].reshape(-1, size)
            held, count = [joined[cut:].copy()], count - cut
    if count:
        yield held[0] if len(held) == 1 else np.concatenate(held)


def _predict_recording(path: str, scorer: Scorer) -> Prediction:
    rate = scorer.sampling_rate
    total = np.zeros(len(scorer.labels))
    weight, samples, heard = 0.0, 0, False
    for block in clips_of(stream_audio(path, rate), rate, scorer.num_samples):
        samples += block.size
        loud = bool(max(block.max(), -block.min()) > 1e-4)
        if heard and not loud:
            continue
        if loud and not heard:
            total, weight, heard = np.zeros_like(total), 0.0, True
        probabilities, frames = scorer.score([block])
        total += frames[0] * probabilities[0].astype(np.float64)
        weight += float(frames[0])
    if weight == 0:
        raise AudioError(f"{path}: holds no sample; record it again or leave it out.")
    if not np.isfinite(total).all():
        raise ValueError(f"{path}: the model's answer is not a number; its weights are damaged.")
    ranked = np.argsort(-total, kind="stable")
    scores = {scorer.labels[int(index)]: float(total[index] / weight) for index in ranked}
    return Prediction(path, scores, duration=samples / rate, silent=not heard)


__all__ = [
    "CHECKPOINTS",
    "DEFAULT_CHECKPOINT",
    "ModelError",
    "Prediction",
    "Scorer",
    "TorchScorer",
    "clips_of",
    "enroll",
    "is_onnx",
    "load_model",
    "load_scorer",
    "predict_files",
    "predict_recordings",
    "resolve_model",
]
