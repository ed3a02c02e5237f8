# SPDX-License-Identifier: Apache-2.0
"""Feed damaged files to every reader of the package, guided by what they make it execute.

    pip install atheris
    nice python scripts/fuzz.py --minutes 60

Each reader runs in a process of its own under libFuzzer (atheris), in slices, in turn, with a limit
of time and memory for each input. What an input may do is end well, or be refused by the error that
the reader promises; anything else is a finding. Inputs that reached something new are kept in the
work folder, so that another run goes on from there. The figures of all runs are added up in
``results/fuzz.json``.

``--reader hdf5 --seconds 9`` runs one reader in the foreground, and ``--reader hdf5 --input FILE``
gives it a single input. Minutes count the fuzzing alone, not the loading of libraries before it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "scripts"))

from fuzz_readers import READERS, make_reader  # noqa: E402  (wherever this is run from)

RESULTS = REPOSITORY / "results" / "fuzz.json"
#: Seconds in which an input must be done with, and after which it is killed.
SLOW, HANG = 20, 60
#: MiB that one input may add to the process, and that the process may have.
MORE_MEMORY, MEMORY = 1_000, 4_000


# --- one reader, in its own process ---------------------------------------------------------------


class Watch:
    """Runs a reader on one input after the other, and writes down what it should not have done."""

    def __init__(self, name: str, work: Path, folder: Path):
        self.reader, self.promised, self.seeds = make_reader(name, folder)
        self.findings = work / "findings"
        self.findings.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.most = 0

    def __call__(self, data: bytes) -> None:
        """Read one input."""
        started, before = time.monotonic(), self._peak()
        try:
            self.reader(data)
        except self.promised as error:
            text = str(error)
            if "can't allocate" in text or "MemoryError" in text:
                self._note("memory", "asked for more memory than there is", data)
            if not text.strip():
                self._note("silent", "the error says nothing", data)
        except BaseException as error:  # whatever it is, it was not promised
            place = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in place if "timnet" in frame.filename] or place
            where = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
            self._note(f"{type(error).__name__} in {where}", f"{error}"[:300], data)
        if time.monotonic() - started > SLOW:
            self._note("slow", f"took {time.monotonic() - started:.0f} s", data)
        if self._peak() - max(before, 1) > MORE_MEMORY:
            self._note("memory", f"took {self._peak() - before} MiB more", data)

    @staticmethod
    def _peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    def _note(self, kind: str, detail: str, data: bytes) -> None:
        """Keep one input of each kind of finding."""
        stem = f"{self.name}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"
        if (self.findings / f"{stem}.json").exists():
            return
        (self.findings / f"{stem}.bin").write_bytes(data)
        note = {"reader": self.name, "kind": kind, "detail": detail, "input": f"{stem}.bin"}
        (self.findings / f"{stem}.json").write_text(json.dumps(note, indent=1) + "\n")


def run_reader(name: str, work: Path, seconds: int, seed: int, single: Path | None) -> None:
    """Fuzz one reader here; libFuzzer ends the process."""
    import logging
    import warnings

    limit = MEMORY * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix=f"timnet-fuzz-{name}-"))
    tempfile.tempdir = str(folder)
    if single is not None:
        Watch(name, work, folder)(single.read_bytes())
        shutil.rmtree(folder, ignore_errors=True)
        return
    import atheris

    with atheris.instrument_imports(include=["timnet_hf", "recording"]):
        watch = Watch(name, work, folder)
    corpus = work / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(watch.seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    longest = 4 * max(map(len, watch.seeds))
    options = [f"-max_total_time={seconds}", f"-timeout={HANG}", f"-rss_limit_mb={MEMORY + 500}"]
    options += [f"-artifact_prefix={work}/findings/{name}-killed-", f"-max_len={longest}"]
    options += [f"-seed={seed}", "-print_final_stats=1", "-verbosity=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], watch)
    atheris.Fuzz()


# --- the campaign -------------------------------------------------------------------------------


def next_reader(spent: dict[str, dict[str, float]]) -> str:
    """The reader that had the least of its share so far, in this run and those before."""
    return min(READERS, key=lambda name: (spent[name]["minutes"] + 1) / READERS[name])


def run_slice(name: str, work: Path, seconds: int, seed: int) -> dict[str, float]:
    """Fuzz one reader for a while: the number of inputs, and minutes by the clock and the CPU."""
    command = [sys.executable, __file__, "--reader", name, "--work", str(work)]
    command += ["--seconds", str(seconds), "--seed", str(seed)]
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    try:
        done = subprocess.run(
            command, capture_output=True, env=environment, timeout=seconds + 1200, check=False
        )
        text = done.stderr.decode("utf-8", "replace")
    except subprocess.TimeoutExpired as stuck:
        text = (stuck.stderr or b"").decode("utf-8", "replace")
    (work / f"{name}.log").write_text(text)
    executed = re.findall(r"number_of_executed_units:\s*(\d+)", text) or re.findall(
        r"^#(\d+)", text, re.MULTILINE
    )
    fuzzed = re.findall(r"^Done \d+ runs in (\d+) second", text, re.MULTILINE)
    minutes = (int(fuzzed[-1]) if fuzzed else time.monotonic() - started) / 60
    for left in Path(tempfile.gettempdir()).glob(f"timnet-fuzz-{name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    inputs = int(executed[-1]) if executed else 0
    return {"inputs": inputs, "minutes": minutes, "cpu_minutes": busy / 60}


def summary(work: Path, spent: dict[str, Any]) -> dict[str, Any]:
    """What all runs together found."""
    findings = [json.loads(path.read_text()) for path in sorted(work.glob("findings/*.json"))]
    for path in sorted(work.glob("findings/*-killed-*")):
        reader, _, rest = path.name.partition("-killed-")
        kind = {"timeout": "hang", "oom": "memory", "slow": "slow"}.get(rest.split("-")[0], "crash")
        if kind != "slow":
            detail = f"killed: {kind}"
            findings.append({"reader": reader, "kind": kind, "detail": detail, "input": path.name})
    return {
        "engine": "atheris (libFuzzer)",
        "limits": {"seconds": HANG, "more_memory_mib": MORE_MEMORY, "memory_mib": MEMORY},
        **_total(spent.values()),
        "readers": {name: _total([values]) for name, values in spent.items()},
        "findings": findings,
    }


def _total(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    parts = list(parts)
    return {
        "inputs": sum(int(part["inputs"]) for part in parts),
        **{
            name: round(sum(part[name] for part in parts), 1) for name in ("minutes", "cpu_minutes")
        },
    }


def main() -> None:
    """Run the campaign, or one reader of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build" / "fuzz")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=int, default=180, help="of a slice")
    parser.add_argument("--reader", choices=READERS)
    parser.add_argument("--input", type=Path, help="give the reader this one input")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if arguments.reader:
        run_reader(arguments.reader, work, arguments.seconds, arguments.seed, arguments.input)
        return
    state = work / "spent.json"
    spent = dict.fromkeys(READERS) | (json.loads(state.read_text()) if state.exists() else {})
    nothing = {"inputs": 0, "minutes": 0.0, "cpu_minutes": 0.0}
    spent = {name: value or dict(nothing) for name, value in spent.items()}
    until = sum(part["minutes"] for part in spent.values()) + arguments.minutes
    while (total := sum(part["minutes"] for part in spent.values())) < until:
        name = next_reader(spent)
        figures = run_slice(name, work, arguments.seconds, arguments.seed + round(total * 60))
        for what, value in figures.items():
            spent[name][what] += value
        state.write_text(json.dumps(spent))
        arguments.output.write_text(json.dumps(summary(work, spent), indent=1) + "\n")
        print(name, _total([figures]), flush=True)
    print(f"{len(summary(work, spent)['findings'])} findings, see {arguments.output}")


if __name__ == "__main__":
    main()
