# SPDX-License-Identifier: Apache-2.0
"""A small Hugging Face Hub on the loopback interface, with faults that a test can order.

It answers what huggingface_hub, transformers and evaluate ask when they publish and load:
create, validate-yaml, preupload, commit (ndjson), branches, revision, tree, paths-info and
resolve. Files are stored as regular git blobs. Every commit stays reachable by its id.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_a-token-that-may-write"

#: What the Hub knows; enough of its lists to catch a slip of the pen.
_LICENCES = {"apache-2.0", "mit", "cc-by-nc-sa-4.0", "other"}
_PIPELINE_TAGS = {"audio-classification"}


@dataclass
class Repository:
    """One repository: commits (id → parent, title, files) and branches (name → commit)."""

    kind: str
    private: bool = False
    sdk: str | None = None
    commits: dict[str, dict[str, Any]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], title: str) -> str:
        parent = self.branches.get(branch)
        seed = json.dumps([parent, title, len(self.commits), sorted(files)]).encode()
        for name in sorted(files):
            seed += hashlib.sha1(files[name]).digest()
        oid = hashlib.sha1(seed).hexdigest()
        self.commits[oid] = {"parent": parent, "title": title, "files": files}
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        if revision in self.branches:
            return self.branches[revision]
        return revision if revision in self.commits else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.resolve(revision)]["files"]  # type: ignore[index]

    def titles(self, branch: str = "main") -> list[str]:
        """Titles of a branch's commits, newest first."""
        titles, oid = [], self.branches.get(branch)
        while oid is not None:
            titles.append(self.commits[oid]["title"])
            oid = self.commits[oid]["parent"]
        return titles


@dataclass
class Fault:
    """What happens to the next requests that match, instead of an answer.

    Attributes:
        method: HTTP method.
        path: Regular expression on the path.
        status: Status to answer with; 0 drops the connection.
        headers: Headers of that answer.
        times: How often.
        after: The request is carried out first, and only its answer is lost.
    """

    method: str
    path: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    after: bool = False


class FakeHub:
    """State of the server, and the orders of a test."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.url = ""
        self.stop: Callable[[], None] = lambda: None

    def model(self, repo_id: str) -> Repository:
        return self.repositories["model", repo_id]

    def space(self, repo_id: str) -> Repository:
        return self.repositories["space", repo_id]

    def fail(self, method: str, path: str, status: int = 0, **options: Any) -> None:
        self.faults.append(Fault(method, path, status, **options))

    def take_fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def check_front_matter(content: str) -> list[str]:
    """What the Hub would refuse in a card's front matter."""
    match = re.match(r"\A---\n(.*?)\n---\n", content, re.DOTALL)
    if match is None:
        return []
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    errors = []
    if not isinstance(data, dict):
        return ["the front matter must be a mapping"]
    if (licence := data.get("license")) is not None and licence not in _LICENCES:
        errors.append(f'"license" must be one of {sorted(_LICENCES)}')
    if data.get("license") == "other" and not data.get("license_name"):
        errors.append('"license_name" is required when "license" is other')
    if data.get("pipeline_tag", "audio-classification") not in _PIPELINE_TAGS:
        errors.append('"pipeline_tag" is unknown')
    language = data.get("language", [])
    for code in [language] if isinstance(language, str) else language:
        if not re.fullmatch(r"[a-z]{2,3}|multilingual|code", code):
            errors.append('"language" must be ISO 639 codes')
    for name in ("tags", "datasets", "metrics"):
        values = data.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            errors.append(f'"{name}" must be a list of strings')
    for widget in data.get("widget", []):
        if "src" not in widget:
            errors.append('"widget" of an audio model needs "src"')
    for index, model in enumerate(data.get("model-index", [])):
        for result in model.get("results", []):
            for path in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
                if not isinstance(result.get(path[0], {}).get(path[1]), str):
                    errors.append(f'"model-index[{index}].results.{".".join(path)}" is required')
            for metric in result.get("metrics", []):
                if "type" not in metric or "value" not in metric:
                    errors.append(f'"model-index[{index}].results.metrics" need type and value')
            if "source" in result and "url" not in result["source"]:
                errors.append(f'"model-index[{index}].results.source.url" is required')
    return errors


class _Handler(BaseHTTPRequestHandler):
    """Translates requests into operations on the repositories."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802
        self._handle()

    do_HEAD = do_POST = do_DELETE = do_PUT = do_GET  # noqa: N815

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            fault = self.hub.take_fault(self.command, path)
            if fault is not None and fault.status == 0 and not fault.after:
                self.rfile.read(length // 2)
                return self._hang_up()
            self.body = self.rfile.read(length)
            if fault is None or fault.after:
                self.muted = fault is not None
                self._route(path)
                self.muted = False
            if fault is not None and fault.status == 0:
                return self._hang_up()
            if fault is not None:
                self._send(fault.status, {"error": "as ordered by the test"}, fault.headers)

    muted = False

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _route(self, path: str) -> None:
        if path == "/api/whoami-v2":
            return self._send(200, {"name": "org", "type": "user", "orgs": []})
        if path == "/api/validate-yaml":
            return self._validate()
        if path == "/api/repos/create":
            return self._create()
        if match := re.match(
            r"/api/(model|space|dataset)s/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.*))?)?$", path
        ):
            kind, repo_id, action, rest = match.groups()
            return self._api(kind, repo_id, action, rest or "")
        if match := re.match(r"/(?:(space|dataset)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.*)$", path):
            kind, repo_id, revision, name = match.groups()
            return self._resolve(kind or "model", repo_id, revision, name)
        self._error(404, "EntryNotFound")

    # --- answers ------------------------------------------------------------------------------

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        if self.muted:
            return
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, code: str) -> None:
        self._send(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        message = "Invalid credentials in Authorization header"
        self._send(401, {"error": message}, {"X-Error-Message": message})
        return False

    def _validate(self) -> None:
        errors = check_front_matter(json.loads(self.body)["content"])
        answer = {"errors": [{"message": error} for error in errors], "warnings": []}
        self._send(400 if errors else 200, answer)

    def _create(self) -> None:
        if not self._may_write():
            return
        wish = json.loads(self.body)
        kind = wish.get("type") or "model"
        repo_id = f"{wish.get('organization') or 'org'}/{wish['name']}"
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        if (kind, repo_id) in self.hub.repositories:
            return self._send(409, {"error": "You already created this repo", "url": url})
        private = wish.get("visibility") == "private" or bool(wish.get("private"))
        repository = Repository(kind, private, wish.get("sdk"))
        repository.commit("main", {".gitattributes": b"# none\n"}, "initial commit")
        self.hub.repositories[kind, repo_id] = repository
        self._send(200, {"url": url, "name": repo_id, "id": repo_id})

    def _api(self, kind: str, repo_id: str, action: str | None, rest: str) -> None:
        repository = self.hub.repositories.get((kind, repo_id))
        if repository is None:
            return self._error(404, "RepoNotFound")
        if action in (None, "revision"):
            return self._info(repository, repo_id, rest or "main")
        if action == "tree":
            revision, _, folder = rest.partition("/")
            return self._tree(repository, revision, folder)
        if not self._may_write():
            return
        if action == "branch":
            if rest in repository.branches:
                return self._error(409, "BranchExists")
            start = json.loads(self.body or b"{}").get("startingPoint", "main")
            repository.branches[rest] = repository.resolve(start)  # type: ignore[assignment]
            return self._send(200, {})
        if action == "preupload":
            return self._preupload(repository, rest)
        if action == "commit":
            return self._commit(repository, repo_id, rest)
        self._error(404, "EntryNotFound")

    def _info(self, repository: Repository, repo_id: str, revision: str) -> None:
        oid = repository.resolve(revision)
        if oid is None:
            return self._error(404, "RevisionNotFound")
        files = repository.files(revision)
        self._send(
            200,
            {
                "_id": repo_id,
                "id": repo_id,
                "modelId": repo_id,
                "sha": oid,
                "private": repository.private,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "pipeline_tag": "audio-classification",
                "library_name": "transformers",
                "siblings": [{"rfilename": name} for name in sorted(files)],
            },
        )

    def _tree(self, repository: Repository, revision: str, folder: str) -> None:
        if repository.resolve(revision) is None:
            return self._error(404, "RevisionNotFound")
        query = parse_qs(urlsplit(self.path).query)
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        prefix = f"{folder.strip('/')}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, content in sorted(repository.files(revision).items()):
            if not name.startswith(prefix):
                continue
            head, slash, _ = name[len(prefix) :].partition("/")
            if slash:
                entry = {"type": "directory", "path": prefix + head, "oid": "0" * 40, "size": 0}
                entries.setdefault(prefix + head, entry)
            if not slash or recursive:
                oid = git_oid(content)
                entries[name] = {"type": "file", "path": name, "oid": oid, "size": len(content)}
        if folder and not entries:
            return self._error(404, "EntryNotFound")
        self._send(200, list(entries.values()))

    def _preupload(self, repository: Repository, revision: str) -> None:
        there = repository.files(revision)
        answer = []
        for file in json.loads(self.body)["files"]:
            entry = {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
            if file["path"] in there:
                entry["oid"] = git_oid(there[file["path"]])
            answer.append(entry)
        self._send(200, {"files": answer})

    def _commit(self, repository: Repository, repo_id: str, branch: str) -> None:
        if branch not in repository.branches:
            return self._error(404, "RevisionNotFound")
        files = dict(repository.files(branch))
        header: dict[str, Any] = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
                if header.get("parentCommit") not in (None, repository.branches[branch]):
                    return self._send(412, {"error": "A commit has happened since."})
            elif item["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                return self._error(400, f"no support for {item['key']}")
        oid = repository.commit(branch, files, header["summary"])
        url = f"{self.hub.url}/{repo_id}/commit/{oid}"
        self._send(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _resolve(self, kind: str, repo_id: str, revision: str, name: str) -> None:
        repository = self.hub.repositories.get((kind, repo_id))
        if repository is None:
            return self._error(404, "RepoNotFound")
        oid = repository.resolve(revision)
        if oid is None:
            return self._error(404, "RevisionNotFound")
        content = repository.files(oid).get(name)
        if content is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid}
            return self._send(404, {"error": "Entry not found"}, headers)
        etag = f'"{git_oid(content)}"'
        self._send(200, content, {"ETag": etag, "X-Repo-Commit": oid})


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Run a Hub of one's own until the block is left; it can be stopped earlier by `hub.stop()`."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    hub.stop = stop
    try:
        yield hub
    finally:
        if thread.is_alive():
            stop()
