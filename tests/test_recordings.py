# SPDX-License-Identifier: Apache-2.0
"""Recordings as dataset rows: equal content, checksums, names."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset

from timnet_hf.audio import AudioError
from timnet_hf.corpora import CorpusError
from timnet_hf.recordings import (
    content_of,
    dataset_checksum,
    identical_recordings,
    make_dataset,
    relative_names,
)


@pytest.fixture
def sound() -> np.ndarray:
    return np.random.default_rng(0).integers(-9000, 9000, 4000, dtype=np.int16)


def dataset_of(paths: list[Path]) -> Dataset:
    texts = [str(path) for path in paths]
    nothing = [None] * len(texts)
    return make_dataset(texts, ["a"] * len(texts), nothing, nothing, names=["a", "b"])


def test_equal_samples_are_one_recording_whatever_the_container(tmp_path, sound) -> None:
    soundfile.write(tmp_path / "a.wav", sound, 16_000)
    soundfile.write(tmp_path / "b.flac", sound, 16_000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([sound, sound], axis=1), 16_000)
    soundfile.write(tmp_path / "rate.wav", sound, 8_000)
    soundfile.write(tmp_path / "other.wav", sound[::-1], 16_000)
    paths = [tmp_path / n for n in ("other.wav", "a.wav", "rate.wav", "b.flac", "stereo.wav")]
    assert identical_recordings(dataset_of(paths)) == [[1, 3, 4]]


def test_content_is_read_anew_when_the_file_changes(tmp_path, sound) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sound, 16_000)
    before = content_of(str(path))
    soundfile.write(path, sound[:-1], 16_000)
    assert content_of(str(path)).digest != before.digest


def test_content_in_memory_equals_the_file(tmp_path, sound) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sound, 16_000)
    assert content_of(path.read_bytes()) == content_of(str(path))
    embedded = Dataset.from_dict(
        {"audio": [{"bytes": path.read_bytes(), "path": None}, {"bytes": None, "path": str(path)}]}
    ).cast_column("audio", Audio())
    assert identical_recordings(embedded) == [[0, 1]]


def test_a_wav_that_ends_early_is_a_problem_and_a_streamed_one_is_not(tmp_path, sound) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sound, 16_000)
    whole = path.read_bytes()
    assert content_of(str(path)).problem is None
    path.write_bytes(whole[:-1000])
    assert content_of(str(path)).problem == (
        f"{path}: cut short, 1000 of 8000 bytes of samples are missing"
    )
    path.write_bytes(whole.replace(struct.pack("<I", 8000), b"\xff" * 4))
    assert content_of(str(path)).problem is None


def test_a_flac_that_ends_early_is_a_problem(tmp_path, sound) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.tile(sound, 10), 16_000)
    path.write_bytes(path.read_bytes()[:-9000])
    assert "a.flac" in (content_of(str(path)).problem or "")


def test_unreadable_rows_are_no_twins(tmp_path) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"the same text")
    paths = [tmp_path / n for n in ("a.wav", "b.wav", "missing.wav", "missing.wav")]
    assert identical_recordings(dataset_of(paths)) == []
    with pytest.raises(AudioError, match=r"missing\.wav: no such file"):
        content_of(str(tmp_path / "missing.wav"))


def test_checksum_is_what_sha256sum_says_wherever_the_files_lie(tmp_path) -> None:
    lines = ""
    for folder in ("here", "there/deep"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("10.wav", "2.wav", "B.wav", "a.wav"):
            (tmp_path / folder / name).write_bytes(name.encode())
    for name in ("10.wav", "2.wav", "B.wav", "a.wav"):  # as the C locale sorts them
        lines += f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n"
    expected = hashlib.sha256(lines.encode()).hexdigest()
    for folder in ("here", "there/deep"):
        shuffled = [tmp_path / folder / n for n in ("a.wav", "10.wav", "B.wav", "2.wav")]
        assert dataset_checksum(dataset_of(shuffled)) == expected


def test_checksum_sees_names_and_content(tmp_path) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"1")
    first = dataset_checksum(dataset_of([tmp_path / "a.wav", tmp_path / "b.wav"]))
    (tmp_path / "b.wav").rename(tmp_path / "c.wav")
    renamed = dataset_checksum(dataset_of([tmp_path / "a.wav", tmp_path / "c.wav"]))
    (tmp_path / "c.wav").write_bytes(b"2")
    changed = dataset_checksum(dataset_of([tmp_path / "a.wav", tmp_path / "c.wav"]))
    assert len({first, renamed, changed}) == 3


def test_checksum_names_a_file_that_is_gone(tmp_path) -> None:
    with pytest.raises(CorpusError, match=r"gone\.wav: cannot be read \(No such file"):
        dataset_checksum(dataset_of([tmp_path / "gone.wav"]))


def test_names_are_relative_to_the_deepest_common_folder() -> None:
    data = Dataset.from_dict({"path": ["/x/y/a/1.wav", "/x/y/b/2.wav"]})
    assert relative_names(data) == ["a/1.wav", "b/2.wav"]
    assert relative_names(data.select([0])) == ["1.wav"]
    assert relative_names(data.select([])) == []


def test_a_name_that_is_not_text_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"not valid UTF-8; rename the file"):
        make_dataset(["a\udcff.wav"], ["a"], [None], [None], names=["a"])
