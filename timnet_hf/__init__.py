# SPDX-License-Identifier: Apache-2.0
"""TIM-Net, the 0.1 M-parameter speech-emotion network, for the Hugging Face libraries.

Importing the package registers it with the Auto classes of transformers. Nothing heavy is loaded
before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._registration import register_on_import

__version__ = "0.1.0"

#: Public name → the module that defines it.
_EXPORTS = {
    "AudioError": "audio",
    "TimNetConfig": "configuration_timnet",
    "TimNetFeatureExtractor": "feature_extraction_timnet",
    "TimNetForAudioClassification": "modeling_timnet",
    "TimNetModel": "modeling_timnet",
    "TimNetModelOutput": "modeling_timnet",
    "TimNetPreTrainedModel": "modeling_timnet",
    "TimNetTimelinePipeline": "pipeline_timnet",
    "TimelineStream": "timeline_timnet",
    "load_audio": "audio",
    "resample": "audio",
}

if TYPE_CHECKING:
    from .audio import AudioError, load_audio, resample
    from .configuration_timnet import TimNetConfig
    from .feature_extraction_timnet import TimNetFeatureExtractor
    from .modeling_timnet import (
        TimNetForAudioClassification,
        TimNetModel,
        TimNetModelOutput,
        TimNetPreTrainedModel,
    )
    from .pipeline_timnet import TimNetTimelinePipeline
    from .timeline_timnet import TimelineStream

__all__ = [
    "AudioError",
    "TimNetConfig",
    "TimNetFeatureExtractor",
    "TimNetForAudioClassification",
    "TimNetModel",
    "TimNetModelOutput",
    "TimNetPreTrainedModel",
    "TimNetTimelinePipeline",
    "TimelineStream",
    "__version__",
    "load_audio",
    "resample",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


register_on_import()
