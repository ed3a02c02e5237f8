# SPDX-License-Identifier: Apache-2.0
"""The six corpora: found in the owners' layouts, loaded in the paper's order, checked."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from timnet_hf.corpora import (
    CORPORA,
    CorpusError,
    check_corpus,
    dataset_checksum,
    find_corpus,
    load_corpus,
)


def wav(number: int, rate: int = 16_000) -> bytes:
    """A tiny WAV file whose samples are unlike those of any other number."""
    samples = struct.pack("<64h", *(1 + (number >> shift) % 16 * 99 for shift in range(0, 256, 4)))
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    data = b"WAVE" + form + struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI", b"RIFF", len(data)) + data


def published_layout(name: str) -> dict[str, bytes]:
    """Every file of a corpus, tiny, where its owners put it."""
    corpus = CORPORA[name]
    if name == "iemocap":
        return iemocap_layout(
            {"ang": 1103, "hap": 595, "exc": 1041, "neu": 1708, "sad": 1084, "fru": 3, "xxx": 2}
        )
    names = sorted(n for fold in corpus.emobox_folds().values() for n in fold)
    place: Callable[[str], str] = {
        "casia": lambda n: f"{n}.wav",
        "emodb": lambda n: f"wav/{n}.wav",
        "emovo": lambda n: f"{n[4:6]}/{n}.wav",
        "ravdess": lambda n: f"Actor_{n[-2:]}/{n}.wav",
        "savee": lambda n: f"ALL/{n}.wav",
    }[name]
    files = {place(n): wav(number) for number, n in enumerate(names)}
    side_files = {
        "casia": {"wangzhe/angry/201.lab": b"x", "wangzhe/angry/251.wav": wav(-1)},
        "emodb": {"lablaut/03a01Fa.lablaut": b"x", "erkennung.txt": b"x"},
        "ravdess": {"Actor_01/03-02-01-01-01-01-01.wav": wav(-1)},
    }
    return files | side_files.get(name, {})


def iemocap_layout(counts: dict[str, int]) -> dict[str, bytes]:
    files, lines, number = {}, {}, 0
    for emotion, count in counts.items():
        for _ in range(count):
            session, dialog = number % 5 + 1, f"Ses0{number % 5 + 1}F_impro0{number % 7 + 1}"
            name = f"{dialog}_{'FM'[number // 5 % 2]}{number:04d}"
            files[f"Session{session}/sentences/wav/{dialog}/{name}.wav"] = wav(number)
            text = f"[6.29 - 8.23]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]\nC-E2:\tAnger;\t()\n\n"
            path = f"Session{session}/dialog/EmoEvaluation/{dialog}.txt"
            lines[path] = lines.get(path, "% [START_TIME - END_TIME] TURN_NAME EMOTION\n\n") + text
            number += 1
    files["Session1/dialog/EmoEvaluation/._Ses01F_impro01.txt"] = b"\x00\xff"
    files["Session1/dialog/EmoEvaluation/Categorical/Ses01F_impro01_e2.txt"] = b"[1 - 2]\tx\tsad\t"
    files["Session1/dialog/wav/Ses01F_impro01.wav"] = wav(number)
    return files | {path: text.encode() for path, text in lines.items()}


def write(files: dict[str, bytes], folder: Path) -> Path:
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Whole generated copies, made once; tests that change one copy it first."""
    made: dict[str, Path] = {}

    def copy(name: str) -> Path:
        if name not in made:
            made[name] = write(published_layout(name), tmp_path_factory.mktemp(name))
        return made[name]

    return copy


@pytest.fixture
def emodb_copy(copies: Callable[[str], Path], tmp_path: Path) -> Path:
    """A generated EMO-DB that a test may damage."""
    return Path(shutil.copytree(copies("emodb"), tmp_path / "emodb"))


# --- the table --------------------------------------------------------------------------------


def test_table_agrees_with_the_papers_numbers() -> None:
    assert {
        name: (c.n_files, len(c.labels), c.n_speakers, c.seed) for name, c in CORPORA.items()
    } == {
        "casia": (1200, 6, 4, 32),
        "emodb": (535, 7, 10, 46),
        "emovo": (588, 7, 6, 1),
        "iemocap": (5531, 4, 10, 16),
        "ravdess": (1440, 8, 24, 46),
        "savee": (480, 7, 4, 44),
    }


@pytest.mark.parametrize("corpus", CORPORA.values(), ids=list(CORPORA))
def test_every_row_is_complete(corpus) -> None:
    assert (
        corpus.labels
        == tuple(sorted(corpus.class_counts))
        == tuple(sorted(set(corpus.codes.values())))
    )
    for text in ("title", "language", "layout", "licence", "citation", "homepage", "obtain"):
        assert getattr(corpus, text), text


@pytest.mark.parametrize(
    ("name", "path", "label", "speaker", "sentence"),
    [
        ("casia", "CASIA/ZhaoZuoxiang/fear/250.wav", "fear", "ZhaoZuoxiang", "250"),
        ("casia", "CASIA/fear/250-fear-ZhaoZuoxiang.wav", "fear", "ZhaoZuoxiang", "250"),
        ("emodb", "wav/16b10Lb.wav", "boredom", "16", "b10"),
        ("emodb", "03a01Wa.wav", "angry", "03", "a01"),
        ("emodb", "03a01Ea.flac", "disgust", "03", "a01"),
        ("emodb", "03a01Aa.wav", "fear", "03", "a01"),
        ("emodb", "03a01Ta.wav", "sad", "03", "a01"),
        ("emodb", "03a01Nc.WAV", "neutral", "03", "a01"),
        ("emovo", "m3/sor-m3-n5.wav", "surprise", "m3", "n5"),
        ("emovo", "gio-f1-b1.wav", "happy", "f1", "b1"),
        ("emovo", "pau-f1-b1.wav", "fear", "f1", "b1"),
        ("emovo", "rab-f1-b1.wav", "angry", "f1", "b1"),
        ("emovo", "tri-f1-b1.wav", "sad", "f1", "b1"),
        ("ravdess", "Actor_24/03-01-08-02-02-01-24.flac", "surprise", "24", "02"),
        ("ravdess", "Actor_02/03-01-06-01-01-01-02.wav", "fear", "02", "01"),
        ("savee", "ALL/DC_sa15.wav", "sad", "DC", "sa15"),
        ("savee", "AudioData/KL/su01.wav", "surprise", "KL", "su01"),
        ("savee", "AudioData/KL/a01.wav", "angry", "KL", "a01"),
        ("iemocap", "Session2/sentences/wav/Ses02F_script01_3/Ses02F_script01_3_M012.wav",
         None, "Ses02M", None),
    ],
)  # fmt: skip
def test_names_are_read_as_the_owners_mean_them(name, path, label, speaker, sentence) -> None:
    utterance = CORPORA[name].parse(path)
    assert utterance is not None
    assert (utterance.label, utterance.speaker, utterance.sentence) == (label, speaker, sentence)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("casia", "wangzhe/angry/251.wav"),
        ("casia", "wangzhe/angry/201.lab"),
        ("casia", "angry/251-angry-wangzhe.wav"),
        ("emodb", "wav/03a01Xa.wav"),
        ("emodb", "wav/x03a01Fa.wav"),
        ("ravdess", "Actor_01/03-02-01-01-01-01-01.wav"),
        ("ravdess", "Actor_01/02-01-01-01-01-01-01.wav"),
        ("ravdess", "03-01-01-01-01-01-01.wav"),
        ("savee", "AudioData/KL/s01.wav"),
    ],
)
def test_other_files_are_no_recordings(name, path) -> None:
    assert CORPORA[name].parse(path) is None


def test_a_corpus_is_found_however_its_name_is_written() -> None:
    assert find_corpus("EMO-DB") is find_corpus("emodb") is CORPORA["emodb"]


def test_an_unknown_corpus_is_refused_with_the_names_of_the_known() -> None:
    with pytest.raises(CorpusError, match=r"unknown corpus 'emodbs'; known are casia, .*'emodb'\?"):
        load_corpus("emodbs", ".")


# --- loading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORPORA)
def test_the_owners_layout_loads_whole(copies, name) -> None:
    corpus = CORPORA[name]
    dataset = load_corpus(name, copies(name))

    assert dataset.column_names == ["path", "audio", "label", "speaker", "sentence"]
    assert dataset.features["label"].names == list(corpus.labels)
    assert dataset.features["audio"].decode is False
    counts = [list(dataset["label"]).count(k) for k in range(len(corpus.labels))]
    assert counts == [corpus.class_counts[label] for label in corpus.labels]
    assert len(set(dataset["speaker"])) == corpus.n_speakers
    row = dataset[0]
    assert row["audio"] == {"path": row["path"], "bytes": None}
    assert Path(row["path"]).is_file()
    assert (row["sentence"] is None) == (name == "iemocap")


@pytest.mark.parametrize("name", CORPORA)
def test_a_complete_copy_has_no_faults(copies, name) -> None:
    report = check_corpus(name, copies(name))
    assert replace(report, expected_checksum=None).ok, str(report)


def test_savee_is_found_in_its_other_layout(copies, tmp_path) -> None:
    for path in (copies("savee") / "ALL").iterdir():
        target = tmp_path / "AudioData" / path.name.replace("_", "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    flat, nested = load_corpus("savee", copies("savee")), load_corpus("savee", tmp_path)
    assert list(flat["label"]) == list(nested["label"])
    assert list(flat["speaker"]) == list(nested["speaker"])


def test_casia_is_found_under_the_names_it_is_often_repacked_under(copies, tmp_path) -> None:
    files = published_layout("casia")
    for path, content in files.items():
        if path.count("/") == 2:
            speaker, emotion, number = path.split("/")
            write({f"{emotion}/{number[:3]}-{emotion}-{speaker}{number[3:]}": content}, tmp_path)
    report = check_corpus("casia", tmp_path)
    assert report.n_files == 1200 and not report.faults
    published, repacked = load_corpus("casia", copies("casia")), load_corpus("casia", tmp_path)
    for column in ("label", "speaker", "sentence"):
        assert list(published[column]) == list(repacked[column])


def test_mixed_case_makes_no_second_speaker_and_no_second_sentence(copies, tmp_path) -> None:
    """A sentence under two spellings would be on both sides of a fold that leaves it out."""
    before = load_corpus("emovo", copies("emovo"))
    for path, content in published_layout("emovo").items():
        shouted = path.startswith("f1") and path.endswith("-b1.wav") or path.startswith("m2/sor")
        write({path.upper() if shouted else path: content}, tmp_path)
    after = load_corpus("emovo", tmp_path)
    for column in ("label", "speaker", "sentence"):
        assert list(after[column]) == list(before[column])


def test_casia_speakers_may_be_spelled_differently(copies, tmp_path) -> None:
    shutil.copytree(copies("casia") / "wangzhe", tmp_path / "Zhe.Wang")
    for name in ("liuchanhg", "zhaoquanyin", "zhaozuoxiang"):
        shutil.copytree(copies("casia") / name, tmp_path / name)
    assert len(load_corpus("casia", tmp_path)) == 1200
    (tmp_path / "Zhe.Wang/sad/222.wav").unlink()
    assert check_corpus("casia", tmp_path).missing == ("Zhe.Wang/sad/222",)


def test_rows_come_in_the_papers_order(copies) -> None:
    dataset = load_corpus("emodb", copies("emodb"))
    names = dataset.features["label"].names
    rows = [(names[r["label"]], Path(r["path"]).name) for r in dataset]
    assert rows == sorted(rows)
    assert [name for _, name in rows[:2]] == ["03a01Wa.wav", "03a02Wb.wav"]


def test_casia_is_ordered_by_sentence_before_speaker(copies) -> None:
    dataset = load_corpus("casia", copies("casia"))
    assert list(dataset["sentence"][:5]) == ["201"] * 4 + ["202"]


def test_the_folder_above_and_links_to_it_serve_as_well(copies, tmp_path) -> None:
    write(published_layout("emovo"), tmp_path / "corpora/italian/EMOVO")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/emovo").symlink_to(tmp_path / "corpora/italian")
    (tmp_path / "corpora/italian/loop").symlink_to(tmp_path)
    assert len(load_corpus("emovo", tmp_path / "corpora")) == 588
    assert len(load_corpus("emovo", tmp_path / "links")) == 588


def test_corpora_side_by_side_do_not_disturb_each_other(copies, tmp_path) -> None:
    for name in ("emodb", "emovo", "ravdess", "savee"):
        (tmp_path / name).symlink_to(copies(name))
    assert [len(load_corpus(n, tmp_path)) for n in ("emodb", "emovo", "ravdess", "savee")] == [
        535,
        588,
        1440,
        480,
    ]


def test_flac_is_as_good_as_wav(emodb_copy) -> None:
    soundfile = pytest.importorskip("soundfile")
    before = list(load_corpus("emodb", emodb_copy)["label"])
    path = emodb_copy / "wav/03a01Fa.wav"
    soundfile.write(path.with_suffix(".flac"), *soundfile.read(path, dtype="int16"))
    path.unlink()
    assert list(load_corpus("emodb", emodb_copy)["label"]) == before


@pytest.mark.parametrize("name", CORPORA)
def test_an_empty_folder_says_what_was_expected_and_whom_to_ask(tmp_path, name) -> None:
    with pytest.raises(CorpusError, match=re.escape(CORPORA[name].layout)) as error:
        load_corpus(name, tmp_path)
    remedy = "corpora download" if CORPORA[name].download else CORPORA[name].obtain
    assert remedy in str(error.value)


def test_a_missing_folder_is_an_error(tmp_path) -> None:
    with pytest.raises(CorpusError, match="nowhere: no such folder"):
        load_corpus("emodb", tmp_path / "nowhere")


# --- incomplete and damaged copies ------------------------------------------------------------


def test_missing_files_are_named(emodb_copy, caplog) -> None:
    (emodb_copy / "wav/03a01Fa.wav").unlink()
    (emodb_copy / "wav/16b10Wb.wav").unlink()
    with pytest.raises(CorpusError, match="missing: 03a01Fa, 16b10Wb"):
        load_corpus("emodb", emodb_copy)
    assert check_corpus("emodb", emodb_copy).missing == ("03a01Fa", "16b10Wb")
    assert len(load_corpus("emodb", emodb_copy, strict=False)) == 533
    assert "EMO-DB is not as published: missing: 03a01Fa, 16b10Wb" in caplog.text


def test_iemocap_misses_what_its_annotations_name(tmp_path) -> None:
    tree = write(iemocap_layout({"ang": 9, "xxx": 9}), tmp_path)
    (tree / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F0000.wav").unlink()
    report = check_corpus("iemocap", tree)
    assert report.missing == ("Ses01F_impro01_F0000",)
    assert report.class_counts == {"angry": 8, "happy": 0, "neutral": 0, "sad": 0}


def test_iemocap_names_the_recordings_of_a_dialog_without_annotation(tmp_path) -> None:
    files = iemocap_layout({"ang": 60, "sad": 60})
    lacking = "Session3/dialog/EmoEvaluation/Ses03F_impro05.txt"
    recordings = {p for p in files if "Ses03F_impro05/" in p}
    del files[lacking]
    report = check_corpus("iemocap", write(files, tmp_path))
    assert recordings and set(report.extra) == recordings


def test_iemocap_is_read_in_lower_case_too(tmp_path) -> None:
    files = {path.lower(): data for path, data in iemocap_layout({"ang": 9, "fru": 9}).items()}
    report = check_corpus("iemocap", write(files, tmp_path))
    assert report.class_counts["angry"] == 9
    assert report.missing == report.extra == ()


def test_iemocap_without_its_annotations_says_what_is_missing(tmp_path) -> None:
    files = iemocap_layout({"ang": 9})
    tree = write({path: data for path, data in files.items() if "Evaluation" not in path}, tmp_path)
    with pytest.raises(CorpusError, match="9 recordings of IEMOCAP, but no text file .*Evaluation"):
        load_corpus("iemocap", tree)


def test_of_casia_a_foreign_folder_is_named_and_nothing_else(copies, tmp_path) -> None:
    shutil.copytree(copies("casia"), tmp_path / "casia")
    write({"mine/test/angry/201.wav": wav(9_000)}, tmp_path)
    report = check_corpus("casia", tmp_path)
    assert report.missing == () and report.unexpected == ("test/angry/201",)


def test_of_casia_a_whole_speaker_is_missed(copies, tmp_path) -> None:
    tree = shutil.copytree(copies("casia"), tmp_path / "casia")
    shutil.rmtree(tree / "wangzhe")
    report = check_corpus("casia", tree)
    assert len(report.missing) == 300 and report.missing[0] == "wangzhe/angry/201"


def test_a_name_that_no_table_can_hold_is_told_before_any_training(emodb_copy, caplog) -> None:
    """Archives of names in another encoding unpack to such folders."""
    folder = os.fsencode(emodb_copy) + "/相同文本".encode("gbk")
    os.mkdir(folder)
    os.rename(os.fsencode(emodb_copy / "wav/03a01Fa.wav"), folder + b"/03a01Fa.wav")
    report = check_corpus("emodb", emodb_copy)
    assert list(report.undecodable) == ["03a01Fa"]
    assert "not valid UTF-8; rename the file, or the folder" in report.undecodable["03a01Fa"]
    str(report).encode()  # can be printed
    with pytest.raises(CorpusError, match="not as published:\n *undecodable: .*not valid UTF-8"):
        load_corpus("emodb", emodb_copy)
    assert len(load_corpus("emodb", emodb_copy, strict=False)) == 534
    assert "not valid UTF-8" in caplog.text


def test_a_folder_that_may_not_be_read_is_told(emodb_copy, monkeypatch, caplog) -> None:
    (emodb_copy / "more").mkdir()
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert len(load_corpus("emodb", emodb_copy)) == 535
    assert "more: cannot be read (Permission denied); check its permissions" in caplog.text


def test_recordings_that_were_never_published_are_named(emodb_copy) -> None:
    write({"wav/03a01Fz.wav": wav(9_000), "wav/notes.mp3": b"?"}, emodb_copy)
    report = check_corpus("emodb", emodb_copy)
    assert report.unexpected == ("03a01Fz",)
    assert report.extra == ("03a01Fz", "wav/notes.mp3")
    with pytest.raises(CorpusError, match="not published: 03a01Fz"):
        load_corpus("emodb", emodb_copy)


def test_files_that_only_look_published_are_named(tmp_path) -> None:
    impossible = ("03-01-09-01-01-01-01", "03-01-01-01-01-03-01", "04-01-01-01-01-01-01")
    published = {**published_layout("ravdess"), "Actor_01/02-02-01-01-01-01-01.mp4": b"x"}
    extra = {f"Actor_01/{name}.wav": wav(number) for number, name in enumerate(impossible)}
    report = check_corpus("ravdess", write({**published, **extra}, tmp_path / "ravdess"))
    assert sorted(report.strays) == sorted(extra)

    folder = "Session1/sentences/wav/Ses01F_impro01"
    extra = {f"{folder}/copy.wav": wav(1), f"{folder}/Ses01F_impro01_F9999.wav": wav(2)}
    files = {**iemocap_layout({"ang": 9, "xxx": 9}), **extra}
    report = check_corpus("iemocap", write(files, tmp_path / "iemocap"))
    assert sorted(report.strays) == sorted(extra)


def test_a_link_to_nowhere_is_named_beside_everything_else(emodb_copy) -> None:
    path = emodb_copy / "wav/03a01Fa.wav"
    path.unlink()
    path.symlink_to(emodb_copy / "nowhere")
    (emodb_copy / "wav/16b10Wb.wav").unlink()
    report = check_corpus("emodb", emodb_copy)
    assert list(report.undecodable) == ["03a01Fa"] and report.missing == ("16b10Wb",)
    assert report.checksum is None and "unknown, for not all files" in str(report)


def test_undecodable_files_are_named_and_may_be_left_out(emodb_copy, caplog) -> None:
    write({"wav/03a01Fa.wav": b"not audio at all", "wav/03a01Nc.wav": b""}, emodb_copy)
    report = check_corpus("emodb", emodb_copy)
    assert sorted(report.undecodable) == ["03a01Fa", "03a01Nc"]
    assert "03a01Nc.wav: is empty" in report.undecodable["03a01Nc"]
    with pytest.raises(CorpusError, match=r"(?s)undecodable: .*03a01Fa\.wav.*03a01Nc\.wav"):
        load_corpus("emodb", emodb_copy)
    assert len(load_corpus("emodb", emodb_copy, strict=False)) == 533
    assert "03a01Fa.wav" in caplog.text


def test_truncated_files_are_named_but_may_be_used(emodb_copy) -> None:
    path = emodb_copy / "wav/03a01Fa.wav"
    path.write_bytes(path.read_bytes()[:-20])
    assert list(check_corpus("emodb", emodb_copy).undecodable) == ["03a01Fa"]
    with pytest.raises(CorpusError, match=r"undecodable: .*03a01Fa\.wav: cut short"):
        load_corpus("emodb", emodb_copy)
    assert len(load_corpus("emodb", emodb_copy, strict=False)) == 535


def test_equal_copies_are_reported_and_loaded_once(emodb_copy) -> None:
    write({"backup/wav/03a01Fa.wav": (emodb_copy / "wav/03a01Fa.wav").read_bytes()}, emodb_copy)
    report = check_corpus("emodb", emodb_copy)
    assert report.duplicates == (("wav/03a01Fa.wav", "backup/wav/03a01Fa.wav"),)
    assert report.conflicting == ()
    assert len(load_corpus("emodb", emodb_copy)) == 535


def test_differing_copies_are_refused(emodb_copy) -> None:
    write({"backup/wav/03a01Fa.wav": wav(9_000)}, emodb_copy)
    with pytest.raises(CorpusError, match="differing copies: 03a01Fa"):
        load_corpus("emodb", emodb_copy)


def test_one_recording_under_two_names_is_reported(emodb_copy) -> None:
    shutil.copy(emodb_copy / "wav/03a01Fa.wav", emodb_copy / "wav/03a01Nc.wav")
    assert check_corpus("emodb", emodb_copy).identical == (("03a01Fa", "03a01Nc"),)


def test_changed_content_is_seen_by_the_checksum(copies) -> None:
    report = check_corpus("emodb", copies("emodb"))  # tiny files under the published names
    assert report.expected_checksum == CORPORA["emodb"].checksum
    assert not report.ok
    assert report.faults == ["checksum: the files are not byte for byte as published"]


def test_the_report_is_json_and_text(emodb_copy) -> None:
    (emodb_copy / "wav/03a01Fa.wav").unlink()
    report = check_corpus("emodb", emodb_copy)
    document = json.loads(json.dumps(report.to_dict()))
    assert document["missing"] == ["03a01Fa"]
    assert document["ok"] is False
    text = str(report)
    assert "534 of 535" in text
    assert "happy 70/71" in text
    assert "missing:    03a01Fa" in text


# --- the real recordings ----------------------------------------------------------------------


def test_real_emodb_is_the_published_one(emodb_dir) -> None:
    report = check_corpus("emodb", emodb_dir)
    assert report.ok, str(report)
    dataset = load_corpus("emodb", emodb_dir.parent)
    assert dataset_checksum(dataset) == CORPORA["emodb"].checksum


def test_real_emodb_is_the_published_one_however_it_is_put(emodb_dir, tmp_path) -> None:
    for number, path in enumerate(sorted(emodb_dir.rglob("*.wav"))):
        name = [path.name, path.name.upper(), path.name.lower()][number % 3]
        place = tmp_path / path.name[:2]
        place.mkdir(exist_ok=True)
        (place / name).symlink_to(path)
    report = check_corpus("emodb", tmp_path)
    assert report.ok, str(report)
    assert report.checksum == CORPORA["emodb"].checksum


def test_real_ravdess_has_its_one_identical_pair(ravdess_dir) -> None:
    report = check_corpus("ravdess", ravdess_dir)
    assert report.ok, str(report)
    assert report.identical == (("03-01-03-01-02-01-07", "03-01-03-01-02-02-07"),)
