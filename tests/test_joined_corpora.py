# SPDX-License-Identifier: Apache-2.0
"""Corpora joined under one set of labels, and one corpus judging a model of another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset

from timnet_hf.crossvalidation import CrossValidationError
from timnet_hf.experiment import Data
from timnet_hf.joined_corpora import cross_corpus_fold, join_corpora


def corpus(name: str, labels: list[str], spoken: list[str]) -> Data:
    paths = [f"{name}/{row}.wav" for row in range(len(spoken))]
    dataset = Dataset.from_dict(
        {
            "path": paths,
            "audio": paths,
            "label": [labels.index(label) for label in spoken],
            "speaker": [str(row % 2) for row in range(len(spoken))],
            "sentence": [None] * len(spoken),
        }
    )
    dataset = dataset.cast_column("label", ClassLabel(names=labels))
    return Data(name, (), dataset.cast_column("audio", Audio(decode=False)), f"sum of {name}")


@pytest.fixture
def berlin():
    labels = ["angry", "boredom", "neutral"]
    return corpus("berlin", labels, ["neutral", "angry", "boredom", "angry"])


@pytest.fixture
def toronto():
    labels = ["neutral", "calm", "angry"]
    return corpus("toronto", labels, ["calm", "angry", "neutral"])


def named(data: Data) -> list[str]:
    names = data.dataset.features["label"].names
    return [names[label] for label in data.dataset["label"]]


def test_joined_corpora_have_the_union_of_labels_and_every_recording(berlin, toronto):
    joined = join_corpora([berlin, toronto])
    assert joined.name == "berlin-toronto" and joined.corpus is None
    assert joined.dataset.features["label"].names == ["angry", "boredom", "calm", "neutral"]
    spoken = ["neutral", "angry", "boredom", "angry", "calm", "angry", "neutral"]
    assert named(joined) == spoken
    assert (
        joined.dataset["path"][0] == "berlin/0.wav" and joined.dataset["path"][4] == "toronto/0.wav"
    )


def test_speakers_of_different_corpora_stay_different(berlin, toronto):
    speakers = join_corpora([berlin, toronto]).dataset["speaker"]
    assert set(speakers) == {"berlin:0", "berlin:1", "toronto:0", "toronto:1"}


def test_cross_corpus_learns_from_one_and_is_judged_on_the_other(berlin, toronto):
    joined, fold = cross_corpus_fold(berlin, toronto)
    assert fold.name == "to-toronto"
    assert named(joined) == ["neutral", "angry", "angry", "angry", "neutral"]
    assert fold.train.tolist() == [0, 1, 2] and fold.test.tolist() == [3, 4]
    assert all(joined.dataset["path"][row].startswith("toronto") for row in fold.test)


def test_checksums_tell_orders_and_contents_apart(berlin, toronto):
    changed = replace(berlin, sha256="sum of other recordings")
    pairs = ([berlin, toronto], [toronto, berlin], [changed, toronto])
    assert len({join_corpora(pair).sha256 for pair in pairs}) == 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (corpus("berlin", ["angry", "neutral"], ["angry", "neutral"]), "same corpus twice"),
        (corpus("far", ["angry", "joy"], ["angry", "joy"]), "fewer than two labels"),
        (corpus("thin", ["angry", "neutral"], ["angry"]), "thin: no recording of neutral"),
    ],
)
def test_corpora_that_cannot_be_compared_are_refused(berlin, other, message):
    with pytest.raises(CrossValidationError, match=message):
        cross_corpus_fold(berlin, other)


def test_real_corpora_share_six_labels(shared_dir):
    from timnet_hf.experiment import load_data

    emodb, ravdess = (load_data(shared_dir / "data", name) for name in ("emodb", "ravdess"))
    joined, fold = cross_corpus_fold(emodb, ravdess)
    names = joined.dataset.features["label"].names
    assert names == ["angry", "disgust", "fear", "happy", "neutral", "sad"]
    labels = np.asarray(joined.dataset["label"])
    assert len(fold.train) == 535 - 81 and np.bincount(labels[fold.test]).min() == 96


def test_a_recording_that_both_hold_is_not_learned_from(tmp_path):
    def spoken(name: str, levels: list[float]) -> Data:
        made = corpus(name, ["angry", "neutral"], ["angry", "neutral"] * (len(levels) // 2))
        for path, level in zip(made.dataset["path"], levels, strict=True):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            soundfile.write(tmp_path / path, np.full(1600, level), 16_000)
        paths = [str(tmp_path / path) for path in made.dataset["path"]]
        dataset = made.dataset.remove_columns("audio").add_column("audio", paths)
        return Data(name, (), dataset.cast_column("audio", Audio(decode=False)), name)

    _, fold = cross_corpus_fold(
        spoken("berlin", [0.1, 0.2, 0.3, 0.4]), spoken("toronto", [0.5, 0.2])
    )
    assert fold.train.tolist() == [0, 2, 3] and fold.test.tolist() == [4, 5]
