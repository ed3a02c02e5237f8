# SPDX-License-Identifier: Apache-2.0
"""Unweighted average recall (UAR) as an `evaluate` metric that loads from disk, offline."""

# `evaluate` reads the imports line by line before it runs this file: one import a line.
from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import recall_score

__all__ = ["Uar"]

_DESCRIPTION = """
Unweighted average recall (UAR): the recall of every class, averaged so that each class counts the
same however many recordings it has. Also known as unweighted accuracy (UA), macro recall and
balanced accuracy. Guessing, or always answering one class, scores 1 / (number of classes), so
unlike accuracy it cannot be raised by favouring frequent emotions. This is the usual headline
figure of speech emotion recognition.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `int`): Predicted class indices.
    references (`list` of `int`): True class indices, as many as there are predictions.
    sample_weight (`list` of `float`, *optional*): Weight of each item within its class; every
        class still counts the same. Defaults to equal weights.

Returns:
    uar (`float`): Between 0.0 and 1.0; higher is better.

A class that never occurs in `references` has no recall and is left out of the average: predicting
it is simply an error for the class it was predicted for. So a test fold that lacks a class is
scored on the classes it has. The figure is not adjusted for chance.

Raises:
    ValueError: No items, lengths that differ, or weights that are all zero.

Examples:
    Class 0 is found twice out of three, class 1 always.

    >>> import evaluate
    >>> from timnet_hf.metrics import metric_path
    >>> uar = evaluate.load(str(metric_path("uar")))
    >>> uar.compute(predictions=[0, 0, 1, 1], references=[0, 0, 0, 1])
    {'uar': 0.8333333333333333}

    Weights shift the balance within a class only.

    >>> uar.compute(
    ...     predictions=[0, 0, 1, 1], references=[0, 0, 0, 1], sample_weight=[1.0, 1.0, 2.0, 9.0]
    ... )
    {'uar': 0.75}
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
class Uar(evaluate.Metric):
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
                "sklearn.metrics.balanced_accuracy_score.html"
            ],
        )

    def _compute(
        self,
        predictions: list[int],
        references: list[int],
        sample_weight: list[float] | None = None,
    ) -> dict[str, Any]:
        if len(references) == 0:
            raise ValueError("uar: there are no items to score; pass at least one prediction.")
        if sample_weight is not None and not np.any(sample_weight):
            raise ValueError("uar: every sample_weight is zero; give some item a weight above 0.")
        # Restricting recall to the classes that occur is what balanced accuracy means; a class
        # whose items all weigh nothing has no recall either, hence nan, which the mean leaves out.
        score = recall_score(
            references,
            predictions,
            labels=np.unique(references),
            average="macro",
            sample_weight=sample_weight,
            zero_division=np.nan,
        )
        return {"uar": float(score)}
