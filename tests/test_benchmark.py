# SPDX-License-Identifier: Apache-2.0
"""The benchmark's arithmetic, on clocks that are made up; no test here depends on real time."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from timnet_hf.measurement_tables import fill_benchmark, render_benchmark

KEYS = "name against ratio_median ratio_min ratio_max ours other limit unit rounds".split()


def load(repository: Path, name: str) -> ModuleType:
    """A script, imported without being run; scripts import one another as neighbours."""
    folder = str(repository / "scripts")
    spec = importlib.util.spec_from_file_location(name, Path(folder) / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


@pytest.fixture(scope="module")
def timing(repository: Path) -> ModuleType:
    return load(repository, "benchmark_timing")


class TestTiming:
    def test_the_time_of_an_action_is_in_milliseconds(self, timing: ModuleType) -> None:
        ticks: Iterator[float] = iter([10.0, 10.25])
        done: list[str] = []

        measure = timing.milliseconds(lambda: done.append("run"), clock=lambda: next(ticks))

        assert measure() == 250.0
        assert done == ["run"]

    def test_sides_take_turns_and_the_first_turns_do_not_count(self, timing: ModuleType) -> None:
        turns: list[str] = []

        def side(name: str) -> float:
            turns.append(name)
            return float(len(turns))

        ours, other = timing.alternate(
            lambda: side("ours"), lambda: side("other"), rounds=3, warm_up=2
        )

        assert turns == ["ours", "other"] * 5
        assert (ours, other) == ([5.0, 7.0, 9.0], [6.0, 8.0, 10.0])

    def test_no_round_is_refused(self, timing: ModuleType) -> None:
        with pytest.raises(ValueError, match="rounds is 0"):
            timing.alternate(lambda: 1.0, lambda: 1.0, rounds=0)


class TestRows:
    def test_a_row_has_the_agreed_figures(self, timing: ModuleType) -> None:
        row = timing.make_row("what", "whom", [1.0, 2.0, 4.0], [8.0, 8.0, 8.0], "ms", limit=0.5)

        assert list(row) == KEYS
        assert row == {
            "name": "what",
            "against": "whom",
            "ratio_median": 4.0,
            "ratio_min": 2.0,
            "ratio_max": 8.0,
            "ours": 2.0,
            "other": 8.0,
            "limit": 0.5,
            "unit": "ms",
            "rounds": 3,
        }

    def test_the_ratio_is_the_median_of_pairs_not_the_ratio_of_medians(
        self, timing: ModuleType
    ) -> None:
        """The machine was slow in the second round, for both sides."""
        row = timing.make_row("what", "whom", [1.0, 10.0, 2.0], [3.0, 30.0, 6.0], "ms")

        assert row["ratio_min"] == row["ratio_median"] == row["ratio_max"] == 3.0
        assert row["limit"] is None

    def test_of_rates_the_larger_one_is_better(self, timing: ModuleType) -> None:
        row = timing.make_row("what", "whom", [900.0], [300.0], "× real time", more_is_better=True)

        assert row["ratio_median"] == 3.0

    def test_a_round_without_its_partner_is_refused(self, timing: ModuleType) -> None:
        with pytest.raises(ValueError):
            timing.make_row("what", "whom", [1.0, 2.0], [1.0], "ms")

    def test_a_row_measured_again_replaces_the_old_one(
        self, timing: ModuleType, tmp_path: Path
    ) -> None:
        path = tmp_path / "benchmark.json"
        order = ["one", "two", "three"]
        rows = [timing.make_row(name, "whom", [1.0], [2.0], "ms") for name in ("two", "one")]
        timing.merge_rows(path, [*rows, {**rows[0], "name": "forgotten"}], order)
        assert [row["name"] for row in json.loads(path.read_text())] == ["one", "two"]

        again = timing.make_row("two", "whom", [1.0], [5.0], "ms")
        timing.merge_rows(path, [again], order)

        found = {row["name"]: row["ratio_median"] for row in json.loads(path.read_text())}
        assert found == {"one": 2.0, "two": 5.0}


class TestTable:
    def test_every_row_of_the_results_is_in_the_readme(self, repository: Path) -> None:
        rows = json.loads((repository / "results" / "benchmark.json").read_text())
        assert all(set(KEYS) <= set(row) for row in rows)
        text = (repository / "README.md").read_text()
        assert render_benchmark(rows) in text, "run: python scripts/update_tables.py"

    def test_a_line_says_what_is_compared_and_how_sure_it_is(
        self, timing: ModuleType, tmp_path: Path
    ) -> None:
        row = timing.make_row("what", "whom", [1.0, 2.0], [4_000.0, 8_000.0], "ms")
        (tmp_path / "benchmark.json").write_text(json.dumps([row]))

        text = "a\n<!-- benchmark:begin -->\nold\n<!-- benchmark:end -->\nb"
        filled = fill_benchmark(text, tmp_path)

        line = "| what | 1.5 ms | 6,000 ms | whom | **4,000** (4,000 to 4,000) | – | – |"
        assert line in filled
        assert "old" not in filled and filled.startswith("a\n") and filled.endswith("\nb")
        assert fill_benchmark(filled, tmp_path) == filled

    def test_it_says_what_was_aimed_at_and_missed_and_where_it_comes_from(
        self, timing: ModuleType
    ) -> None:
        rows = [timing.make_row(name, "whom", [1.0], [2.0], "ms") for name in ("a", "b")]
        rows[0] |= {"aim": "2 ×", "reached": True, "commit": "1234567", "date": "2026-01-31"}
        rows[1] |= {"aim": "3 ×", "reached": False, "commit": "1234567", "date": "2026-01-31"}

        table = render_benchmark(rows)

        assert "| **2** (2 to 2) | 2 × | – |" in table
        assert "| **2** (2 to 2) | 3 ×, **missed** | – |" in table
        assert "Measured at 1234567 (2026-01-31);" in table

    def test_without_results_it_says_so(self, tmp_path: Path) -> None:
        text = "<!-- benchmark:begin -->\n<!-- benchmark:end -->"
        assert "Nothing has been measured" in fill_benchmark(text, tmp_path)


@pytest.mark.parametrize(
    ("name", "row", "reached"),
    [
        ("file → label, one clip", {"ratio_median": 3.0}, True),
        ("file → label, one clip", {"ratio_median": 2.99}, False),
        ("folder of wav files → scores", {"ratio_median": 9.0, "ours": 999.0}, False),
        ("timnet --help", {"ratio_median": 0.1, "ours": 0.5}, True),
        ("timnet --help", {"ratio_median": 9.0, "ours": 0.51}, False),
        ("peak memory of a first prediction", {}, None),
    ],
)
def test_a_row_knows_whether_it_reaches_its_aim(
    timing: ModuleType, name: str, row: dict[str, float], reached: bool | None
) -> None:
    assert timing.with_aim({"name": name, **row})["reached"] == reached


def test_every_aim_is_of_a_row_that_is_measured(repository: Path, timing: ModuleType) -> None:
    scripts = (repository / "scripts").glob("benchmark_*.py")
    text = "".join(path.read_text() for path in scripts if path.name != "benchmark_timing.py")
    for name in timing.AIMS:
        assert f'"{name}": ' in text, name


def test_the_extra_brings_whatever_a_row_needs(repository: Path) -> None:
    text = (repository / "pyproject.toml").read_text(encoding="utf-8")
    bench = text.partition("\nbench = [")[2].partition("]\n")[0]
    for needed in ("timnet-hf[fast,onnx]", "librosa", "tensorflow-cpu", "tf_keras"):
        assert f'"{needed}' in bench


class TestLimits:
    def test_the_work_of_a_network_is_counted_from_its_weights(self, repository: Path) -> None:
        limits = load(repository, "benchmark_limits")
        network = torch.nn.Sequential(torch.nn.Conv1d(6, 4, 3, groups=2), torch.nn.Linear(4, 2))

        # 4 output channels, each of 3 inputs of its group and 3 taps, at 10 frames; 8 once.
        assert limits.network_flops(network, frames=10) == 2 * (4 * 3 * 3 * 10 + 8)


@pytest.fixture(scope="module")
def twin(repository: Path) -> dict[str, float]:
    """What a process of its own finds: TensorFlow, loaded before triton, would crash this one."""
    if importlib.util.find_spec("tf_keras") is None:
        pytest.skip("the extra `bench` is not installed")
    program = [sys.executable, str(repository / "tests" / "keras_twin.py")]
    done = subprocess.run(program, capture_output=True, text=True, cwd=repository, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestKeras:
    def test_the_other_side_is_the_same_network(self, twin: dict[str, float]) -> None:
        """With our weights, the Keras network gives our answers."""
        assert twin["spread"] > 0.01
        assert twin["difference"] < 1e-4

    def test_it_has_the_papers_number_of_parameters(self, twin: dict[str, float]) -> None:
        assert twin["parameters"] == 104_496


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_memory_of_a_program_is_its_own(repository: Path) -> None:
    """Not that of this process, which has torch loaded."""
    import psutil

    processes = load(repository, "benchmark_processes")
    own = psutil.Process().memory_info().rss / 1e6
    measured = processes.memory("kept = bytearray(30_000_000)")()
    assert 30 < measured < min(100, own)
