# SPDX-License-Identifier: Apache-2.0
"""Scores and figures: each recording's own answer, and metrics that agree with scikit-learn."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from timnet_hf import TimNetFeatureExtractor, evaluation
from timnet_hf.evaluation import BestOnTest, LastEpochs, score, softmax, tsne, uar, war
from timnet_hf.metrics import load_metric
from timnet_hf.speaker_timnet import blend, logit_offset, make_profile
from timnet_hf.training import Trained, build_arguments, train

from .tiny_training import same_weights, tiny_recipe, tiny_store

STORE = tiny_store(gap=0.5)
TRAIN, TEST = [0, 1, 2, 4, 5, 6, 8, 9, 10], [3, 7, 11]


def trained(folder: Path, *callbacks: BestOnTest | LastEpochs) -> Trained:
    recipe = tiny_recipe(num_train_epochs=4)
    arguments = build_arguments(recipe, folder, seed=0)
    extractor = TimNetFeatureExtractor()
    return train(STORE, TRAIN, recipe, extractor, arguments, callbacks=callbacks)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("model"))


class TestScore:
    def test_gives_each_recording_its_own_answer_in_the_order_asked_for(
        self, model: Trained
    ) -> None:
        rows = [11, 0, 5, 3, 8]

        logits, fused = score(model.model, model.extractor, STORE, rows, batch_size=2)

        assert logits.shape == (5, 3)
        assert fused.shape == (5, model.model.config.pooled_size)
        for index, row in enumerate(rows):
            values = model.extractor.normalize(torch.from_numpy(STORE.original[row]))
            with torch.inference_mode():
                alone = model.model(values[None]).logits[0].numpy()
            np.testing.assert_allclose(logits[index], alone, atol=1e-5)
        classifier = model.model.classifier
        with torch.inference_mode():
            np.testing.assert_allclose(
                logits, classifier(torch.from_numpy(fused)).numpy(), atol=1e-5
            )

    def test_switches_dropout_off(self, model: Trained) -> None:
        model.model.train()

        one, other = (score(model.model, model.extractor, STORE, TEST)[0] for _ in range(2))

        np.testing.assert_array_equal(one, other)

    def test_looks_at_no_other_recording(self, model: Trained) -> None:
        alone, _ = score(model.model, model.extractor, STORE, [3])
        together, _ = score(model.model, model.extractor, STORE, range(12))

        np.testing.assert_allclose(together[3], alone[0], atol=1e-5)


def test_enrolled_recordings_put_features_and_answers_right(model: Trained) -> None:
    rows, enrolled = [3, 7], [3, 7, 11]
    profile = make_profile("a", [STORE.original[row] for row in enrolled], {})
    mean, std = blend(profile, model.extractor.mean or (), model.extractor.std or ())
    adapted = copy.deepcopy(model.extractor)
    adapted.mean, adapted.std = mean.tolist(), std.tolist()
    usual = score(model.model, adapted, STORE, enrolled)[0].mean(0)

    logits, _ = score(model.model, model.extractor, STORE, rows, enrolled=enrolled)

    plain, _ = score(model.model, adapted, STORE, rows)
    np.testing.assert_allclose(logits, plain + logit_offset(usual, 3), atol=1e-5)


class TestBestOnTest:
    def test_is_never_below_the_last_epoch(self, tmp_path: Path) -> None:
        watcher = BestOnTest(STORE, TEST)

        result = trained(tmp_path, watcher)

        last, _ = score(result.model, result.extractor, STORE, TEST)
        assert watcher.best >= war(STORE.labels[TEST], last.argmax(1))
        assert watcher.best == war(STORE.labels[TEST], watcher.logits.argmax(1))

    def test_keeps_the_first_of_the_best_epochs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        labels = STORE.labels[TEST]
        right = np.eye(3)[labels].astype(np.float32)
        half = right.copy()
        half[0] = right[1]
        epochs = iter([half, right, 2 * right, half])
        monkeypatch.setattr(evaluation, "score", lambda *_: (next(epochs), None))
        network, loader = torch.nn.Linear(1, 1), SimpleNamespace(dataset=SimpleNamespace())
        loader.dataset.extractor = None
        watcher = BestOnTest(STORE, TEST)

        for _ in range(4):
            network.eval()
            watcher.on_epoch_end(None, None, None, model=network, train_dataloader=loader)
            assert network.training  # the training goes on

        assert watcher.best == 100.0
        np.testing.assert_array_equal(watcher.logits, right)

    def test_only_watches(self, model: Trained, tmp_path: Path) -> None:
        watched = trained(tmp_path, BestOnTest(STORE, TEST))

        assert same_weights(watched.model, model.model)


class TestLastEpochs:
    def test_keeps_the_answers_of_the_last_epochs_and_only_watches(
        self, model: Trained, tmp_path: Path
    ) -> None:
        watcher = LastEpochs(STORE, TEST, epochs=3)

        result = trained(tmp_path, watcher)

        assert len(watcher.predictions) == 3  # of four epochs
        logits, _ = score(result.model, result.extractor, STORE, TEST)
        assert watcher.predictions[-1] == logits.argmax(1).tolist()
        assert same_weights(result.model, model.model)


class TestFigures:
    @given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40))
    def test_agree_with_scikit_learn(self, pairs: list[tuple[int, int]]) -> None:
        references, predictions = (np.array(values) for values in zip(*pairs, strict=True))
        known = np.isin(predictions, references)  # scikit-learn warns of the others

        assert war(references, predictions) == pytest.approx(
            100 * accuracy_score(references, predictions)
        )
        if known.all() and len(set(references)) > 1:
            assert uar(references, predictions) == pytest.approx(
                100 * balanced_accuracy_score(references, predictions)
            )

    def test_agree_with_the_metrics_that_go_to_the_hub(self) -> None:
        references, predictions = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 0, 1, 1, 4, 2])

        for name, function in (("uar", uar), ("war", war)):
            metric = load_metric(name)
            expected = metric.compute(references=references, predictions=predictions)[name]
            assert function(references, predictions) == pytest.approx(100 * expected)

    def test_a_label_that_is_not_tested_does_not_count(self) -> None:
        assert uar(np.array([0, 0, 1]), np.array([0, 2, 1])) == 75.0

    def test_softmax_by_hand(self) -> None:
        logits = np.log([[1.0, 3.0], [2.0, 2.0]])

        np.testing.assert_allclose(softmax(logits), [[0.25, 0.75], [0.5, 0.5]])
        np.testing.assert_allclose(softmax(logits, temperature=0.5)[0], [0.1, 0.9])

    def test_softmax_stands_large_logits(self) -> None:
        np.testing.assert_allclose(softmax(np.array([[1e4, 0.0]])), [[1.0, 0.0]])


def test_the_map_of_fused_vectors_is_the_same_every_time() -> None:
    vectors = np.random.default_rng(0).standard_normal((12, 6))

    one, other = tsne(vectors), tsne(vectors)

    assert one.shape == (12, 2)
    np.testing.assert_array_equal(one, other)
