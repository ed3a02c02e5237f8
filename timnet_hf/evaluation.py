# SPDX-License-Identifier: Apache-2.0
"""Scoring recordings with a trained network, and the figures of a report."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from .feature_extraction_timnet import TimNetFeatureExtractor
from .feature_store import FeatureStore
from .modeling_timnet import TimNetForAudioClassification
from .speaker_timnet import blend, logit_offset, make_profile
from .training_steps import RecordingSet, Rows, collate


def score(
    model: TimNetForAudioClassification,
    extractor: TimNetFeatureExtractor,
    store: FeatureStore,
    indices: Rows,
    batch_size: int = 64,
    enrolled: Rows | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (recordings, num_labels) and fused vectors (recordings, pooled_size), in order.

    Recordings of like length share a batch, so little is spent on padding.

    Args:
        model: The network.
        extractor: With the training statistics.
        store: Features of the corpus.
        indices: The recordings to score.
        batch_size: Recordings scored at once.
        enrolled: Recordings of the same speaker, to take the voice out by; None for none. Their
            labels are not looked at.
    """
    if enrolled is not None:
        profile = make_profile("speaker", [store.original[row] for row in enrolled], {})
        mean, std = blend(profile, extractor.mean or (), extractor.std or ())
        extractor = copy.deepcopy(extractor)
        extractor.mean, extractor.std = mean.tolist(), std.tolist()
        usual, _ = score(model, extractor, store, enrolled, batch_size)
        logits, fused = score(model, extractor, store, indices, batch_size)
        offset = logit_offset(usual.mean(0), len(enrolled)).astype(np.float32)
        return logits + offset, fused
    recordings = RecordingSet(store, indices, extractor)
    order = sorted(
        range(len(recordings)), key=lambda item: recordings[item]["input_values"].shape[0]
    )
    logits = np.zeros((len(order), int(model.config.num_labels or 0)), dtype=np.float32)
    fused = np.zeros((len(order), model.config.pooled_size), dtype=np.float32)
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            items = order[start : start + batch_size]
            batch = collate([recordings[item] for item in items])
            outputs = model.timnet(batch["input_values"], batch.get("attention_mask"))
            fused[items] = outputs.pooler_output.float().numpy()
            logits[items] = model.classifier(outputs.pooler_output).float().numpy()
    return logits, fused


class BestOnTest(TrainerCallback):
    """Remembers the logits of the epoch that scores best on the test fold.

    This is how the paper's first figures were chosen. It leaks: it is here to show by how much.
    """

    def __init__(self, store: FeatureStore, test: Rows):
        self.store = store
        self.test = test
        self.best = -1.0
        self.logits = np.empty((0, 0), dtype=np.float32)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score the test fold with the model as it now stands."""
        extractor = kwargs["train_dataloader"].dataset.extractor
        logits, _ = score(kwargs["model"], extractor, self.store, self.test)
        kwargs["model"].train()
        value = war(self.store.labels[np.asarray(self.test)], logits.argmax(1))
        if value > self.best:
            self.best, self.logits = value, logits


class LastEpochs(TrainerCallback):
    """Keeps what the model says of some recordings after each of the last epochs.

    It shows how much a result depends on the epoch a training happened to end with. Nothing is
    chosen by it.
    """

    def __init__(self, store: FeatureStore, rows: Rows, epochs: int = 10):
        self.store = store
        self.rows = rows
        self.epochs = epochs
        self.predictions: list[list[int]] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score the recordings with the model as it now stands."""
        if state.epoch <= state.num_train_epochs - self.epochs + 0.5:
            return
        extractor = kwargs["train_dataloader"].dataset.extractor
        logits, _ = score(kwargs["model"], extractor, self.store, self.rows)
        kwargs["model"].train()
        self.predictions.append(logits.argmax(1).tolist())


def tsne(vectors: np.ndarray) -> np.ndarray:
    """A map (recordings, 2) of the fused vectors, neighbours near each other."""
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(vectors)
    perplexity = min(30.0, (len(scaled) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(scaled)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities along the last axis, from logits divided by ``temperature``."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(-1, keepdims=True))
    return scaled / scaled.sum(-1, keepdims=True)


def uar(references: np.ndarray, predictions: np.ndarray) -> float:
    """Unweighted average recall in percent, over the labels present in ``references``."""
    from sklearn.metrics import recall_score

    return 100 * float(
        recall_score(
            references, predictions, average="macro", labels=np.unique(references), zero_division=0
        )
    )


def war(references: np.ndarray, predictions: np.ndarray) -> float:
    """Weighted average recall, which is accuracy, in percent."""
    return 100 * float(np.mean(np.asarray(references) == np.asarray(predictions)))


__all__ = ["BestOnTest", "LastEpochs", "score", "softmax", "tsne", "uar", "war"]
