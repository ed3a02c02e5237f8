# SPDX-License-Identifier: Apache-2.0
"""Weighted average recall (WAR) as an `evaluate` metric that loads from disk, offline."""

# `evaluate` reads the imports line by line before it runs this file: one import a line.
from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score

__all__ = ["War"]

_DESCRIPTION = """
Weighted average recall (WAR): the recall of every class, averaged in proportion to how many
recordings the class has. That is plain accuracy, the share of recordings that were named correctly
(also called weighted accuracy, WA, in speech emotion recognition). On a corpus with unequal
classes it favours the frequent ones: read it beside the unweighted average recall (UAR).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `int`): Predicted class indices.
    references (`list` of `int`): True class indices, as many as there are predictions.
    sample_weight (`list` of `float`, *optional*): Weight of each item. Defaults to equal weights.

Returns:
    war (`float`): Between 0.0 and 1.0; higher is better.

Raises:
    ValueError: No items, lengths that differ, or weights that are all zero.

Examples:
    Three of four are right.

    >>> import evaluate
    >>> from timnet_hf.metrics import metric_path
    >>> war = evaluate.load(str(metric_path("war")))
    >>> war.compute(predictions=[0, 0, 1, 1], references=[0, 0, 0, 1])
    {'war': 0.75}

    With weights, the wrong one counts as much as two.

    >>> war.compute(
    ...     predictions=[0, 0, 1, 1], references=[0, 0, 0, 1], sample_weight=[1.0, 1.0, 2.0, 1.0]
    ... )
    {'war': 0.6}
"""

_CITATION = """
@inproceedings{schuller2009interspeech,
  title     = {The {INTERSPEECH} 2009 Emotion Challenge},
  author    = {Schuller, Bj{\\"o}rn and Steidl, Stefan and Batliner, Anton},
  booktitle = {Proc. Interspeech},
  pages     = {312--315},
  year      = {2009}
}
@article{scikit-learn,
  title   = {Scikit-learn: Machine Learning in {P}ython},
  author  = {Pedregosa, F. and Varoquaux, G. and Gramfort, A. and Michel, V. and Thirion, B. and
             Grisel, O. and Blondel, M. and Prettenhofer, P. and Weiss, R. and Dubourg, V. and
             Vanderplas, J. and Passos, A. and Cournapeau, D. and Brucher, M. and Perrot, M. and
             Duchesnay, E.},
  journal = {Journal of Machine Learning Research},
  volume  = {12},
  pages   = {2825--2830},
  year    = {2011}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class War(evaluate.Metric):
    """The metric `evaluate` finds in this file."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "references": datasets.Value("int64"),
                }
            ),
            license="Apache-2.0",
            reference_urls=[
                "https://scikit-learn.org/stable/modules/generated/"
                "sklearn.metrics.accuracy_score.html"
            ],
        )

    def _compute(
        self,
        predictions: list[int],
        references: list[int],
        sample_weight: list[float] | None = None,
    ) -> dict[str, Any]:
        if len(references) == 0:
            raise ValueError("war: there are no items to score; pass at least one prediction.")
        if sample_weight is not None and not np.any(sample_weight):
            raise ValueError("war: every sample_weight is zero; give some item a weight above 0.")
        return {"war": float(accuracy_score(references, predictions, sample_weight=sample_weight))}
