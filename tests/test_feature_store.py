# SPDX-License-Identifier: Apache-2.0
"""The features of a corpus: the extractor's own, at every speed, with every bad file named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from timnet_hf import TimNetFeatureExtractor, load_audio
from timnet_hf.audio import AudioError
from timnet_hf.corpora import load_folder
from timnet_hf.feature_store import FeatureStore, compute_features

from .tiny_training import tiny_store, write_recordings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("own"), per_class=2, seconds=0.5, metadata=True)


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return load_folder(folder)


@pytest.fixture(scope="module")
def store(dataset: Dataset) -> FeatureStore:
    return compute_features(dataset, TimNetFeatureExtractor(trim_db=None), (0.8, 1.25))


class TestComputeFeatures:
    def test_gives_what_the_extractor_gives(self, dataset: Dataset, store: FeatureStore) -> None:
        extractor = TimNetFeatureExtractor(trim_db=None)

        for row, path in enumerate(dataset["path"]):
            expected = extractor.extract(load_audio(path, 16_000)).numpy()
            np.testing.assert_array_equal(store.original[row], expected)

    def test_keeps_the_rows_in_the_order_of_the_dataset(
        self, dataset: Dataset, store: FeatureStore
    ) -> None:
        assert len(store) == 4
        assert store.paths == list(dataset["path"])
        assert store.labels.tolist() == [0, 0, 1, 1]
        assert store.label_names == ["angry", "happy"]
        assert store.speakers == ["a", "b", "a", "b"]

    def test_always_has_the_recordings_own_speed(self, store: FeatureStore) -> None:
        assert sorted(store.features) == [0.8, 1.0, 1.25]

    def test_faster_is_shorter_and_higher(self, store: FeatureStore) -> None:
        frames = {speed: len(values[0]) for speed, values in store.features.items()}

        assert frames == {0.8: 32, 1.0: 26, 1.25: 21}  # 0.5 s at 50 frames a second
        assert not np.allclose(store.features[1.25][0][10], store.features[0.8][0][10], atol=1)

    def test_leaves_normalisation_to_the_training(self, dataset: Dataset) -> None:
        plain = TimNetFeatureExtractor()
        trained = TimNetFeatureExtractor(mean=[5.0] * 39, std=[2.0] * 39)

        one, other = compute_features(dataset, plain), compute_features(dataset, trained)

        for left, right in zip(one.original, other.original, strict=True):
            np.testing.assert_array_equal(left, right)

    def test_tells_how_far_it_is(self, dataset: Dataset) -> None:
        seen: list[tuple[int, int]] = []

        compute_features(dataset, TimNetFeatureExtractor(), progress=lambda *now: seen.append(now))

        assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def test_names_every_recording_that_cannot_be_used(self, tmp_path: Path) -> None:
        folder = write_recordings(tmp_path)
        dataset = load_folder(folder)
        (folder / "angry" / "1.wav").write_bytes(b"")
        (folder / "happy" / "2.wav").unlink()

        with pytest.raises(AudioError) as caught:
            compute_features(dataset, TimNetFeatureExtractor())

        message = str(caught.value)
        assert message.startswith("2 of 8 recordings cannot be used")
        assert str(Path("angry", "1.wav")) in message
        assert str(Path("happy", "2.wav")) in message
        assert "0.wav" not in message


class TestStatistics:
    def test_are_those_of_the_given_recordings_frames(self) -> None:
        store = tiny_store()

        mean, std = store.statistics([0, 5])

        frames = np.concatenate([store.original[0], store.original[5]])
        np.testing.assert_allclose(mean, frames.mean(0), atol=1e-6)
        np.testing.assert_allclose(std, frames.std(0), atol=1e-6)

    def test_a_constant_coefficient_can_still_be_divided_by(self) -> None:
        store = tiny_store()
        for frames in store.original:
            frames[:, 7] = 3.0

        _, std = store.statistics(range(len(store)))

        assert std[7] == 1e-6
