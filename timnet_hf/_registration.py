# SPDX-License-Identifier: Apache-2.0
"""Make the Auto classes and pipelines of transformers know TIM-Net, without loading them for it.

Loading them costs seconds, and a program that only prints its help needs none of them. So each
class is registered at the moment when transformers loads the table it belongs to: at once
for the tables that are loaded already, right behind the import for the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from threading import get_ident
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:  # it loads zipfile, tempfile … and would be a tenth of `timnet --help`
    from importlib.abc import Loader


def _register_config() -> None:
    from transformers import AutoConfig

    from .configuration_timnet import TimNetConfig

    AutoConfig.register(TimNetConfig.model_type, TimNetConfig, exist_ok=True)


def _register_feature_extractor() -> None:
    from transformers import AutoFeatureExtractor

    from .configuration_timnet import TimNetConfig
    from .feature_extraction_timnet import TimNetFeatureExtractor

    AutoFeatureExtractor.register(TimNetConfig, TimNetFeatureExtractor, exist_ok=True)


def _register_models() -> None:
    from transformers import AutoModel, AutoModelForAudioClassification

    from .configuration_timnet import TimNetConfig
    from .modeling_timnet import TimNetForAudioClassification, TimNetModel

    AutoModel.register(TimNetConfig, TimNetModel, exist_ok=True)
    AutoModelForAudioClassification.register(
        TimNetConfig, TimNetForAudioClassification, exist_ok=True
    )


def _register_pipeline() -> None:
    from transformers import AutoModelForAudioClassification
    from transformers.pipelines import PIPELINE_REGISTRY

    from .pipeline_timnet import TASK, TimNetTimelinePipeline

    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK, TimNetTimelinePipeline, pt_model=AutoModelForAudioClassification, type="audio"
        )


#: Module of transformers that holds a table → what to enter in it.
_TABLES: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.feature_extraction_auto": _register_feature_extractor,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.pipelines": _register_pipeline,
}

#: Our modules that the entries come from. Importing one may itself load a table, at a moment when
#: the class to enter does not exist yet; the entry is then made when the module is complete. So may
#: the base of our layers, which importing any other model of transformers comes by.
_SOURCES = {
    f"{__package__}.{name}"
    for name in (
        "configuration_timnet",
        "feature_extraction_timnet",
        "modeling_timnet",
        "pipeline_timnet",
    )
} | {"transformers.modeling_layers"}


class _WatchingLoader:
    """Loads a module as its own loader would, then tells the finder that it is complete."""

    def __init__(self, loader: Loader, finder: _Finder, name: str):
        self.loader = loader
        self.finder = finder
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.finder.importing.add(self.name)
        try:
            self.loader.exec_module(module)
        finally:
            self.finder.importing.discard(self.name)
        if self.name in _TABLES:
            self.finder.waiting.append(_TABLES[self.name])
        self.finder.register()

    def __getattr__(self, name: str) -> Any:
        # Tracebacks, inspect and importlib.resources ask the loader for source code and data.
        return getattr(self.loader, name)


class _Finder:
    """Sees the tables' and our own modules come by, and wraps their loaders."""

    def __init__(self) -> None:
        self.importing: set[str] = set()
        self.waiting: list[Callable[[], None]] = []
        self.searching: set[tuple[int, str]] = set()

    def register(self) -> None:
        """Make the entries that wait, unless a module they come from is still incomplete."""
        while self.waiting and not self.importing & _SOURCES:
            self.waiting.pop(0)()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        search = (get_ident(), fullname)
        if (fullname not in _TABLES and fullname not in _SOURCES) or search in self.searching:
            return None
        # Where the package was imported twice there are two of us, and each asks the other.
        self.searching.add(search)
        try:
            for finder in sys.meta_path:
                if finder is self or not hasattr(finder, "find_spec"):
                    continue
                spec = finder.find_spec(fullname, path, target)
                if spec is not None and spec.loader is not None:
                    watching = _WatchingLoader(spec.loader, self, fullname)
                    spec.loader = cast("Loader", watching)
                    return spec
            return None
        finally:
            self.searching.discard(search)


def register_on_import() -> None:
    """Register with every table that is loaded; watch for those that are not yet."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    finder.waiting.extend(entry for name, entry in _TABLES.items() if name in sys.modules)
    finder.register()


__all__ = ["register_on_import"]
