# SPDX-License-Identifier: Apache-2.0
"""Bulk scoring: one row a recording, the answers of `timnet predict`, and nothing half-done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from filelock import FileLock

from timnet_hf import scoring, scoring_batches
from timnet_hf.prediction import load_model, predict_files
from timnet_hf.scoring import ScoringError, ShardReport, score

from .scoring_world import LABELS, assert_same_rows, rows, save_model, write_sounds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips, and among them an empty file, one that is no sound, and one of silence."""
    folder = write_sounds(tmp_path_factory.mktemp("sounds"), 10)
    (folder / "clip3a.wav").write_bytes(b"")
    (folder / "clip5a.mp3").write_bytes(b"no sound at all " * 300)
    soundfile.write(folder / "clip7a.flac", np.zeros(8_000), 16_000)
    write_sounds(folder / "other rate", 2, sampling_rate=44_100, seed=1)
    return folder


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Score in this process; every run has an output of its own unless told otherwise."""

    def run_once(source: Path, output: str | None = None, **options: Any) -> Path:
        target = tmp_path / (output or f"out{len(list(tmp_path.iterdir()))}.parquet")
        score(source, target, model, **{"workers": 1, "shard_size": 4, **options})
        return target

    return run_once


def probabilities(row: dict[str, Any]) -> list[float]:
    return [row[f"p_{label}"] for label in LABELS]


class TestRows:
    def test_are_the_answers_of_predict(
        self, run: Callable[..., Path], sounds: Path, model: Path
    ) -> None:
        found = rows(run(sounds))

        expected = list(predict_files([row["path"] for row in found], *load_model(model)))

        assert [row["index"] for row in found] == list(range(15))
        for row, one in zip(found, expected, strict=True):
            assert row["label"] == one.label
            assert (row["error"] is None) == (one.error is None)
            assert row["duration"] == (one.duration if one.scores else None)
            assert row["silent"] == (one.silent if one.scores else None)
            for label, value in one.scores.items():
                assert row[f"p_{label}"] == pytest.approx(value, abs=1e-5)
            if one.scores:
                assert row["score"] == max(probabilities(row))

    def test_of_bad_files_say_what_is_wrong_and_nothing_else(
        self, run: Callable[..., Path], sounds: Path
    ) -> None:
        bad = {Path(row["path"]).name: row for row in rows(run(sounds)) if row["error"]}

        assert set(bad) == {"clip3a.wav", "clip5a.mp3"}
        assert bad["clip3a.wav"]["error"].endswith(
            "clip3a.wav: is empty; check how the file was made"
        )
        for row in bad.values():
            assert {row[name] for name in row if name not in ("index", "path", "error")} == {None}

    def test_are_the_answers_of_predict_where_labels_do_not_exclude_each_other(
        self, sounds: Path, model: Path, tmp_path: Path
    ) -> None:
        network, extractor = load_model(model)
        network.config.problem_type = "multi_label_classification"
        for part in (network, extractor):
            part.save_pretrained(tmp_path / "each")

        score(sounds, tmp_path / "out.parquet", tmp_path / "each", workers=1)

        found = [row for row in rows(tmp_path / "out.parquet") if row["error"] is None]
        paths = [row["path"] for row in found]
        for row, one in zip(found, predict_files(paths, network, extractor), strict=True):
            for label, value in one.scores.items():
                assert row[f"p_{label}"] == pytest.approx(value, abs=1e-5)

    def test_keep_columns_that_look_like_ours(
        self, run: Callable[..., Path], sounds: Path, tmp_path: Path
    ) -> None:
        manifest = tmp_path / "in.csv"
        manifest.write_text(f"path,p_id,p_{LABELS[0]}\n{sounds}/clip0.wav,7,hello\n")

        (row,) = rows(run(manifest))

        assert (row["p_id"], row[f"input_p_{LABELS[0]}"]) == ("7", "hello")
        assert sum(probabilities(row)) == pytest.approx(1, abs=1e-5)

    def test_tell_the_rate_of_the_file(self, run: Callable[..., Path], sounds: Path) -> None:
        found = rows(run(sounds))

        rates = {row["sampling_rate"] for row in found if "other rate" in row["path"]}
        assert rates == {44_100}
        assert {row["sampling_rate"] for row in found if row["label"]} == {16_000, 44_100}

    def test_do_not_depend_on_shards_batches_or_order(
        self, run: Callable[..., Path], sounds: Path, tmp_path: Path
    ) -> None:
        straight = rows(run(sounds))
        names = [os.path.abspath(row["path"]) for row in straight]
        shuffled = np.random.default_rng(0).permutation(len(names))
        manifest = tmp_path / "shuffled.csv"
        lines = ["path,place", *(f"{names[place]},{place}" for place in shuffled)]
        manifest.write_text("\n".join(lines), encoding="utf-8")

        other = rows(run(manifest, shard_size=5, batch_size=2))

        assert sorted(int(row["place"]) for row in other) == list(range(len(names)))
        for row in other:
            one = straight[int(row["place"])]
            assert row["label"] == one["label"]
            if one["label"]:
                np.testing.assert_allclose(probabilities(row), probabilities(one), atol=1e-5)

    def test_of_parquet_are_those_of_the_files(
        self, run: Callable[..., Path], sounds: Path, tmp_path: Path
    ) -> None:
        files = rows(run(sounds))
        audio = [{"bytes": Path(row["path"]).read_bytes(), "path": row["path"]} for row in files]
        table = pa.table(
            {"label": ["truth"] * len(audio), "audio": audio, "error": [1] * len(audio)}
        )
        pq.write_table(table, tmp_path / "in.parquet", row_group_size=4)

        found = rows(run(tmp_path / "in.parquet"))

        for row, one in zip(found, files, strict=True):
            assert row.pop("input_label") == "truth"
            assert row.pop("input_error") == 1
            if one["error"]:
                assert row["path"] in row.pop("error")
                one.pop("error")
            assert row == one

    @pytest.mark.parametrize("extractor", [{}, {"num_samples": 40_000}], ids=["free", "fixed"])
    def test_of_long_recordings_are_averaged_as_in_predict(
        self, tmp_path: Path, extractor: dict[str, Any]
    ) -> None:
        rng = np.random.default_rng(2)
        model = save_model(tmp_path / "model", **extractor)
        (tmp_path / "in").mkdir()
        for name, seconds in (("just", 60.0), ("over", 60.1), ("long", 130.0), ("still", 70.0)):
            sound = 0.1 * rng.standard_normal(round(seconds * 8_000))
            if name == "long":  # silence at its start and in its middle counts for nothing
                sound[: 40 * 8_000] = sound[70 * 8_000 : 110 * 8_000] = 0
            if name == "still":
                sound[:] = 0
            soundfile.write(tmp_path / "in" / f"{name}.wav", sound, 8_000)

        score(tmp_path / "in", tmp_path / "out.parquet", model, workers=1)

        found = {Path(row["path"]).stem: row for row in rows(tmp_path / "out.parquet")}
        for one in predict_files((tmp_path / "in").iterdir(), *load_model(model)):
            row = found[Path(one.path).stem]
            assert row["silent"] == one.silent
            assert row["duration"] == pytest.approx(one.duration, abs=1e-4)
            expected = [one.scores[label] for label in LABELS]
            np.testing.assert_allclose(probabilities(row), expected, atol=1e-5)


class TestMemory:
    def test_scores_while_it_reads(
        self, run: Callable[..., Path], sounds: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = rows(run(sounds, shard_size=100))
        monkeypatch.setattr(scoring_batches, "WAITING_FRAMES", 40)
        most = 0
        flush = scoring_batches.Scorer._flush

        def watched(self: Any, waiting: list[Any]) -> None:
            nonlocal most
            most = max(most, sum(len(features) for features, *_ in waiting))
            flush(self, waiting)
            assert not waiting

        monkeypatch.setattr(scoring_batches.Scorer, "_flush", watched)
        found = rows(run(sounds, shard_size=100))

        assert 40 < most < 80
        for row, one in zip(found, whole, strict=True):
            assert row["label"] == one["label"]


class TestOutput:
    def test_replaces_its_shards(self, run: Callable[..., Path], sounds: Path) -> None:
        output = run(sounds)

        assert not output.with_name(output.name + ".shards").exists()

    def test_that_is_finished_is_left_alone(
        self, run: Callable[..., Path], sounds: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output = run(sounds, "out.parquet")
        before = output.stat()
        monkeypatch.setattr(scoring, "_run", None)

        again = run(sounds, "out.parquet")

        assert again.stat().st_mtime_ns == before.st_mtime_ns
        assert not output.with_name(output.name + ".shards").exists()

    def test_of_another_run_is_not_overwritten(
        self, run: Callable[..., Path], sounds: Path
    ) -> None:
        run(sounds, "out.parquet")

        with pytest.raises(ScoringError, match="not from this input, model and options"):
            run(sounds, "out.parquet", batch_size=3)

    def test_of_others_is_not_overwritten(
        self, run: Callable[..., Path], sounds: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "out.parquet").write_text("mine")

        with pytest.raises(ScoringError, match="is there already"):
            run(sounds, "out.parquet")

        assert (tmp_path / "out.parquet").read_text() == "mine"
        assert not (tmp_path / "out.parquet.shards").exists()

    def test_needs_a_folder(self, run: Callable[..., Path], sounds: Path) -> None:
        with pytest.raises(ScoringError, match="no such folder"):
            run(sounds, "nowhere/out.parquet")

    @pytest.mark.parametrize(
        "options", [{"engine": "spark"}, {"workers": 0}, {"address": "127.0.0.1:1"}]
    )
    def test_options_that_make_no_sense_are_refused(
        self, run: Callable[..., Path], sounds: Path, options: dict[str, Any]
    ) -> None:
        with pytest.raises(ScoringError):
            run(sounds, **options)


class TestInterruption:
    """A run that ends early leaves whole shards, and the next one goes on behind them."""

    @pytest.fixture
    def interrupted(
        self, run: Callable[..., Path], sounds: Path, monkeypatch: pytest.MonkeyPatch
    ) -> list[int]:
        """Stop behind the second shard; then collect the numbers of those that are scored."""
        numbers: list[int] = []
        stopped = False
        score_shard = scoring.score_shard

        def watched(job: Any, number: int, scorer: Any) -> ShardReport:
            if number == 2 and not stopped:
                raise KeyboardInterrupt
            numbers.append(number)
            return score_shard(job, number, scorer)

        monkeypatch.setattr("timnet_hf.scoring_local.score_shard", watched)
        with pytest.raises(KeyboardInterrupt):
            run(sounds, "out.parquet")
        stopped = True
        numbers.clear()
        return numbers

    def test_what_is_done_is_not_done_again(
        self, run: Callable[..., Path], sounds: Path, interrupted: list[int]
    ) -> None:
        output = run(sounds, "out.parquet")

        assert interrupted == [2, 3]
        assert_same_rows(output, run(sounds))

    def test_a_damaged_shard_is_scored_again(
        self, run: Callable[..., Path], sounds: Path, interrupted: list[int], tmp_path: Path
    ) -> None:
        shard = tmp_path / "out.parquet.shards" / "shard-00000.parquet"
        shard.write_bytes(shard.read_bytes()[:-20])

        output = run(sounds, "out.parquet")

        assert interrupted == [0, 2, 3]
        assert_same_rows(output, run(sounds))

    def test_one_damaged_inside_is_named_and_removed(
        self, run: Callable[..., Path], sounds: Path, interrupted: list[int], tmp_path: Path
    ) -> None:
        shard = tmp_path / "out.parquet.shards" / "shard-00000.parquet"
        content = bytearray(shard.read_bytes())
        content[4:200] = bytes(196)  # the footer is whole
        shard.write_bytes(content)

        with pytest.raises(
            ScoringError, match=r"shard-00000\.parquet: was damaged, and is removed"
        ):
            run(sounds, "out.parquet")
        output = run(sounds, "out.parquet")

        assert interrupted == [2, 3, 0]
        assert_same_rows(output, run(sounds))

    def test_a_damaged_plan_is_named(
        self, run: Callable[..., Path], sounds: Path, interrupted: list[int], tmp_path: Path
    ) -> None:
        (tmp_path / "out.parquet.shards" / "plan.json").write_text("")

        with pytest.raises(ScoringError, match=r"plan\.json: is damaged"):
            run(sounds, "out.parquet")

    def test_files_of_something_else_are_not_touched(
        self, run: Callable[..., Path], sounds: Path, tmp_path: Path
    ) -> None:
        mine = tmp_path / "out.parquet.shards" / "shard-keep.parquet"
        mine.parent.mkdir()
        mine.write_text("mine")

        with pytest.raises(ScoringError, match=r"holds shard-keep\.parquet, and no plan"):
            run(sounds, "out.parquet")

        assert mine.read_text() == "mine"

    @pytest.mark.parametrize("change", ["input", "model", "shard_size", "batch_size"])
    def test_another_run_does_not_go_on_with_it(
        self,
        run: Callable[..., Path],
        sounds: Path,
        interrupted: list[int],
        tmp_path: Path,
        change: str,
    ) -> None:
        with pytest.raises(ScoringError, match=f"a run with another {change}"):
            if change == "input":
                run(sounds / "other rate", "out.parquet")
            elif change == "model":
                other = save_model(tmp_path / "model", seed=1)
                score(sounds, tmp_path / "out.parquet", other, workers=1, shard_size=4)
            else:
                run(sounds, "out.parquet", **{change: 3})
        assert interrupted == []

        run(sounds, "out.parquet")  # the refusal has harmed nothing
        assert interrupted == [2, 3]

    def test_two_processes_do_not_work_on_one_output(
        self, run: Callable[..., Path], sounds: Path, interrupted: list[int], tmp_path: Path
    ) -> None:
        with FileLock(tmp_path / "out.parquet.shards" / ".lock"):
            with pytest.raises(ScoringError, match="another process is at work"):
                run(sounds, "out.parquet")

        run(sounds, "out.parquet")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="asks Linux for the workers")
def test_killed_in_the_middle_it_goes_on_and_gives_the_same(
    model: Path, tmp_path: Path, repository: Path, run: Callable[..., Path]
) -> None:
    sounds = write_sounds(tmp_path / "in", 400)
    command = [sys.executable, "-m", "timnet_hf", "score", sounds, "--model", model]
    command += ["--output", tmp_path / "out.parquet", "--workers", "2", "--shard-size", "2"]
    shards = tmp_path / "out.parquet.shards"
    with subprocess.Popen(
        list(map(str, command)), cwd=repository, stderr=subprocess.PIPE
    ) as killed:
        while len(list(shards.glob("shard-*.parquet"))) < 5:
            assert killed.poll() is None, killed.stderr and killed.stderr.read().decode()
            time.sleep(0.01)
        children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
        killed.send_signal(signal.SIGKILL)
    done = len(list(shards.glob("shard-*.parquet")))
    assert len(children) >= 2
    assert 5 <= done < 200
    assert not (tmp_path / "out.parquet").exists()
    deadline = time.monotonic() + 30
    while any(Path("/proc", child).exists() for child in children):  # no worker is left behind
        assert time.monotonic() < deadline
        time.sleep(0.05)

    output = run(sounds, "out.parquet", shard_size=2)

    assert [row["index"] for row in rows(output)] == list(range(400))
    assert_same_rows(output, run(sounds, shard_size=2))
