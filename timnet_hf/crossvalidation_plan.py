# SPDX-License-Identifier: Apache-2.0
"""What a cross-validation fixes before its first fold is trained."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recipes import Recipe

if TYPE_CHECKING:
    from .configuration_timnet import TimNetConfig
    from .feature_extraction_timnet import TimNetFeatureExtractor

#: How the reported model of a fold is chosen. The second one leaks the test fold into the choice.
SELECTIONS = ("last-epoch", "best-on-test")


class CrossValidationError(ValueError):
    """A cross-validation cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """Everything that is fixed before the first fold is trained.

    Attributes:
        corpus: Name of the corpus, or of the user's own data.
        protocol: See :mod:`timnet_hf.protocols`.
        recipe: See :mod:`timnet_hf.recipes`.
        data_sha256: Checksum of the recordings.
        seeds: Each fold is trained once with each.
        variant: Added to the recipe's name in reports, such as an ablation.
        config: Overrides of the recipe's network.
        arguments: Overrides of the recipe's training arguments.
        selection: One of ``SELECTIONS``.
        calibration: Inner folds that each fold's temperature is fitted on; 0 for no temperature.
        group_by: Column whose values the protocol ``group`` keeps together.
        shown_fold: The fold whose model draws the map of the fused vectors, for the first seed.
        command: How the run was asked for.
    """

    corpus: str
    protocol: str
    recipe: Recipe
    data_sha256: str
    seeds: tuple[int, ...] = (0,)
    variant: str = ""
    config: dict[str, Any] | None = None
    arguments: dict[str, Any] | None = None
    selection: str = "last-epoch"
    calibration: int = 0
    group_by: str | None = None
    shown_fold: str = ""
    command: str = ""

    @property
    def name(self) -> str:
        """What the run's folder and reports call the recipe."""
        leak = "best-on-test" if self.selection == "best-on-test" else ""
        return "-".join(part for part in (self.recipe.name, self.variant, leak) if part)

    def folder(self, results: str | Path) -> Path:
        """Where the run lies below the results folder."""
        return Path(results) / self.corpus / self.protocol / self.name

    def fixed(self) -> dict[str, Any]:
        """What a resumed run must share with the run it goes on from; seeds may be added."""
        return {
            "corpus": self.corpus,
            "protocol": self.protocol,
            "recipe": self.recipe.to_dict(),
            "config": self.config or {},
            "arguments": self.arguments or {},
            "selection": self.selection,
            **({"calibration": self.calibration} if self.calibration else {}),
            **({"group_by": self.group_by} if self.group_by else {}),
            "data_sha256": self.data_sha256,
        }

    def meant(self, extractor: TimNetFeatureExtractor) -> dict[str, Any]:
        """What stands behind the names and defaults of :meth:`fixed` in this version's code.

        Each setting of the features and of the network, so that a run is not gone on with by a
        version to which the same names mean something else.
        """
        from transformers import PreTrainedConfig

        network = self.network().to_dict()
        own = sorted(set(network) - set(PreTrainedConfig().to_dict()))
        return {
            **{f"features.{name}": value for name, value in sorted(extractor.to_dict().items())},
            **{f"network.{name}": network[name] for name in own},
        }

    def network(self) -> TimNetConfig:
        """The configuration of the network that is trained, but for its labels."""
        from .configuration_timnet import TimNetConfig

        return TimNetConfig(**{**self.recipe.config, **(self.config or {})})

    def fingerprint(self) -> str:
        """Short checksum of :meth:`fixed`, kept in every fold's JSON."""
        text = json.dumps(self.fixed(), sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


__all__ = ["SELECTIONS", "CrossValidationError", "Plan"]
