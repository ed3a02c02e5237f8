# SPDX-License-Identifier: Apache-2.0
"""Configuration of the TIM-Net speech-emotion network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from math import inf
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedConfig

if TYPE_CHECKING:
    # Loads nothing. Where transformers saves a model with its code, it follows imports to the files
    # that belong to it; the pipeline is one of them, and nothing else here leads to it.
    from .pipeline_timnet import TimNetTimelinePipeline  # noqa: F401

#: The paper's four ablations, as keyword arguments of :class:`TimNetConfig`.
ABLATIONS: dict[str, dict[str, bool]] = {
    "no-backward": {"bidirectional": False},
    "no-multi-scale": {"multi_scale": False, "pool_input": False},
    "no-dynamic-fusion": {"dynamic_fusion": False},
    "plain-tcn": {
        "bidirectional": False,
        "multi_scale": False,
        "pool_input": False,
        "dynamic_fusion": False,
    },
}

#: Frames that one layer may look back: hours of audio, and a bound on the memory it takes.
MAX_REACH = 2**20

#: Labels of one network: a file that claims millions would fill the memory with their names.
MAX_LABELS = 10_000

#: Field → its kind, a test, and what the test demands.
_RULES: dict[str, tuple[type, Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("input_size", "hidden_size"),
        (Integral, lambda size: 1 <= size <= 8192, "an integer from 1 to 8192"),
    ),
    "num_hidden_layers": (Integral, lambda n: 1 <= n <= 32, "an integer from 1 to 32"),
    "num_members": (Integral, lambda n: 1 <= n <= 64, "an integer from 1 to 64"),
    "num_centered_members": (Integral, lambda n: n >= 0, "an integer of at least 0"),
    "kernel_size": (Integral, lambda taps: taps >= 1, "an integer of at least 1"),
    **dict.fromkeys(
        ("hidden_dropout_prob", "classifier_dropout"),
        (Real, lambda p: 0 <= p < 1, "a number in [0, 1)"),
    ),
    **dict.fromkeys(
        ("bidirectional", "multi_scale", "dynamic_fusion", "pool_input", "normalize_scales")
        + ("apply_temperature",),
        (bool, lambda _: True, "true or false"),
    ),
    "pooling": (str, ("mean", "statistics").__contains__, "'mean' or 'statistics'"),
    "fusion_init": (str, ("uniform", "mean").__contains__, "'uniform' or 'mean'"),
    "batch_norm_eps": (Real, lambda eps: 0 < eps <= 1, "a number in (0, 1]"),
    "batch_norm_momentum": (Real, lambda m: 0 <= m <= 1, "a number in [0, 1]"),
    "temperature": (Real, lambda t: 0 < t < inf, "a finite number above 0"),
}


def drop_code_of_the_folder(settings: dict[str, Any]) -> None:
    """Take ``auto_map`` out of saved settings where it names code files in a model's own folder.

    The package has that code. Saved elsewhere, without the files, the entry would lead nowhere; one
    that names a repository of the Hub (``repository--module.Class``) leads there still.
    """
    entries = settings.get("auto_map")
    if isinstance(entries, Mapping) and not all("--" in str(at) for at in entries.values()):
        del settings["auto_map"]


def _named(id2label: Mapping[Any, str]) -> dict[int, str]:
    return {int(index): name for index, name in id2label.items()}


class TimNetConfig(PreTrainedConfig):
    """Shape and switches of a TIM-Net.

    The defaults are the network as published (Ye et al., ICASSP 2023, arXiv 2211.08233): 39 MFCCs
    in, two streams of eight temporal-aware blocks, 104,496 trainable parameters with seven labels.

    Args:
        input_size: Coefficients in each input frame, 1 to 8192.
        hidden_size: Channels of each stream, 1 to 8192.
        num_hidden_layers: Temporal-aware blocks in each stream; block *j* has dilation 2^(j-1).
            1 to 21 with two taps: no layer may look back more than 2^20 frames, hours of audio.
        kernel_size: Taps of the causal convolutions, at least 1.
        num_members: Networks of this shape that run side by side and share nothing but the fusion
            weights. Each learns from its own answer; the logits are the mean of theirs. This is a
            packed ensemble (Laurent et al., ICLR 2023, arXiv 2210.09184). 1 to 64.
        num_centered_members: Members, the first ones, that have each coefficient's mean over the
            recording taken off (cepstral mean normalisation). What a microphone adds to all frames
            alike does not reach them, nor what a voice or a mood does, which is why not all should
            be. A window of a timeline is a recording of its own. 0 to ``num_members``.
        hidden_dropout_prob: Whole-channel (spatial) dropout behind each convolution, 0 to 1.
        classifier_dropout: Dropout on the fused vector before the classifier, 0 to 1.
        bidirectional: Use the stream that reads the recording backwards.
        multi_scale: Pool every block; otherwise only the last one.
        dynamic_fusion: Learn one weight a scale; otherwise take the plain mean of the scales.
        pooling: How a scale's frames become one vector. ``"mean"``: mean over time of the sum of
            the streams, as published. ``"statistics"``: mean, standard deviation and mean absolute
            difference of neighbouring frames, for each stream, side by side.
        pool_input: Pool the input of the first block as a scale of its own.
        normalize_scales: Batch-normalise each scale's vector before the fusion, so that scales and
            kinds of statistics enter it with like weight.
        fusion_init: Where the fusion weights start. ``"uniform"``: in ±0.05, as published;
            ``"mean"``: at one over the number of scales.
        batch_norm_eps: Added to the variance in batch normalisation, above 0 and at most 1.
        batch_norm_momentum: Weight of the new batch in the running statistics, 0 to 1.
        temperature: Divisor that calibrates the logits, above 0. Fitted on held-out speakers.
        apply_temperature: Let the classification head divide its logits by ``temperature``,
            except in training.
        **kwargs: Passed to :class:`transformers.PreTrainedConfig` (``id2label``, ``num_labels`` …).

    Raises:
        ValueError: A value is of the wrong kind or out of its range.

    Example:
        >>> from timnet_hf import TimNetConfig
        >>> TimNetConfig(num_labels=7).num_scales
        8
    """

    model_type = "timnet"
    attribute_map: ClassVar[dict[str, str]] = {}

    input_size: int = 39
    hidden_size: int = 39
    num_hidden_layers: int = 8
    kernel_size: int = 2
    num_members: int = 1
    num_centered_members: int = 0
    hidden_dropout_prob: float | int = 0.1
    classifier_dropout: float | int = 0.0
    bidirectional: bool = True
    multi_scale: bool = True
    dynamic_fusion: bool = True
    pooling: str = "mean"
    pool_input: bool = False
    normalize_scales: bool = False
    fusion_init: str = "uniform"
    batch_norm_eps: float = 1e-3
    batch_norm_momentum: float = 0.01
    temperature: float | int = 1.0
    apply_temperature: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Check kinds and ranges: a configuration may come from anyone's JSON file."""
        for name, (kind, holds, wanted) in _RULES.items():
            value = getattr(self, name)
            is_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if not (is_kind and holds(value)):
                raise ValueError(f"{name} must be {wanted}, not {value!r}.")
        if (self.kernel_size - 1) * 2 ** (self.num_hidden_layers - 1) > MAX_REACH:
            raise ValueError(
                f"With num_hidden_layers {self.num_hidden_layers} and kernel_size "
                f"{self.kernel_size} a layer looks back more than {MAX_REACH} frames. "
                "Take fewer blocks or taps."
            )
        if self.num_centered_members > self.num_members:
            raise ValueError(
                f"num_centered_members is {self.num_centered_members}, and num_members only "
                f"{self.num_members}."
            )
        count = kwargs.get("num_labels")
        if count is not None and not (isinstance(count, Integral) and count <= MAX_LABELS):
            raise ValueError(f"num_labels must be an integer up to {MAX_LABELS}, not {count!r}.")
        # pipeline() takes a task that config.json names from the folder and asks for trust in it,
        # even where it knows that task. The package registers it, so its own code is to be taken.
        if not __name__.startswith("transformers_modules."):
            kwargs.pop("custom_pipelines", None)
            drop_code_of_the_folder(kwargs)
        super().__post_init__(**kwargs)
        if not self.num_labels or self.num_labels < 1:
            raise ValueError("A classifier needs at least one label: check num_labels or id2label.")
        names: Any = self.id2label
        if set(names) != set(range(len(names))) or len(names) > MAX_LABELS:
            raise ValueError(
                f"id2label must name the outputs from 0 to {len(names) - 1}, at most {MAX_LABELS}; "
                f"it names {sorted(names)[:5]} …"
            )
        if repeated := [name for name, times in Counter(names.values()).items() if times > 1]:
            raise ValueError(f"id2label gives {repeated[0]!r} to several outputs; rename them.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration of its saved values, some of them replaced by ``kwargs``.

        A temperature is that of one trained classifier. Where other labels are asked for, as for
        fine-tuning, it is not taken over; ``label2id`` follows ``id2label`` if only that is given.
        """
        saved = config_dict.get("id2label")
        if isinstance(saved, Mapping):
            names, count = kwargs.get("id2label"), kwargs.get("num_labels", len(saved))
            if count != len(saved) or (names is not None and _named(names) != _named(saved)):
                left_out = ("temperature", "apply_temperature")
                config_dict = {k: v for k, v in config_dict.items() if k not in left_out}
            if names is not None:
                kwargs.setdefault("label2id", {name: at for at, name in _named(names).items()})
        return super().from_dict(config_dict, **kwargs)

    @property
    def num_directions(self) -> int:
        """Ways that a member reads the recording: 2, or 1 without the backward stream."""
        return 2 if self.bidirectional else 1

    @property
    def num_streams(self) -> int:
        """Streams of blocks: one a direction and member."""
        return self.num_directions * self.num_members

    @property
    def num_scales(self) -> int:
        """Vectors that are fused: one a pooled block, and one for the input if it is pooled."""
        return (self.num_hidden_layers if self.multi_scale else 1) + int(self.pool_input)

    @property
    def pooled_size(self) -> int:
        """Length of a scale's vector over all members, which is also that of the fused vector."""
        kinds = 3 * self.num_directions if self.pooling == "statistics" else 1
        return kinds * self.num_members * self.hidden_size


__all__ = ["ABLATIONS", "TimNetConfig"]
