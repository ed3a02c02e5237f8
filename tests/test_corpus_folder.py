# SPDX-License-Identifier: Apache-2.0
"""Own recordings: one sub-folder a class, or a metadata.csv."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from timnet_hf.corpora import CorpusError, load_folder


def record(path: Path, rate: int = 16_000, channels: int = 1, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, (rate // 10, channels))
    soundfile.write(path, noise, rate)
    return path


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes of two recordings, all of different format, rate and channels."""
    record(tmp_path / "sad/10.wav", 8_000)
    record(tmp_path / "sad/9.flac", 48_000, 2)
    record(tmp_path / "angry/b.ogg", 44_100)
    record(tmp_path / "angry/deep/down/a.mp3", 22_050)
    return tmp_path


def table(folder: Path, text: str) -> Path:
    for name in ("a.wav", "b.wav", "c.wav", "more/d.wav"):
        record(folder / name)
    (folder / "metadata.csv").write_text(text, "utf-8")
    return folder


def names(dataset) -> list[str]:
    return [Path(path).name for path in dataset["path"]]


def test_sub_folders_are_classes(classes) -> None:
    dataset = load_folder(classes)
    assert dataset.column_names == ["path", "audio", "label", "speaker", "sentence"]
    assert dataset.features["label"].names == ["angry", "sad"]
    assert names(dataset) == ["b.ogg", "a.mp3", "9.flac", "10.wav"]  # by class, then natural order
    assert list(dataset["label"]) == [0, 0, 1, 1]
    assert list(dataset["speaker"]) == [None] * 4
    assert dataset.features["audio"].decode is False


def test_other_files_do_not_disturb(classes) -> None:
    (classes / "README.txt").write_text("about")
    (classes / "sad/10.lab").write_text("labels")
    (classes / "sad/._10.wav").write_text("a shadow")
    record(classes / ".trash/x.wav")
    assert len(load_folder(classes)) == 4


def test_a_table_names_label_speaker_sentence_and_more(tmp_path) -> None:
    folder = table(
        tmp_path,
        "\ufefffile_name,label,speaker,sentence,room\n"
        "more/d.wav,angry,ann,hello,\n"
        'a.wav,sad,ben,"hello, you",kitchen\n'
        "b.wav,angry,,,hall\n",
    )
    dataset = load_folder(folder)
    assert names(dataset) == ["b.wav", "d.wav", "a.wav"]
    assert list(dataset["speaker"]) == [None, "ann", "ben"]
    assert list(dataset["sentence"]) == [None, "hello", "hello, you"]
    assert list(dataset["room"]) == ["hall", None, "kitchen"]


def test_labels_may_be_numbered_by_the_caller(classes) -> None:
    dataset = load_folder(classes, labels=["sad", "angry"])
    assert dataset.features["label"].names == ["sad", "angry"]
    assert list(dataset["label"]) == [1, 1, 0, 0]


def test_unknown_labels_are_named_with_their_files(classes) -> None:
    with pytest.raises(CorpusError, match=r"unknown labels 'sad'; known .*angry, calm.*9\.flac"):
        load_folder(classes, labels=["angry", "calm"])


def test_files_that_cannot_be_decoded_are_all_named(classes) -> None:
    (classes / "sad/bad.wav").write_text("no audio")
    (classes / "angry/empty.wav").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"2 recordings cannot be used") as error:
        load_folder(classes)
    assert "bad.wav" in str(error.value)
    assert "empty.wav: is empty" in str(error.value)


def test_one_class_is_too_few(tmp_path) -> None:
    record(tmp_path / "sad/a.wav")
    with pytest.raises(CorpusError, match="all recordings are 'sad'; .* two classes"):
        load_folder(tmp_path)


def test_an_empty_class_is_named(classes) -> None:
    (classes / "calm").mkdir()
    with pytest.raises(CorpusError, match="the class 'calm' is empty"):
        load_folder(classes)


def test_recordings_beside_the_classes_are_named(classes) -> None:
    record(classes / "lost.wav")
    with pytest.raises(CorpusError, match=r"lost\.wav in no class"):
        load_folder(classes)


def test_neither_layout_explains_both(tmp_path) -> None:
    record(tmp_path / "a.wav")
    with pytest.raises(CorpusError, match=r"sub-folder named after it, or list them in metadata"):
        load_folder(tmp_path)


def test_a_missing_folder_or_a_file_is_an_error(tmp_path) -> None:
    with pytest.raises(CorpusError, match="no such folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match="is not a folder"):
        load_folder(record(tmp_path / "a.wav"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it has nothing"),
        ("file,label\na.wav,sad\n", "must name the columns file_name and label"),
        ("file_name,label,label\n", "each column once"),
        ("file_name,label,path\n", "none path or audio"),
        ("file_name,label,ro\0m\na.wav,sad,x\n", "each column once|NUL"),
        ("file_name,label\n", "lists no recordings"),
        ("file_name,label\na.wav,sad\nb.wav\n", "line 3: not 2 values"),
        ("file_name,label\na.wav,sad,ann\n", "line 2: not 2 values"),
        ("file_name,label\na.wav, \n", "line 2: the label is empty"),
        ("file_name,label\n,sad\n", "line 2: the file_name is empty"),
        ("file_name,label\na.wav,sad\nx.wav,sad\ny.wav,sad\n", r"2 listed files are missing: .*x"),
        ("file_name,label\na.wav,sad\n./a.wav,angry\n", r"listed more than once: .*a\.wav"),
        ("file_name,label\nmore,sad\na.wav,angry\n", "more: is a folder"),
        ("file_name,label\na.wav,sad\nb.wav,sad\n", "all recordings are 'sad'"),
        ('file_name,label\n"a.wav"x,sad\n', "cannot be read as CSV"),
    ],
)
def test_bad_tables_are_refused_with_the_line_or_the_file(tmp_path, text, message) -> None:
    with pytest.raises(CorpusError, match=message):
        load_folder(table(tmp_path, text))


def test_a_table_in_another_encoding_is_refused(tmp_path) -> None:
    table(tmp_path, "")
    (tmp_path / "metadata.csv").write_bytes("file_name,label\na.wav,wütend\n".encode("latin-1"))
    with pytest.raises(CorpusError, match="as CSV in UTF-8"):
        load_folder(tmp_path)
