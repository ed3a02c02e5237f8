# SPDX-License-Identifier: Apache-2.0
"""Figures from the literature, once each, with where they come from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CORRECTED", "PUBLISHED", "Published"]


@dataclass(frozen=True)
class Published:
    """A figure from the literature.

    Attributes:
        corpus: Short name of the corpus.
        protocol: How test recordings were held out, as in ``PROTOCOL_TITLES``.
        system: What was evaluated.
        source: Where the figure is published.
        uar: Unweighted average recall in percent.
        war: Weighted average recall in percent, or None.
        approximate: The sources differ, or give one digit only.
    """

    corpus: str
    protocol: str
    system: str
    source: str
    uar: float
    war: float | None = None
    approximate: bool = False


def _rows(
    protocol: str, system: str, source: str, figures: dict[str, tuple[float, float | None]]
) -> tuple[Published, ...]:
    return tuple(
        Published(corpus, protocol, system, source, uar, war)
        for corpus, (uar, war) in figures.items()
    )


#: The published network as its authors evaluate it since its code was corrected.
CORRECTED = "TIM-Net, authors' corrected figures: last epoch"
_EMOBOX = "Ma et al., EmoBox, Interspeech 2024"
_OTHERS = "published by others"
_AUDEERING = "audEERING, notebook in w2v2-how-to"
PUBLISHED = (
    *_rows(
        "kfold",
        "TIM-Net, paper: best epoch chosen on the test fold",
        "Ye et al., ICASSP 2023",
        {
            "casia": (94.67, 94.67),
            "emodb": (95.17, 95.70),
            "emovo": (92.00, 92.00),
            "iemocap": (72.50, 71.65),
            "ravdess": (91.93, 92.08),
        },
    ),
    Published(
        "savee",
        "kfold",
        "TIM-Net, paper: best epoch chosen on the test fold",
        "Ye et al., ICASSP 2023",
        86.1,
        87.71,
        approximate=True,
    ),
    *_rows(
        "kfold",
        CORRECTED,
        "the paper's authors",
        {
            "casia": (91.08, 91.08),
            "emodb": (89.19, 90.28),
            "ravdess": (90.04, 90.07),
            "savee": (77.26, 79.36),
        },
    ),
    *_rows(
        "emobox",
        "best of ten self-supervised models, 95 M to 1.5 B parameters",
        _EMOBOX,
        {
            "casia": (59.58, None),
            "emodb": (92.58, None),
            "emovo": (57.82, None),
            "iemocap": (73.54, None),
            "ravdess": (75.32, None),
            "savee": (75.75, None),
        },
    ),
    *_rows(
        "emobox",
        "wav2vec 2.0 base, 95 M parameters",
        _EMOBOX,
        {
            "casia": (39.56, None),
            "emodb": (82.06, None),
            "emovo": (31.07, None),
            "iemocap": (58.27, None),
            "ravdess": (54.33, None),
            "savee": (44.89, None),
        },
    ),
    Published("emodb", "loso", "39 MFCC statistics + SVC", _OTHERS, 68.91),
    Published("emodb", "loso", "openSMILE ComParE, 6,373 features + SVC", _AUDEERING, 77.08),
    Published(
        "emodb", "loso", "openEAR + SVM, normalised for each speaker", _OTHERS, 84.6, None, True
    ),
    Published(
        "emodb",
        "loso",
        "wav2vec2-L-robust, 165 M, trained on emotion dimensions, frozen + SVC",
        _AUDEERING,
        93.38,
    ),
)
