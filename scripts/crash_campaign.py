# SPDX-License-Identifier: Apache-2.0
"""Kill work at random moments, start it again, and compare what comes of it.

    nice python scripts/crash_campaign.py --kills 12

Training, cross-validation, bulk scoring, downloading and publishing (to a Hub and as a dry run) are
each begun in a child process and killed with SIGKILL at a random moment until there were that many
kills of each. After every kill no file under its final name may be torn; then the same work is
begun again, in the same place, killed up to twice more, and at last left alone: its result must be
that of a run which nobody disturbed. All servers are on this machine. The figures go to
``results/crashes.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results" / "crashes.json"
sys.path.insert(0, str(REPOSITORY))
os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_DISABLE_XET="1", MPLBACKEND="Agg")
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="timnet-crash-hf-"))

#: What no two runs share: times, and what was typed.
UNSHARED = {"wall_time_seconds", "seconds", "started", "log", "versions", "command"}


#: Seconds after which work that nobody disturbs counts as stuck.
LONGEST = 600
#: What takes long to load, and is loaded before the processes that are killed begin.
PRELOADED = ["transformers.trainer", "datasets", "sklearn.svm", "timnet_hf.training", "soundfile"]
PRELOADED += ["tests.tiny_training", "tests.fake_hub", "timnet_hf.crossvalidation_run"]
PRELOADED += ["timnet_hf.scoring", "timnet_hf.hub", "timnet_hf.plots", "pyarrow.parquet"]
PRELOADED += ["matplotlib.figure"]


@dataclass
class Job:
    """One kind of work.

    Attributes:
        result: What came of it in a folder, to compare.
        torn: Complaints about files in the folder, after a kill.
    """

    result: Callable[[Path], Any]
    torn: Callable[[Path], list[str]]


# --- whole or torn --------------------------------------------------------------------------------


def complaints(folder: Path) -> list[str]:
    """Files that bear a final name and are not whole."""
    from pyarrow import parquet
    from safetensors import safe_open

    def read(path: Path) -> None:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as weights:
                list(weights.keys())
        elif path.suffix == ".parquet":
            parquet.read_table(path)
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
        elif path.suffix == ".png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82")

    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        # Hidden names, and the Trainer's checkpoints before their last file, are no final ones.
        hidden = any(part.startswith(".") for part in parts) or path.suffix in (".tmp", ".part")
        checkpoint = next((p for p in path.parents if p.name.startswith("checkpoint-")), None)
        unfinished = checkpoint is not None and not _readable(checkpoint / "trainer_state.json")
        if hidden or unfinished or not path.is_file():
            continue
        try:
            read(path)
        except Exception as error:  # whatever a reader says of half a file
            found.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}"[:200])
    return found


def _readable(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def shared(value: Any) -> Any:
    """A JSON value without what no two runs share."""
    if isinstance(value, dict):
        return {key: shared(entry) for key, entry in value.items() if key not in UNSHARED}
    return [shared(entry) for entry in value] if isinstance(value, list) else value


def json_of(path: Path) -> Any:
    """What a JSON file holds, without that."""
    return shared(json.loads(path.read_text(encoding="utf-8")))


# --- the jobs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """What the work is done on: folders and servers of this machine."""

    folder: Path
    archive: str = ""
    hub: str = ""

    @property
    def model(self) -> Path:
        """A model to score with, and to publish."""
        return self.folder / "model"

    @property
    def sounds(self) -> Path:
        """Recordings to score."""
        return self.folder / "sounds"

    @property
    def calls(self) -> Path:
        """Recordings to learn from."""
        return self.folder / "data" / "calls"


def make_world(folder: Path) -> World:
    """Write the recordings and the model."""
    from tests.model_folders import write_model_folder
    from tests.scoring_world import write_sounds
    from tests.tiny_training import write_recordings

    world = World(folder)
    write_recordings(world.calls, metadata=True, per_class=6)
    write_sounds(world.sounds, 40)
    write_model_folder(world.model)
    return world


def work(name: str, place: Path, world: World) -> None:
    """Do one kind of work, in a process of its own."""
    log = os.open(place / ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    import huggingface_hub.constants as constants
    import torch

    from tests.fake_hub import TOKEN
    from tests.tiny_training import tiny_recipe
    from timnet_hf import reporting
    from timnet_hf.corpora import CORPORA, Download, download_corpus
    from timnet_hf.crossvalidation_run import run_cross_validation
    from timnet_hf.experiment import load_data, train_to_folder
    from timnet_hf.hub import publish
    from timnet_hf.scoring import score
    from timnet_hf.training import complete_checkpoints

    torch.set_num_threads(1)
    if name == "train":
        unfinished = bool(complete_checkpoints(place / "model" / "trainer"))
        recipe = tiny_recipe(num_train_epochs=4)
        train_to_folder(load_data(world.calls), recipe, place / "model", resume=unfinished)
    elif name == "cross-validate":
        reporting.BOOTSTRAP_ROUNDS = 50
        recipe = tiny_recipe(num_train_epochs=4)
        data = load_data(world.calls)
        run_cross_validation(data, recipe, "loso", place / "results", seeds=(0, 1))
    elif name == "score":
        score(world.sounds, place / "out.parquet", world.model, workers=1, shard_size=4)
    elif name == "download":
        CORPORA["emodb"] = replace(CORPORA["emodb"], checksum=None)  # ours are not the real ones
        download_corpus("emodb", place, download=Download(world.archive), pause=0.01)
    else:
        url = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, world.hub)
        constants.HUGGINGFACE_CO_URL_TEMPLATE, constants.ENDPOINT = url, world.hub
        constants.HF_HUB_OFFLINE = False
        dry = name == "publish --dry-run"
        output = place / "dry" if dry else None
        repo_id = f"org/{place.name}"
        publish(world.model, repo_id, token=TOKEN, dry_run=dry, output_dir=output)


def make_jobs(hub: Any) -> dict[str, Job]:
    """What came of each kind of work, and whether it is whole."""
    import pyarrow.parquet as parquet

    def trained(place: Path) -> Any:
        weights = (place / "model" / "model.safetensors").read_bytes()
        return weights, json_of(place / "model" / "training_record.json")

    def validated(place: Path) -> Any:
        return json_of(place / "results" / "calls" / "loso" / "tiny" / "report.json")

    def scored(place: Path) -> Any:
        return parquet.read_table(place / "out.parquet").to_pylist()

    def downloaded(place: Path) -> Any:
        return {path.name: path.read_bytes() for path in (place / "emodb").rglob("*.wav")}

    def half_unpacked(place: Path) -> list[str]:
        count = len(list((place / "emodb").rglob("*.wav")))
        return complaints(place) + [f"emodb: {count} files"] * (count not in (0, 535))

    def pushed(place: Path) -> Any:
        return _on_hub(hub, place.name)

    def half_pushed(place: Path) -> list[str]:
        count = len(pushed(place))
        return [f"{count} files on the Hub"] * (count not in (0, len(_on_hub(hub, "undisturbed"))))

    def dried(place: Path) -> Any:
        files = [path for path in (place / "dry").rglob("*") if path.is_file()]
        return {
            str(path.relative_to(place)): path.read_bytes().replace(place.name.encode(), b"x")
            for path in files
        }

    def half_dry(place: Path) -> list[str]:
        count = len(dried(place))
        return [f"dry run: {count} files"] * (count not in (0, len(_on_hub(hub, "undisturbed"))))

    return {
        "train": Job(trained, complaints),
        "cross-validate": Job(validated, complaints),
        "score": Job(scored, complaints),
        "download": Job(downloaded, half_unpacked),
        "publish": Job(pushed, half_pushed),
        "publish --dry-run": Job(dried, half_dry),
    }


def _on_hub(hub: Any, name: str) -> dict[str, bytes]:
    """The files of a repository, with its name taken out of them."""
    repository = hub.repositories.get(("model", f"org/{name}"))
    if repository is None or "main" not in repository.branches:
        return {}
    files: dict[str, bytes] = repository.files("main")
    return {
        key: text.replace(f"org/{name}".encode(), b"org/x")
        for key, text in files.items()
        if key != ".gitattributes"
    }


@contextmanager
def slow_server(content: bytes) -> Iterator[str]:
    """Serve a file in small pieces, with ranges."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802  (the base class asks for it)
            asked = self.headers.get("Range")
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            self.send_response(206 if asked else 200)
            if asked:
                total = len(content)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            for first in range(start, len(content), 8_192):
                self.wfile.write(content[first : first + 8_192])
                time.sleep(0.02)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                pass  # the client was killed

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/corpus.zip"
    finally:
        server.shutdown()
        server.server_close()


# --- killing --------------------------------------------------------------------------------------


def let_run(name: str, place: Path, world: World, seconds: float | None) -> bool:
    """Do the work, killed after so many seconds; whether it was killed.

    Raises:
        RuntimeError: It ended by itself, and not well, or does not end.
    """
    # The processes are forked from one that has the libraries loaded, and no threads.
    process = get_context("forkserver").Process(target=work, args=(name, place, world))
    process.start()
    process.join(LONGEST if seconds is None else seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        if seconds is None:
            raise RuntimeError(f"still at it after {LONGEST} s")
        return process.exitcode == -signal.SIGKILL
    if process.exitcode:
        raise RuntimeError((place / ".log").read_text()[-1500:])
    return False


def torture(
    name: str, job: Job, world: World, folder: Path, kills: int, chance: random.Random
) -> dict[str, Any]:
    """Kill a kind of work so often, and see what comes of it each time."""
    undisturbed, warm = folder / "undisturbed", folder / "warm"
    for place in (warm, undisturbed):
        place.mkdir(parents=True)
    let_run(name, warm, world, None)
    started = time.monotonic()
    let_run(name, undisturbed, world, None)
    length = time.monotonic() - started
    wanted = job.result(undisturbed)
    report: dict[str, Any] = {"kills": 0, "runs": 0, "findings": []}
    while report["kills"] < kills:
        place = folder / f"run-{report['runs']}"
        place.mkdir()
        report["runs"] += 1
        try:
            for _ in range(3):
                if not let_run(name, place, world, chance.uniform(0, length)):
                    break
                report["kills"] += 1
                report["findings"] += [f"torn: {what}" for what in job.torn(place)]
            else:
                let_run(name, place, world, None)
            if job.result(place) != wanted:
                report["findings"].append("the result differs from an undisturbed run's")
        except Exception as error:  # a finding like any other
            report["findings"].append(f"does not go on: {error}"[-1500:])
        shutil.rmtree(place, ignore_errors=True)
        print(f"{name}: {report}", flush=True)
    return report


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=12, help="of each kind of work")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="one kind of work")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    from tests.fake_hub import serve
    from tests.test_corpus_download import tiny_emodb

    get_context("forkserver").set_forkserver_preload(PRELOADED)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="timnet-crash-") as name,
        slow_server(tiny_emodb()) as archive,
        serve() as hub,
    ):
        folder = Path(name)
        world = replace(make_world(folder / "material"), archive=archive, hub=hub.url)
        jobs = make_jobs(hub)
        reports = {}
        for index, (what, job) in enumerate(jobs.items()):
            if arguments.only in (None, what):
                chance = random.Random(arguments.seed)
                place = folder / str(index)
                reports[what] = torture(what, job, world, place, arguments.kills, chance)
    result = {
        "kills": sum(report["kills"] for report in reports.values()),
        "findings": sum(len(report["findings"]) for report in reports.values()),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "jobs": reports,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['kills']} kills, {result['findings']} findings, see {arguments.output}")


if __name__ == "__main__":
    main()
