# SPDX-License-Identifier: Apache-2.0
"""Folds: what each protocol promises, and what is refused before any training."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import ClassLabel, Dataset
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from timnet_hf.corpora import CORPORA, CorpusError, load_corpus
from timnet_hf.protocols import PROTOCOLS, ProtocolError, inner_folds, make_folds


def rows(labels, *, names=None, **columns) -> Dataset:
    names = names or [f"class{k}" for k in range(max(labels, default=0) + 1)]
    data = Dataset.from_dict({"label": list(labels), **{k: list(v) for k, v in columns.items()}})
    return data.cast_column("label", ClassLabel(names=names))


@pytest.fixture
def data() -> Dataset:
    """24 rows: 4 speakers × 3 sentences × 2 classes."""
    return rows(
        [row % 2 for row in range(24)],
        speaker=[f"s{row // 6}" for row in range(24)],
        sentence=[f"t{row // 2 % 3}" for row in range(24)],
        room=[["hall", "car", "studio"][row % 3] for row in range(24)],
    )


@pytest.fixture
def twins(tmp_path) -> Dataset:
    """The same, with files: rows 0 and 13 are one recording, as are rows 1, 2 and 23."""
    same = {13: 0, 2: 1, 23: 1}
    paths = []
    for row in range(24):
        noise = np.random.default_rng(same.get(row, row)).uniform(-0.5, 0.5, 200)
        soundfile.write(tmp_path / f"{row}.wav", noise, 8_000, subtype="FLOAT")
        paths.append(str(tmp_path / f"{row}.wav"))
    return rows(
        [row % 2 for row in range(24)],
        path=paths,
        speaker=[f"s{row // 6}" for row in range(24)],
        sentence=[f"t{row // 2 % 3}" for row in range(24)],
    )


def column(dataset: Dataset, name: str) -> np.ndarray:
    return np.array(dataset[name])


def assert_partition(folds, n_rows: int) -> None:
    """Every row is tested on once, and no fold trains on what it tests on."""
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(n_rows))
    assert len({fold.name for fold in folds}) == len(folds)
    for fold in folds:
        assert not set(fold.train) & set(fold.test)
        assert fold.train.dtype == fold.test.dtype == np.int64
        assert np.all(np.diff(fold.train) > 0)
        assert np.all(np.diff(fold.test) > 0)


# --- kfold ------------------------------------------------------------------------------------


def test_kfold_is_the_papers_split(data) -> None:
    folds = make_folds(data, "kfold", corpus="emodb", n_folds=4)
    expected = KFold(4, shuffle=True, random_state=46).split(np.arange(24))
    for fold, (train, test) in zip(folds, expected, strict=True):
        np.testing.assert_array_equal(fold.train, train)
        np.testing.assert_array_equal(fold.test, test)
    assert [fold.name for fold in folds] == ["fold-01", "fold-02", "fold-03", "fold-04"]


def test_kfold_takes_the_seed_of_the_corpus_unless_told_another(data) -> None:
    def tests(**arguments):
        folds = make_folds(data, "kfold", n_folds=3, **arguments)
        return [fold.test.tolist() for fold in folds]

    assert tests(corpus="emovo") == tests(seed=1) != tests(corpus="savee") == tests(seed=44)
    assert tests(corpus="emovo", seed=44) == tests(seed=44)
    assert tests() == tests(seed=0)


@given(st.integers(2, 40), st.integers(0, 2**31 - 1), st.integers(2, 10))
def test_kfold_partitions_any_rows(n_rows, seed, n_folds) -> None:
    data = rows([0, 1] * n_rows)
    try:
        folds = make_folds(data, "kfold", seed=seed, n_folds=n_folds)
    except ProtocolError:
        return  # chance left a class out of a training side
    assert_partition(folds, 2 * n_rows)


def test_identical_recordings_move_to_the_fold_of_the_first(twins) -> None:
    for seed in range(20):
        plain = make_folds(twins.remove_columns("path"), "kfold", seed=seed, n_folds=4)
        folds = make_folds(twins, "kfold", seed=seed, n_folds=4)
        assert_partition(folds, 24)
        of = {row: k for k, fold in enumerate(folds) for row in fold.test.tolist()}
        was = {row: k for k, fold in enumerate(plain) for row in fold.test.tolist()}
        assert of[13] == of[0] == was[0]
        assert of[2] == of[23] == of[1] == was[1]
        assert all(of[row] == was[row] for row in range(24) if row not in (13, 2, 23))


# --- folds with a meaning ---------------------------------------------------------------------


def test_loso_leaves_one_speaker_out(data) -> None:
    folds = make_folds(data, "loso")
    assert_partition(folds, 24)
    assert [fold.name for fold in folds] == ["speaker-s0", "speaker-s1", "speaker-s2", "speaker-s3"]
    for k, fold in enumerate(folds):
        assert set(column(data, "speaker")[fold.test]) == {f"s{k}"}
        assert len(fold.test) == 6


def test_loto_leaves_one_sentence_out(data) -> None:
    folds = make_folds(data, "loto")
    assert_partition(folds, 24)
    for k, fold in enumerate(folds):
        assert set(column(data, "sentence")[fold.test]) == {f"t{k}"}
        assert f"t{k}" not in column(data, "sentence")[fold.train]


@pytest.mark.parametrize("n_folds", [2, 3])
def test_group_keeps_the_values_of_any_column_together(data, n_folds) -> None:
    folds = make_folds(data, "group", group_by="room", n_folds=n_folds)
    assert_partition(folds, 24)
    assert len(folds) == n_folds
    for fold in folds:
        assert not set(column(data, "room")[fold.train]) & set(column(data, "room")[fold.test])


def test_group_takes_numbers_too(data) -> None:
    data = data.add_column("take", [row // 2 % 3 for row in range(24)])
    assert len(make_folds(data, "group", group_by="take", n_folds=3)) == 3


def test_names_of_folds_are_fit_for_files_and_unique() -> None:
    data = rows([0, 1] * 3, speaker=["a/b", "a/b", "a:b", "a:b", "10", "10"])
    names = [fold.name for fold in make_folds(data, "loso")]
    assert names[:2] == ["speaker-10", "speaker-a_b"]
    assert names[2].startswith("speaker-a_b-")

    spoken = ["早上好", "晚上好", "x" * 300]
    names = [
        fold.name for fold in make_folds(rows([0, 1] * 3, sentence=sorted(spoken * 2)), "loto")
    ]
    assert len(set(names)) == 3 and all(len(name) <= 80 for name in names)


@pytest.mark.parametrize(
    ("protocol", "key"), [("loso", "speaker"), ("loto", "sentence"), ("group", "speaker")]
)
def test_twins_of_test_recordings_are_not_trained_on(twins, protocol, key) -> None:
    folds = make_folds(twins, protocol, group_by="speaker", n_folds=4)
    assert_partition(folds, 24)
    for fold in folds:
        for same in ({0, 13}, {1, 2, 23}):
            assert not (same & set(fold.test.tolist()) and same & set(fold.train.tolist()))
    # The test sides keep their meaning; only the training sides shrink.
    plain = make_folds(twins.remove_columns("path"), protocol, group_by="speaker", n_folds=4)
    assert [f.test.tolist() for f in folds] == [f.test.tolist() for f in plain]
    assert sum(len(f.train) for f in folds) < sum(len(f.train) for f in plain)
    assert len(set(column(twins, key)[folds[0].test])) == 1


@pytest.mark.parametrize("protocol", ["loso", "loto", "group", "kfold"])
def test_folds_do_not_change_from_call_to_call(data, protocol) -> None:
    def again():
        folds = make_folds(data, protocol, group_by="room", n_folds=3)
        return [(fold.name, fold.train.tolist(), fold.test.tolist()) for fold in folds]

    assert again() == again()


# --- emobox -----------------------------------------------------------------------------------


def published(name: str) -> Dataset:
    """All recordings of a corpus, as far as their names go."""
    corpus = CORPORA[name]
    place = {"ravdess": "Actor_01/", "casia": ""}.get(name, "x/")
    paths = [f"/d/{place}{n}.wav" for fold in corpus.emobox_folds().values() for n in fold]
    parsed = sorted((corpus.parse(path) for path in paths), key=lambda u: (u.label, u.order))
    return rows(
        [corpus.labels.index(u.label) for u in parsed],
        names=list(corpus.labels),
        path=[u.path for u in parsed],
        speaker=[u.speaker for u in parsed],
    )


@pytest.mark.parametrize(
    ("name", "n_folds", "speakers_mix"),
    [
        ("casia", 4, False),
        ("emodb", 5, True),
        ("emovo", 6, False),
        ("ravdess", 6, False),
        ("savee", 4, False),
    ],
)
def test_emobox_folds_cover_the_corpus(name, n_folds, speakers_mix) -> None:
    data = published(name)
    assert len(data) == CORPORA[name].n_files
    folds = make_folds(data, "emobox", corpus=name)
    assert_partition(folds, len(data))
    assert len(folds) == n_folds
    speaker = column(data, "speaker")
    mixed = [bool(set(speaker[f.train]) & set(speaker[f.test])) for f in folds]
    assert mixed == [speakers_mix] * n_folds


def test_emobox_ignores_case(data) -> None:
    data = published("casia")
    shouted = [path.replace("zhaozuoxiang", "ZhaoZuoxiang") for path in data["path"]]
    other = rows(data["label"], names=list(CORPORA["casia"].labels), path=shouted)
    for one, two in zip(
        make_folds(data, "emobox", corpus="casia"),
        make_folds(other, "emobox", corpus="casia"),
        strict=True,
    ):
        np.testing.assert_array_equal(one.test, two.test)


def test_emobox_names_what_does_not_match() -> None:
    data = published("savee")
    with pytest.raises(ProtocolError, match=r"1 recordings of the emobox folds .*: dc_a01; load"):
        make_folds(data.filter(lambda p: "DC_a01" not in p, input_columns="path"), "emobox",
                   corpus="savee")  # fmt: skip
    paths = [path.replace("DC_a02", "DC_a99") for path in data["path"]]
    other = rows(data["label"], names=list(CORPORA["savee"].labels), path=paths)
    with pytest.raises(ProtocolError, match=r"1 recordings are in no emobox fold .*DC_a99\.wav"):
        make_folds(other, "emobox", corpus="savee")


def test_emobox_needs_a_corpus_that_has_such_folds(data) -> None:
    with pytest.raises(ProtocolError, match="say which one"):
        make_folds(data, "emobox")


def iemocap(count: int) -> Dataset:
    """So many recordings of five sessions with two voices each, as far as their names go."""
    numbers = range(count)
    dialogs = [f"Ses0{n % 5 + 1}F_impro01" for n in numbers]
    names = [f"{dialog}_{'FM'[n // 5 % 2]}{n:04d}" for n, dialog in enumerate(dialogs)]
    return rows(
        [n // 10 % 4 for n in numbers],
        names=list(CORPORA["iemocap"].labels),
        path=[
            f"/d/Session{n % 5 + 1}/sentences/wav/{dialogs[n]}/{name}.wav"
            for n, name in enumerate(names)
        ],
    )


def test_emobox_folds_of_iemocap_are_its_sessions() -> None:
    data = iemocap(CORPORA["iemocap"].n_files)
    folds = make_folds(data, "emobox", corpus="iemocap")
    assert_partition(folds, len(data))
    assert [fold.name for fold in folds] == [f"emobox-{n}" for n in range(1, 6)]
    paths = column(data, "path")
    for number, fold in enumerate(folds, start=1):
        assert {path.split("/")[2] for path in paths[fold.test]} == {f"Session{number}"}


def test_emobox_folds_of_a_part_of_iemocap_are_refused() -> None:
    with pytest.raises(ProtocolError, match="IEMOCAP are of 5531 recordings, the dataset has 40"):
        make_folds(iemocap(40), "emobox", corpus="iemocap")


def test_shipped_folds_are_those_of_the_reference_table(
    reference_dir, repository, tmp_path
) -> None:
    script = runpy.run_path(str(repository / "scripts/make_emobox_folds.py"))
    script["write_folds"](
        script["read_folds"](reference_dir / "emobox_test_folds.csv"), tmp_path / "folds.json"
    )
    shipped = Path(repository / "timnet_hf/data/emobox_folds.json")
    assert json.loads(shipped.read_text()) == json.loads((tmp_path / "folds.json").read_text())


# --- inner folds ------------------------------------------------------------------------------


def test_inner_folds_keep_speakers_together_and_to_the_training_side(data) -> None:
    for outer in make_folds(data, "loso"):
        folds = inner_folds(data, outer.train, 3)
        assert sorted(np.concatenate([f.test for f in folds])) == outer.train.tolist()
        for fold in folds:
            assert set(fold.train) | set(fold.test) == set(outer.train)
            speaker = column(data, "speaker")
            assert not set(speaker[fold.train]) & set(speaker[fold.test])


def test_inner_folds_are_as_many_as_there_are_speakers(data) -> None:
    assert len(inner_folds(data, np.arange(12), 5)) == 2


@pytest.mark.parametrize("speakers", [None, ["one"] * 20, [None] * 20, ["a", None] * 10])
def test_inner_folds_without_speakers_are_stratified(speakers) -> None:
    columns = {} if speakers is None else {"speaker": speakers}
    data = rows([0, 0, 0, 1] * 5, **columns)
    folds = inner_folds(data, np.arange(20), 5, seed=3)
    for fold in folds:
        assert np.bincount(column(data, "label")[fold.test]).tolist() == [3, 1]
    again = inner_folds(data, np.arange(20), 5, seed=3)
    assert [f.test.tolist() for f in folds] == [f.test.tolist() for f in again]
    assert len(inner_folds(data, np.arange(12), 5)) == 3  # three recordings of the rarest class


def test_inner_folds_look_at_no_other_row(data) -> None:
    train = make_folds(data, "loso")[1].train
    held_out = sorted(set(range(24)) - set(train.tolist()))
    poisoned = data.to_dict()
    for row in held_out:
        poisoned["speaker"][row], poisoned["label"][row] = "s0", 1 - poisoned["label"][row]
    other = rows(poisoned.pop("label"), **poisoned)
    for one, two in zip(inner_folds(data, train), inner_folds(other, train), strict=True):
        np.testing.assert_array_equal(one.train, two.train)
        np.testing.assert_array_equal(one.test, two.test)


def test_inner_folds_keep_twins_on_one_side(twins) -> None:
    for fold in inner_folds(twins, np.arange(24), 4):
        for same in ({0, 13}, {1, 2, 23}):
            assert not (same & set(fold.test.tolist()) and same & set(fold.train.tolist()))


def test_inner_folds_of_too_little_are_refused(data) -> None:
    for train, n_folds in ((np.arange(24), 1), (np.array([0, 2, 4]), 2), (np.array([0, 1, 2]), 2)):
        with pytest.raises(ProtocolError, match="inner folds of"):
            inner_folds(data, train, n_folds)


# --- refusals ---------------------------------------------------------------------------------


def test_an_unknown_protocol_or_corpus_is_refused(data) -> None:
    with pytest.raises(ProtocolError, match="unknown protocol 'lolo'; known are kfold, emobox"):
        make_folds(data, "lolo")
    with pytest.raises(CorpusError, match="unknown corpus"):
        make_folds(data, "kfold", corpus="nothing")


@pytest.mark.parametrize(("n_folds", "n_rows"), [(1, 24), (25, 24), (0, 24)])
def test_kfold_needs_as_many_rows_as_folds(data, n_folds, n_rows) -> None:
    with pytest.raises(ProtocolError, match=f"{n_rows} recordings cannot make {n_folds} folds"):
        make_folds(data, "kfold", n_folds=n_folds)


def test_fewer_groups_than_folds_are_refused(data) -> None:
    with pytest.raises(ProtocolError, match="4 values of 'speaker' cannot make 10 folds; ask for"):
        make_folds(data, "group", group_by="speaker")


def test_group_needs_a_column_that_is_there(data) -> None:
    with pytest.raises(ProtocolError, match="need a column .* label, speaker, sentence, room"):
        make_folds(data, "group")
    with pytest.raises(ProtocolError, match="no column 'day'"):
        make_folds(data, "group", group_by="day")


@pytest.mark.parametrize(("protocol", "key"), [("loso", "speaker"), ("loto", "sentence")])
def test_a_single_speaker_or_sentence_is_refused(protocol, key) -> None:
    with pytest.raises(ProtocolError, match=f"the only {key} is ann; leaving one out"):
        make_folds(rows([0, 1, 0, 1], **{key: ["ann"] * 4}), protocol)


def test_unknown_speakers_are_counted(data) -> None:
    partly = rows([0, 1, 0, 1], speaker=["ann", None, "ben", None])
    with pytest.raises(ProtocolError, match=r"speaker of 2 of 4 .* unknown \(rows 1, 3\)"):
        make_folds(partly, "loso")
    with pytest.raises(ProtocolError, match="no column 'speaker'"):
        make_folds(rows([0, 1]), "loso")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_empty_class_is_refused(data, protocol) -> None:
    broken = data.cast_column("label", ClassLabel(names=["calm", "sad", "wild"]))
    with pytest.raises(ProtocolError, match="classes without a recording: wild"):
        make_folds(broken, protocol, corpus="emodb", group_by="room", n_folds=3)


def test_a_single_class_is_refused() -> None:
    with pytest.raises(ProtocolError, match="the only class is calm"):
        make_folds(rows([0, 0, 0], names=["calm"]), "kfold", n_folds=2)


def test_speakers_that_differ_in_case_alone_get_files_that_do_not() -> None:
    folds = make_folds(rows([0, 1] * 3, speaker=["Ann", "Ann", "ann", "ann", "Bo", "Bo"]), "loso")
    assert len({fold.name.casefold() for fold in folds}) == 3


def test_a_class_that_only_the_test_side_has_is_refused() -> None:
    data = rows([0, 0, 1, 0, 1, 2], names=["calm", "sad", "wild"], speaker=list("aabbcc"))
    with pytest.raises(ProtocolError, match="speaker-c: all recordings of wild are on the test"):
        make_folds(data, "loso")


def test_a_class_that_a_test_side_lacks_is_fine() -> None:
    data = rows([0, 1, 0, 1, 0, 0], speaker=list("aabbcc"))
    assert len(make_folds(data, "loso")) == 3


def test_copies_that_leave_a_fold_empty_are_refused(tmp_path) -> None:
    paths = [str(tmp_path / f"{number}.wav") for number in range(12)]
    for number, path in enumerate(paths):
        soundfile.write(path, np.full(100, 0.01 * (1 + number)), 8_000)
    first, second, _ = make_folds(rows([0, 1] * 6, path=paths), "kfold", n_folds=3)
    for row, twin in zip(second.test, first.test, strict=True):
        paths[row] = paths[twin]
    with pytest.raises(ProtocolError, match=r"fold-0[12] has nothing to test on"):
        make_folds(rows([0, 1] * 6, path=paths), "kfold", n_folds=3)


def test_labels_must_be_classes() -> None:
    with pytest.raises(ProtocolError, match="no column 'label' of type ClassLabel"):
        make_folds(Dataset.from_dict({"label": ["a", "b"]}), "kfold", n_folds=2)
    unlabelled = rows([0, 1, None, 1], names=["a", "b"])
    with pytest.raises(ProtocolError, match="rows without a label: 2"):
        make_folds(unlabelled, "kfold", n_folds=2)


# --- the real recordings ----------------------------------------------------------------------


def test_real_emodb(emodb_dir) -> None:
    data = load_corpus("emodb", emodb_dir)
    folds = make_folds(data, "kfold", corpus="emodb")
    for fold, (_, test) in zip(
        folds, KFold(10, shuffle=True, random_state=46).split(np.arange(535)), strict=True
    ):
        np.testing.assert_array_equal(fold.test, test)
    for protocol, n_folds in (("emobox", 5), ("loso", 10), ("loto", 10)):
        folds = make_folds(data, protocol, corpus="emodb")
        assert len(folds) == n_folds
        assert_partition(folds, 535)


def test_real_ravdess_keeps_its_identical_pair_together(ravdess_dir) -> None:
    data = load_corpus("ravdess", ravdess_dir)
    pair = [k for k, p in enumerate(data["path"]) if "03-01-03-01-02-0" in p and "-07." in p]
    assert len(pair) == 2
    for seed in (None, 1, 2, 3):
        folds = make_folds(data, "kfold", corpus="ravdess", seed=seed)
        assert_partition(folds, 1440)
        assert any(set(pair) <= set(fold.test.tolist()) for fold in folds)
    folds = make_folds(data, "emobox", corpus="ravdess")
    assert [len(fold.test) for fold in folds] == [240] * 6
    assert len(make_folds(data, "loso")) == 24
