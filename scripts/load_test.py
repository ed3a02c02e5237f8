# SPDX-License-Identifier: Apache-2.0
"""Fifty visitors at a time on the demo page, for ten minutes.

    python scripts/load_test.py --minutes 10

The page runs as it is published, on this machine, with the shipped checkpoint. Visitors upload
good recordings, broken ones, an hour of sound, files over the limit, slowly, or leave in the
middle. What must hold: a good recording is never answered with an error (a full queue says so, and
the visitor comes again), memory does not grow, and no upload is left when the page is idle or has
ended. The figures go to ``results/load.json``; the status is 1 where something did not hold.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import soundfile

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results" / "load.json"
CHECKPOINT = REPOSITORY / "timnet_hf" / "checkpoints" / "timnet-emodb"
#: Seconds that the page keeps an upload here: so short that the run sees it deleted, and longer
#: than a visitor waits, for the page's own ten minutes are so, too.
KEPT = 180
#: MiB that the page may need more at the end than after warming up, and at any time.
GROWTH, MEMORY = 150, 4_000
#: What visitors do → how often.
BEHAVIOUR = {"good": 60, "batch": 8, "bad": 12, "huge": 4, "too large": 2, "slow": 7, "leave": 7}
BUSY = ("queue", "too many", "full")


class Load:
    """Visitors, and what they saw."""

    def __init__(self, url: str, folder: Path, seed: int):
        self.url = url
        self.clips = make_clips(folder)
        self.seed = seed
        self.lock = threading.Lock()
        self.seconds: dict[str, list[float]] = collections.defaultdict(list)
        self.counts: collections.Counter[str] = collections.Counter()
        self.errors: list[str] = []
        self.until = 0.0

    def visitor(self, number: int) -> None:
        """One visitor after the other, until the time is over."""
        from gradio_client import Client

        chance = random.Random(self.seed * 1_000 + number)
        client = None
        while time.monotonic() < self.until:
            what = chance.choices(list(BEHAVIOUR), list(BEHAVIOUR.values()))[0]
            started = time.monotonic()
            try:
                client = client or Client(self.url, verbose=False)
                outcome = getattr(self, "do_" + what.replace(" ", "_"))(client, chance)
            except Exception as error:  # a visitor is told something, or the page has broken
                text = f"{type(error).__name__}: {error}"
                if any(word in text.lower() for word in BUSY):
                    outcome = "busy"
                    time.sleep(chance.uniform(1, 3))
                elif what in ("good", "batch", "slow"):
                    outcome = "error"
                    with self.lock:
                        self.errors.append(f"{what}: {text}"[:300])
                else:
                    outcome = "refused"
            with self.lock:
                self.counts[f"{what}: {outcome}"] += 1
                if outcome == "ok":
                    self.seconds[what].append(time.monotonic() - started)
            time.sleep(chance.uniform(0, 0.5))

    def do_good(self, client: Any, chance: random.Random) -> str:
        """Ask for the emotion, and sometimes for the timeline and the explanation."""
        from gradio_client import handle_file

        clip = chance.choice(self.clips["good"])
        answer = client.predict(handle_file(clip), "timnet-emodb", api_name="/predict")
        shares = [entry["confidence"] for entry in answer[0]["confidences"]]
        assert abs(sum(shares) - 1) < 0.01, answer
        if chance.random() < 0.3:
            client.predict(handle_file(clip), "timnet-emodb", api_name="/timeline")
        return "ok"

    def do_batch(self, client: Any, chance: random.Random) -> str:
        """Several files, a bad one among them."""
        from gradio_client import handle_file

        clips = [*self.clips["good"][:3], self.clips["bad"][0]]
        files = [handle_file(clip) for clip in clips]
        table, _ = client.predict(files, "timnet-emodb", api_name="/batch")
        assert len(table["data"]) == 4
        return "ok"

    def do_bad(self, client: Any, chance: random.Random) -> str:
        """What is no recording gets a sentence."""
        from gradio_client import handle_file

        clip = chance.choice(self.clips["bad"])
        client.predict(handle_file(clip), "timnet-emodb", api_name="/predict")
        return "accepted"

    def do_huge(self, client: Any, chance: random.Random) -> str:
        """An hour of sound: answered, or refused as too long."""
        from gradio_client import handle_file

        clip = chance.choice(self.clips["huge"])
        client.predict(handle_file(clip), "timnet-emodb", api_name="/predict")
        return "ok"

    def do_too_large(self, client: Any, chance: random.Random) -> str:
        """More megabytes than are accepted."""
        status = upload(self.url, b"RIFF" + bytes(125 * 2**20), pieces=64, pause=0)
        return f"status {status}"

    def do_slow(self, client: Any, chance: random.Random) -> str:
        """A thin line: the upload takes seconds."""
        content = Path(self.clips["good"][0]).read_bytes()
        status = upload(self.url, content, pieces=20, pause=0.2)
        assert status == 200, status
        return "ok"

    def do_leave(self, client: Any, chance: random.Random) -> str:
        """Leave in the middle: of the upload, or while the page works."""
        from gradio_client import handle_file

        if chance.random() < 0.5:
            content = Path(self.clips["huge"][0]).read_bytes()
            upload(self.url, content, pieces=10, pause=0.05, stop_after=4)
        else:
            clip = handle_file(self.clips["huge"][0])
            client.submit(clip, "timnet-emodb", api_name="/predict").cancel()
        return "left"


def make_clips(folder: Path) -> dict[str, list[str]]:
    """Recordings: good, bad, and of an hour."""
    rng = np.random.default_rng(0)

    def speech(seconds: float, rate: int) -> np.ndarray:
        axis = np.arange(round(seconds * rate)) / rate
        sound = sum(np.sin(2 * np.pi * k * 130 * axis) / k for k in range(1, 9))
        return 0.2 * sound * np.abs(np.sin(4 * axis)) + 0.002 * rng.standard_normal(axis.size)

    clips: dict[str, list[str]] = {"good": [], "bad": [], "huge": []}
    for number, (seconds, rate, kind) in enumerate(
        [(1, 16_000, "wav"), (3, 44_100, "flac"), (6, 22_050, "ogg"), (20, 8_000, "wav")]
    ):
        path = folder / f"good{number}.{kind}"
        soundfile.write(path, speech(seconds, rate), rate)
        clips["good"].append(str(path))
    for number, content in enumerate(
        [b"no sound at all " * 99, b"RIFF\xff\xff\xff\xffWAVEfmt ", b"x"]
    ):
        path = folder / f"bad{number}.wav"
        path.write_bytes(content)
        clips["bad"].append(str(path))
    hour = np.tile(speech(60, 8_000), 60).astype(np.float32)
    for number, samples in enumerate([hour, np.tile(hour, 2)]):
        path = folder / f"huge{number}.flac"
        soundfile.write(path, samples, 8_000)
        clips["huge"].append(str(path))
    return clips


def upload(
    url: str, content: bytes, pieces: int, pause: float, stop_after: int | None = None
) -> int:
    """Send a file piece by piece; hang up after some of them where asked."""
    boundary = "timnet-load"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    connection = http.client.HTTPConnection(str(urlsplit(url).netloc), timeout=300)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", f"multipart/form-data; boundary={boundary}")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    size = len(body) // pieces + 1
    try:
        for number, first in enumerate(range(0, len(body), size)):
            if number == stop_after:
                return 0
            connection.send(io.BytesIO(body[first : first + size]).getvalue())
            time.sleep(pause)
        return connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):
        return -1  # the page hung up, as it may on what is too large
    finally:
        connection.close()


# --- the page -------------------------------------------------------------------------------------


def start_page(folder: Path) -> tuple[str, subprocess.Popen[bytes]]:
    """Serve the page from its own folder, and wait until it answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    (folder / "tmp").mkdir()
    environment = {
        **os.environ,
        "TIMNET_MODEL": str(CHECKPOINT),
        "TIMNET_EXAMPLES": str(REPOSITORY / "timnet_hf" / "demo_clips"),
        "TIMNET_KEPT": str(KEPT),
        "GRADIO_SERVER_PORT": str(port),
        "TMPDIR": str(folder / "tmp"),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    app = REPOSITORY / "spaces" / "timnet-emotion" / "app.py"
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(app)], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + 900
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2):
                return f"http://127.0.0.1:{port}", process
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit((folder / "log.txt").read_text(errors="replace"))
            time.sleep(0.5)


def memory_of(process: psutil.Process) -> int:
    """MiB of a process and its children."""
    family = [process, *process.children(recursive=True)]
    return sum(member.memory_info().rss for member in family) // 2**20


def files_below(folder: Path) -> int:
    """Files that lie below a folder while others come and go."""
    return sum(len(names) for _, _, names in os.walk(folder))


def percentile(values: list[float], share: float) -> float:
    """The value that so large a share of the values does not exceed, in seconds."""
    return round(float(np.quantile(values, share)), 2) if values else 0.0


def run(minutes: float, visitors: int, seed: int, folder: Path) -> dict[str, Any]:
    """Let visitors in, and measure."""
    url, process = start_page(folder)
    (folder / "clips").mkdir()
    load = Load(url, folder / "clips", seed)
    page = psutil.Process(process.pid)
    started = time.monotonic()
    load.until = started + 60 * minutes
    threads = [threading.Thread(target=load.visitor, args=(n,)) for n in range(visitors)]
    for thread in threads:
        thread.start()
    memory = []
    while time.monotonic() < load.until:
        time.sleep(2)
        memory.append(memory_of(page))
    for thread in threads:
        thread.join(600)
    stuck = sum(thread.is_alive() for thread in threads)
    lasted = time.monotonic() - started
    time.sleep(3 * KEPT + 10)
    idle = files_below(folder / "tmp")
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    print((folder / "log.txt").read_text(errors="replace")[-10_000:], file=sys.stderr)
    third = max(1, len(memory) // 3)
    minutes_begin = range(0, len(memory), 30)  # looked at every two seconds
    growth = round(float(np.median(memory[-third:]) - np.median(memory[third : 2 * third])))
    return {
        "visitors": visitors,
        "minutes": round(lasted / 60, 1),
        "requests": sum(load.counts.values()),
        "outcomes": dict(sorted(load.counts.items())),
        "p50_seconds": percentile(load.seconds["good"], 0.5),
        "p95_seconds": percentile(load.seconds["good"], 0.95),
        "memory_mib": {
            "peak": max(memory),
            "growth": growth,
            "each_minute": [round(float(np.median(memory[k : k + 30]))) for k in minutes_begin],
        },
        "files_when_idle": idle,
        "files_after_the_end": files_below(folder / "tmp"),
        "stuck_visitors": stuck,
        "errors_of_good_recordings": load.errors[:20],
        "cores": os.cpu_count(),
    }


def failures(result: dict[str, Any]) -> list[str]:
    """What did not hold."""
    checks = {
        "a good recording was answered with an error": bool(result["errors_of_good_recordings"]),
        "no good recording was answered": not result["outcomes"].get("good: ok"),
        "visitors hang": bool(result["stuck_visitors"]),
        "memory grows": result["memory_mib"]["growth"] > GROWTH,
        "too much memory": result["memory_mib"]["peak"] > MEMORY,
        "uploads are left when the page is idle": result["files_when_idle"] > 0,
        "files are left when the page has ended": result["files_after_the_end"] > 0,
    }
    return [what for what, holds in checks.items() if holds]


def main() -> None:
    """Run, write the figures, and say what did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="timnet-load-") as name:
        result = run(arguments.minutes, arguments.visitors, arguments.seed, Path(name))
    result["failures"] = failures(result)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    sys.exit(1 if result["failures"] else 0)


if __name__ == "__main__":
    main()
