# SPDX-License-Identifier: Apache-2.0
"""What can be scored, and how it is dealt out into shards: every recording once, in order."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from timnet_hf.audio import find_audio_files
from timnet_hf.scoring_inputs import (
    Inputs,
    Item,
    ScoringError,
    open_inputs,
    read_carried,
    read_items,
)


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    return tmp_path / "listing.parquet"


def items(inputs: Inputs) -> list[Item]:
    found = [item for shard in inputs.shards for item in read_items(inputs, shard)]
    assert [item.index for item in found] == list(range(inputs.rows))
    return found


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


class TestFolders:
    def test_list_what_predict_would_list_in_the_same_order(
        self, tmp_path: Path, listing: Path
    ) -> None:
        folder = touch(
            tmp_path / "in",
            *("10.wav", "9.wav", "b/2.flac", "b/10.mp3", "a/x.WAV", "a.wav", "B/1.ogg"),
            *("notes.txt", ".hidden.wav", ".git/x.wav", "c/d/e.wav"),
        )
        os.symlink(folder / "b", folder / "link")

        found = items(open_inputs(folder, listing, 3))

        assert [item.path for item in found] == [str(p) for p in find_audio_files([folder])]
        assert [item.source for item in found] == [os.path.abspath(item.path) for item in found]

    def test_are_dealt_out_in_shards(self, tmp_path: Path, listing: Path) -> None:
        folder = touch(tmp_path / "in", *(f"{number}.wav" for number in range(10)))

        inputs = open_inputs(folder, listing, 4)

        assert [(shard.first, shard.rows) for shard in inputs.shards] == [(0, 4), (4, 4), (8, 2)]
        assert [item.index for item in read_items(inputs, inputs.shards[2])] == [8, 9]

    def test_may_be_named_from_anywhere(
        self, tmp_path: Path, listing: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        touch(tmp_path / "in", "a.wav")
        monkeypatch.chdir(tmp_path)
        inputs = open_inputs("in", listing, 4)
        monkeypatch.chdir("/")

        (item,) = items(inputs)

        assert item.path == "in/a.wav"
        assert item.source == str(tmp_path / "in" / "a.wav")

    def test_an_absolute_name_means_the_same_from_everywhere(
        self, tmp_path: Path, listing: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        touch(tmp_path / "in", "a.wav")
        sums = []
        for place, name in (("/", tmp_path / "in"), (tmp_path, tmp_path / "in"), (tmp_path, "in")):
            monkeypatch.chdir(place)
            sums.append(open_inputs(name, listing, 4).sha256)
        assert sums[0] == sums[1] != sums[2]  # rows are called otherwise there

    def test_of_parquet_are_read_as_one_table(self, tmp_path: Path, listing: Path) -> None:
        for name, count in (("train-10.parquet", 2), ("train-9.parquet", 3)):
            table = pa.table({"audio": [name.encode()] * count})
            (tmp_path / "in").mkdir(exist_ok=True)
            pq.write_table(table, tmp_path / "in" / name)

        found = items(open_inputs(tmp_path / "in", listing, 100))

        assert [item.source for item in found] == [b"train-9.parquet"] * 3 + [
            b"train-10.parquet"
        ] * 2

    def test_of_parquet_may_hold_the_output_too(self, tmp_path: Path, listing: Path) -> None:
        pq.write_table(
            pa.table({"audio": [b"x"]}), touch(tmp_path / "in", "in.parquet") / "in.parquet"
        )
        before = open_inputs(tmp_path / "in", listing)
        output = tmp_path / "in" / "out.parquet"
        pq.write_table(pa.table({"label": ["sad"]}), output)

        assert open_inputs(tmp_path / "in", listing, output=output) == before

    @pytest.mark.skipif(os.name != "posix", reason="names are text there")
    def test_names_that_are_no_text_still_find_their_file(
        self, tmp_path: Path, listing: Path
    ) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.wav")).touch()

        (item,) = items(open_inputs(folder, listing, 4))

        assert item.path.endswith("caf\\udce9.wav")
        assert isinstance(item.source, str)
        assert os.path.exists(item.source)

    def test_that_hold_nothing_are_refused(self, tmp_path: Path, listing: Path) -> None:
        with pytest.raises(ScoringError, match="holds no recordings"):
            open_inputs(touch(tmp_path / "in", "notes.txt"), listing, 4)


class TestManifests:
    def test_csv_carries_its_other_columns(self, tmp_path: Path, listing: Path) -> None:
        manifest = tmp_path / "calls.csv"
        manifest.write_text(
            'call,path,file\n1,a.wav,x\n2,"sub, dir/b.wav",\n3,,y\n', encoding="utf-8"
        )

        inputs = open_inputs(manifest, listing, 2)
        found = items(inputs)

        assert [item.path for item in found] == ["a.wav", "sub, dir/b.wav", "#2"]
        assert [item.source for item in found] == [
            str(tmp_path / "a.wav"),
            str(tmp_path / "sub, dir/b.wav"),
            None,
        ]
        carried = pa.concat_tables(read_carried(inputs, shard) for shard in inputs.shards)
        assert carried["call"].to_pylist() == ["1", "2", "3"]
        assert carried["input_file"].to_pylist() == ["x", "", "y"]

    def test_jsonl_carries_all_keys_of_all_lines(self, tmp_path: Path, listing: Path) -> None:
        manifest = tmp_path / "calls.jsonl"
        lines: list[dict[str, Any]] = [
            {"file_name": "a.wav", "speaker": "x"},
            {"file_name": "/b.wav", "turn": 3, "tags": ["é"]},
        ]
        manifest.write_text("\n\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")

        inputs = open_inputs(manifest, listing, 9)

        assert [item.source for item in items(inputs)] == [str(tmp_path / "a.wav"), "/b.wav"]
        (carried,) = (read_carried(inputs, shard) for shard in inputs.shards)
        assert carried.to_pylist() == [
            {"path": "a.wav", "speaker": "x", "turn": None, "tags": None},
            {"path": "/b.wav", "speaker": None, "turn": "3", "tags": '["é"]'},
        ]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.csv", b"name\nx.wav\n", "no column `path`; its columns are: name"),
            ("a.csv", b"", "no column `path`"),
            ("a.csv", b"path\n", "holds no rows"),
            ("a.csv", b"path,x,x\na,b,c\n", "same name"),
            ("a.csv", b"path\n\xff\xfe.wav\n", "UTF-8"),
            ("a.csv", b'path\n"' + b"x" * 200_000 + b'"\n', "field larger"),
            ("a.csv", b'path,name\na.wav,"anna\nb.wav,otto\n', "a quote that is not closed"),
            ("a.jsonl", b'{"path": "a.wav"}\n{"path"\n', "line 2 is not JSON"),
            ("a.jsonl", b'{"path": ' + b"[" * 100_000 + b"\n", "line 1 is not JSON"),
            ("a.jsonl", b"[1]\n", "line 1 is not an object"),
            ("a.wav", b"RIFF", "not a manifest"),
            ("a.parquet", b"PAR1", "not a Parquet file"),
        ],
    )
    def test_that_make_no_sense_are_refused(
        self, tmp_path: Path, listing: Path, name: str, content: bytes, message: str
    ) -> None:
        (tmp_path / name).write_bytes(content)

        with pytest.raises(ScoringError, match=message) as refused:
            open_inputs(tmp_path / name, listing, 4)

        assert name in str(refused.value)

    def test_that_are_not_there_are_refused(self, tmp_path: Path, listing: Path) -> None:
        with pytest.raises(ScoringError, match="no such file or folder"):
            open_inputs(tmp_path / "a.csv", listing, 4)

    def test_a_change_of_any_cell_changes_the_checksum(self, tmp_path: Path, listing: Path) -> None:
        texts = ["path,x\na.wav,1\n", "path,x\na.wav,2\n", "path,x\nb.wav,1\n", "path,y\na.wav,1\n"]
        sums = set()
        for text in texts + texts:
            (tmp_path / "m.csv").write_text(text, encoding="utf-8")
            sums.add(open_inputs(tmp_path / "m.csv", listing, 4).sha256)

        assert len(sums) == len(texts)


class TestParquet:
    def write(self, path: Path, /, row_group: int = 3, **columns: Any) -> Path:
        pq.write_table(pa.table(columns), path, row_group_size=row_group)
        return path

    def test_audio_of_datasets_is_content_or_a_path(self, tmp_path: Path, listing: Path) -> None:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        audio = [
            {"bytes": b"RIFF", "path": "a.wav"},
            {"bytes": None, "path": "sub/b.wav"},
            {"bytes": b"fLaC", "path": None},
            {"bytes": None, "path": None},
            None,
        ]
        source = self.write(
            tmp_path / "t.parquet", audio=pa.array(audio, kind), label=[0, 1, 2, 3, 4]
        )

        inputs = open_inputs(source, listing, 3)
        found = items(inputs)

        assert [(item.path, item.source) for item in found] == [
            ("a.wav", b"RIFF"),
            ("sub/b.wav", str(tmp_path / "sub/b.wav")),
            ("t.parquet#2", b"fLaC"),
            ("t.parquet#3", None),
            ("t.parquet#4", None),
        ]
        assert inputs.carried == ("label",)

    def test_plain_binary_is_content(self, tmp_path: Path, listing: Path) -> None:
        source = self.write(tmp_path / "t.parquet", wav=[b"one", b"two"], path=["x", "y"])

        for column in ("wav", None):
            found = items(open_inputs(source, listing, 3, column))

            assert [(item.path, item.source) for item in found] == [("x", b"one"), ("y", b"two")]

    def test_content_may_be_in_a_column_called_file(self, tmp_path: Path, listing: Path) -> None:
        """Listings have one of that name for names of files."""
        source = self.write(tmp_path / "t.parquet", file=[b"one", b"two"], id=[7, 8])

        found = items(open_inputs(source, listing))

        assert [item.source for item in found] == [b"one", b"two"]
        assert [item.path for item in found] == ["t.parquet#0", "t.parquet#1"]

    def test_text_is_a_path(self, tmp_path: Path, listing: Path) -> None:
        source = self.write(tmp_path / "t.parquet", path=["x.wav"], id=[7])

        inputs = open_inputs(source, listing, 3)

        (item,) = items(inputs)
        assert (item.path, item.source) == ("x.wav", str(tmp_path / "x.wav"))
        assert inputs.carried == ("id",)

    def test_text_of_few_values_is_a_path_too(self, tmp_path: Path, listing: Path) -> None:
        touch(tmp_path, "a.wav")
        names = pa.array(["a.wav", "a.wav"]).dictionary_encode()
        pq.write_table(pa.table({"path": names}), tmp_path / "t.parquet")

        found = items(open_inputs(tmp_path / "t.parquet", listing))

        assert [(i.path, i.source) for i in found] == [("a.wav", str(tmp_path / "a.wav"))] * 2

    def test_a_number_may_name_the_audio_beside_it(self, tmp_path: Path, listing: Path) -> None:
        table = pa.table({"audio": pa.array([b"fLaC", b"RIFF"]), "path": [17, None]})
        pq.write_table(table, tmp_path / "t.parquet")

        found = items(open_inputs(tmp_path / "t.parquet", listing))

        assert [item.path for item in found] == ["17", "t.parquet#1"]

    def test_row_groups_are_joined_but_never_split(self, tmp_path: Path, listing: Path) -> None:
        source = self.write(tmp_path / "t.parquet", row_group=4, audio=[b"x"] * 10)

        def sizes(shard_size: int) -> list[int]:
            return [shard.rows for shard in open_inputs(source, listing, shard_size).shards]

        assert (sizes(1), sizes(9), sizes(100)) == ([4, 4, 2], [8, 2], [10])

    def test_a_damaged_part_costs_its_own_rows_alone(self, tmp_path: Path, listing: Path) -> None:
        noise = [np.random.default_rng(row).bytes(500) for row in range(6)]
        source = self.write(tmp_path / "t.parquet", row_group=2, audio=noise, turn=list(range(6)))
        content = bytearray(source.read_bytes())
        chunk = pq.read_metadata(source).row_group(1).column(0)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        content[start : start + 20] = bytes(20)  # a page's header
        source.write_bytes(content)

        inputs = open_inputs(source, listing, 2)
        found = items(inputs)

        assert [item.source for item in found] == [*noise[:2], None, None, *noise[4:]]
        assert all(f"its part of {source} is damaged" in item.problem for item in found[2:4])
        assert [item.path for item in found[2:4]] == ["t.parquet#2", "t.parquet#3"]
        carried = [read_carried(inputs, shard)["turn"].to_pylist() for shard in inputs.shards]
        assert carried == [[0, 1], [2, 3], [4, 5]]

    def test_a_name_that_is_no_text_costs_one_row(self, tmp_path: Path, listing: Path) -> None:
        names = pa.array([b"a.wav", b"\xff\xfe", b"c.wav"]).view(pa.string())
        pq.write_table(pa.table({"path": names}), tmp_path / "t.parquet")

        one, bad, three = items(open_inputs(tmp_path / "t.parquet", listing))

        assert (one.path, three.path) == ("a.wav", "c.wav")
        assert bad.source is None and "not UTF-8" in bad.problem

    def test_a_doubt_about_the_column_is_asked(self, tmp_path: Path, listing: Path) -> None:
        source = self.write(tmp_path / "t.parquet", one=[b"x"], two=[b"y"])

        with pytest.raises(ScoringError, match="Name it with --audio-column.*one, two"):
            open_inputs(source, listing, 3)
        with pytest.raises(ScoringError, match="no column 'three' of audio"):
            open_inputs(source, listing, 3, "three")

    def test_columns_with_binary_content_stay_behind(self, tmp_path: Path, listing: Path) -> None:
        source = self.write(
            tmp_path / "t.parquet",
            audio=[b"x"],
            image=[b"y"],
            photo=[{"bytes": b"y", "width": 1}],
            words=[["a"]],
            turn=[1],
        )

        inputs = open_inputs(source, listing, 3)

        assert inputs.carried == ("words", "turn")
        assert read_carried(inputs, inputs.shards[0]).to_pylist() == [{"words": ["a"], "turn": 1}]

    def test_shards_grow_with_the_input(self, tmp_path: Path, listing: Path) -> None:
        def sizes(rows: int) -> list[int]:
            source = self.write(tmp_path / "t.parquet", row_group=1, audio=[b"x"] * rows)
            return [shard.rows for shard in open_inputs(source, listing).shards]

        assert sizes(100) == [32, 32, 32, 4]
        assert set(sizes(6_400)) == {100}

    def test_files_with_other_columns_are_refused(self, tmp_path: Path, listing: Path) -> None:
        (tmp_path / "in").mkdir()
        self.write(tmp_path / "in" / "a.parquet", audio=[b"x"])
        self.write(tmp_path / "in" / "b.parquet", audio=[b"x"], more=[1])

        with pytest.raises(ScoringError, match=r"b\.parquet: its columns differ"):
            open_inputs(tmp_path / "in", listing, 3)
