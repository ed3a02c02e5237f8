# SPDX-License-Identifier: Apache-2.0
"""Downloads: resumed, checked, unpacked without trust, against a server on this machine."""

from __future__ import annotations

import hashlib
import io
import re
import stat
import struct
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timnet_hf.corpora import CORPORA, CorpusError, Download, download_corpus, load_corpus
from timnet_hf.corpus_download import fetch, unpack


@dataclass
class Server:
    """Answers every GET with `content`, and with mishaps in the order they are listed."""

    content: bytes
    tag: str | None = '"1"'
    ranges: bool = True
    mishaps: list[str | int] = field(default_factory=list)
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked, tag = handler.headers.get("Range"), handler.headers.get("If-Range")
        self.asked.append((asked, tag))
        mishap = self.mishaps.pop(0) if self.mishaps else None
        if isinstance(mishap, int) and mishap >= 400:
            handler.send_error(mishap)
            return
        start, status = 0, 200
        if asked and self.ranges and tag in (None, self.tag):
            start, status = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]), 206
        if start >= len(self.content) and status == 206:
            handler.send_error(416)
            return
        body = self.content[start:]
        handler.send_response(status)
        if status == 206:
            total = len(self.content)
            first = start + 1 if mishap == "wrong range" else start
            handler.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        if self.tag:
            handler.send_header("ETag", self.tag)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if mishap == "drop" else body)


@pytest.fixture
def serve() -> Iterator:
    servers = []

    def start(content: bytes, **behaviour) -> Server:
        server = Server(content, **behaviour)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(http)
        server.url = f"http://127.0.0.1:{http.server_port}/corpus.zip"
        return server

    yield start
    for http in servers:
        http.shutdown()
        http.server_close()


CONTENT = bytes(range(256)) * 4000


def md5(content: bytes) -> str:
    return "md5:" + hashlib.md5(content).hexdigest()


def zipped(files: dict[str | zipfile.ZipInfo, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return memory.getvalue()


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- fetching ---------------------------------------------------------------------------------


def test_a_file_arrives_whole_with_progress(serve, tmp_path) -> None:
    server, seen = serve(CONTENT), []
    fetch(
        Download(server.url, md5(CONTENT)),
        tmp_path / "a.zip",
        progress=lambda *counts: seen.append(counts),
    )
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert leftovers(tmp_path) == ["a.zip"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_dropped_connection_is_resumed_where_it_broke(serve, tmp_path) -> None:
    server = serve(CONTENT, mishaps=["drop", "drop"])
    fetch(Download(server.url), tmp_path / "a.zip", pause=0)
    half = len(CONTENT) // 2
    assert server.asked == [
        (None, None),
        (f"bytes={half}-", '"1"'),
        (f"bytes={half + half // 2}-", '"1"'),
    ]
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert leftovers(tmp_path) == ["a.zip"]


def test_a_later_run_goes_on_where_an_earlier_one_was_given_up(serve, tmp_path) -> None:
    server = serve(CONTENT, mishaps=["drop", 404])
    with pytest.raises(CorpusError, match="answers 404"):
        fetch(Download(server.url), tmp_path / "a.zip", pause=0)
    assert not (tmp_path / "a.zip").exists()
    fetch(Download(server.url), tmp_path / "a.zip", pause=0)
    assert server.asked[-1] == (f"bytes={len(CONTENT) // 2}-", '"1"')
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(serve, tmp_path) -> None:
    server = serve(CONTENT, mishaps=["drop", 404])
    with pytest.raises(CorpusError):
        fetch(Download(server.url), tmp_path / "a.zip", pause=0)
    server.content, server.tag = CONTENT[::-1], '"2"'
    fetch(Download(server.url), tmp_path / "a.zip", pause=0)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(
    "behaviour",
    [
        {"ranges": False, "mishaps": ["drop"]},
        {"tag": None, "mishaps": ["drop"]},
        {"mishaps": ["drop", "wrong range"]},
        {"mishaps": [503, 429, "drop", 500]},
    ],
    ids=["no ranges", "no tag", "wrong range", "busy"],
)
def test_awkward_servers_still_deliver(serve, tmp_path, behaviour) -> None:
    server = serve(CONTENT, **behaviour)
    fetch(Download(server.url), tmp_path / "a.zip", pause=0)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_without_a_tag_the_checksum_makes_resuming_safe(serve, tmp_path) -> None:
    server = serve(CONTENT, tag=None, mishaps=["drop"])
    fetch(Download(server.url, md5(CONTENT)), tmp_path / "a.zip", pause=0)
    assert server.asked[-1] == (f"bytes={len(CONTENT) // 2}-", None)


def test_a_part_that_is_longer_than_the_file_is_dropped(serve, tmp_path) -> None:
    server = serve(CONTENT)
    (tmp_path / "a.zip.part").write_bytes(CONTENT + b"more")
    fetch(Download(server.url, md5(CONTENT)), tmp_path / "a.zip", pause=0)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing_behind(serve, tmp_path) -> None:
    server = serve(CONTENT)
    with pytest.raises(CorpusError, match="md5 checksum is .* was published"):
        fetch(Download(server.url, md5(b"other")), tmp_path / "a.zip")
    assert leftovers(tmp_path) == []


def test_a_dead_server_is_given_up_and_what_came_is_kept(serve, tmp_path) -> None:
    server = serve(CONTENT, mishaps=["drop"] + [503] * 50)
    with pytest.raises(CorpusError, match=r"bytes are in .*a\.zip\.part: start again later"):
        fetch(Download(server.url), tmp_path / "a.zip", pause=0)
    assert (tmp_path / "a.zip.part").read_bytes() == CONTENT[: len(CONTENT) // 2]
    with pytest.raises(CorpusError, match="refused"):
        fetch(Download("http://127.0.0.1:9/"), tmp_path / "b.zip", pause=0)


def test_only_web_addresses_are_fetched(tmp_path) -> None:
    with pytest.raises(CorpusError, match="not an http or https address"):
        fetch(Download("file:///etc/passwd"), tmp_path / "a.zip")


# --- unpacking --------------------------------------------------------------------------------


def link(name: str, target: str) -> dict[str | zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return {info: target.encode()}


def encrypted() -> bytes:
    data = bytearray(zipped({"a.wav": b"x"}))
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + flags] |= 1
    return bytes(data)


def with_nothing_of(content: bytes) -> bytes:
    """Break the packed bytes of the first member, not the directory."""
    start = content.index(b"PK\x03\x04") + 30 + 5
    return content[:start] + bytes(20) + content[start + 20 :]


def test_a_plain_archive_unpacks_with_its_folders(tmp_path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"wav/": b"", "wav/a.wav": b"1", "x/y/z.txt": b"2"}))
    unpack(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out/wav/a.wav").read_bytes() == b"1"
    assert (tmp_path / "out/x/y/z.txt").read_bytes() == b"2"
    assert leftovers(tmp_path) == ["a.zip", "out"]


def damaged(place: bytes, offset: int, value: bytes) -> bytes:
    """An archive with other bytes behind a signature of its central directory."""
    content = bytearray(zipped({"wav/a.wav": bytes(100), "b.wav": b"2"}))
    at = content.index(place) + offset
    content[at : at + len(value)] = value
    return bytes(content)


#: Found by scripts/fuzz.py: what zipfile raises for these is no error of its own.
FUZZED = {
    "a name that is not the UTF-8 it claims": damaged(
        b"PK\1\2", 8, b"\0\x08" + bytes(36) + b"\x8b\x8b"
    ),
    "a directory that starts before the file": damaged(b"PK\5\6", 16, b"\xff\xff\xff\x7f"),
    "a name of no length": damaged(b"PK\1\2", 28, b"\0\0"),
    "a version from the future": damaged(b"PK\1\2", 6, b"\xff\xff"),
    "an unknown compression": damaged(b"PK\1\2", 10, b"\x63\0"),
    "a member that lies elsewhere": damaged(b"PK\1\2", 42, b"\xf0\xff\xff\xff"),
}


@pytest.mark.parametrize("case", FUZZED)
def test_a_damaged_archive_is_a_clear_error(tmp_path, case) -> None:
    (tmp_path / "a.zip").write_bytes(FUZZED[case])
    with pytest.raises(CorpusError, match="a.zip"):
        unpack(tmp_path / "a.zip", tmp_path / "out", max_bytes=10**6, max_files=10)
    assert set(leftovers(tmp_path)) <= {"a.zip"}


@given(st.data())
@settings(max_examples=60)
def test_random_damage_to_an_archive_unpacks_or_is_refused(data) -> None:
    content = bytearray(zipped({"wav/a.wav": bytes(range(100)), "b.wav": b"2"}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "inner"
        folder.mkdir()
        (folder / "a.zip").write_bytes(content)
        with suppress(CorpusError):
            unpack(folder / "a.zip", folder / "out", max_bytes=10**6, max_files=10)
        assert set(leftovers(folder)) <= {"a.zip", "out"} and leftovers(Path(name)) == ["inner"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped({"ok.wav": b"1", "../evil.wav": b"2"}), "'../evil.wav' leads out of the folder"),
        (zipped({"wav/../../evil.wav": b"2"}), "leads out"),
        (zipped({"/evil.wav": b"2"}), "leads out"),
        (zipped({"C:evil.wav": b"2"}), "leads out"),
        (zipped({"..\\evil.wav": b"2"}), "leads out"),
        (zipped(link("wav", "/tmp") | {"wav/evil.wav": b"2"}), "'wav' is a link or a device"),
        (encrypted(), "is encrypted"),
        (zipped({"a.wav": b"1", "A.wav": b"2"}), "occurs twice"),
        (zipped({"bomb.wav": bytes(3_000_000)}), "unpacks to more than"),
        (zipped({f"{k}.wav": b"" for k in range(101)}), "unpacks to more than 100 files"),
        (b"<html>Not found</html>", "not a whole zip file"),
        (zipped({"a.wav": bytes(1000)})[:-30], "not a whole zip file"),
        (with_nothing_of(zipped({"a.wav": bytes(range(256))})), "not a whole zip file"),
        (zipped({"a": b"1", "a/b.wav": b"2"}), "not a whole zip file"),
        (zipped({"a//b": b"1", "a/b": b"2"}), "not a whole zip file"),
    ],
    # A zip file holds the time it was made: as a name it would differ between two test processes.
    ids=lambda value: value if isinstance(value, str) else "zip",
)  # fmt: skip
def test_an_unsafe_or_broken_archive_unpacks_to_nothing(tmp_path, content, message) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "a.zip").write_bytes(content)
    with pytest.raises(CorpusError, match=re.escape(message).replace(r"\.\*", ".*")):
        unpack(folder / "a.zip", folder / "out", max_bytes=2_000_000, max_files=100)
    assert set(leftovers(folder)) <= {"a.zip"}
    assert leftovers(tmp_path) == ["inner"]


def test_a_size_that_the_directory_understates_does_not_help_a_bomb(tmp_path) -> None:
    content = bytearray(zipped({"bomb.wav": bytes(3_000_000)}))
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = struct.pack("<I", 10)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(CorpusError):
        unpack(tmp_path / "a.zip", tmp_path / "out", max_bytes=2_000_000)
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_never_written_into(tmp_path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"a.wav": b"1"}))
    (tmp_path / "out").mkdir()
    with pytest.raises(CorpusError, match="exists already"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


# --- a whole corpus ---------------------------------------------------------------------------


def tiny_emodb() -> bytes:
    """The names of EMO-DB, each over a tiny sound of its own."""
    names = sorted(n for fold in CORPORA["emodb"].emobox_folds().values() for n in fold)
    head = struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", 100, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16
    )
    return zipped(
        {
            f"wav/{name}.wav": head + struct.pack("<4sI", b"data", 64) + struct.pack("<H", k) * 32
            for k, name in enumerate(names)
        }
    )


@pytest.fixture
def unknown_checksum(monkeypatch) -> None:
    """Generated recordings cannot have the checksum of the real ones."""
    monkeypatch.setitem(CORPORA, "emodb", replace(CORPORA["emodb"], checksum=None))


def test_a_corpus_is_ready_to_load_and_not_fetched_twice(serve, tmp_path, unknown_checksum) -> None:
    server = serve(tiny_emodb(), mishaps=["drop"])
    for _ in range(2):
        folder = download_corpus("EMO-DB", tmp_path, download=Download(server.url), pause=0)
    assert folder == tmp_path / "emodb"
    assert len(load_corpus("emodb", tmp_path)) == 535
    assert len(server.asked) == 2
    assert leftovers(tmp_path) == ["emodb"]


def test_an_archive_that_lies_there_is_checked_like_one_that_comes(
    serve, tmp_path, unknown_checksum
) -> None:
    """Of a run that was killed, or put there by somebody; a user's own is not touched at all."""
    content = tiny_emodb()
    server = serve(content)
    download = Download(server.url, md5(content))
    (tmp_path / "emodb.zip").write_bytes(b"mine")
    (tmp_path / ".emodb.zip").write_bytes(zipped({"wav/03a01Fa.wav": b"noise"}))
    with pytest.raises(CorpusError, match="checksum is .* but .* was published"):
        download_corpus("emodb", tmp_path, download=download)
    assert not server.asked and leftovers(tmp_path) == ["emodb.zip"]
    (tmp_path / ".emodb.zip").write_bytes(content)
    assert download_corpus("emodb", tmp_path, download=download) == tmp_path / "emodb"
    assert not server.asked and leftovers(tmp_path) == ["emodb", "emodb.zip"]


def test_recordings_that_are_not_the_published_ones_are_refused(serve, tmp_path) -> None:
    server = serve(tiny_emodb())
    with pytest.raises(CorpusError, match="this is not EMO-DB as published"):
        download_corpus("emodb", tmp_path, download=Download(server.url))


def test_an_archive_of_something_else_is_refused(serve, tmp_path) -> None:
    server = serve(zipped({"wav/notes.txt": b"1"}))
    with pytest.raises(CorpusError, match="no recordings of EMO-DB"):
        download_corpus("emodb", tmp_path, download=Download(server.url))


@pytest.mark.parametrize("name", ["casia", "emovo", "iemocap", "savee"])
def test_the_others_say_where_to_ask(tmp_path, name) -> None:
    with pytest.raises(CorpusError, match=re.escape(CORPORA[name].obtain)):
        download_corpus(name, tmp_path)
    assert leftovers(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CorpusError, match="EMO-DB could not be stored"):
        download_corpus("emodb", tmp_path / "file", download=Download("http://127.0.0.1:9/"))
