"""A Hugging Face Hub on loopback: the routes that the real client calls to publish and load models, with faults.

Repositories are in memory, with one store of large files by SHA-256. Tokens are `WRITER` and `READER`. `Hub` serves
from a thread of the test; its clients are other processes with `HF_ENDPOINT` set to its address. As on the Hub, large
files are redirected to another host, which must not receive the token. Xet is missing: clients need
`HF_HUB_DISABLE_XET=1`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repos import LARGE, Fault, HubError, Repo, sibling, tree_entry

WRITER, READER = "dummy", "reader"


class Hub:
    """`with Hub() as hub: ...`; `hub.requests` lists "METHOD /path", `hub.faults` the faults to inject."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"
        self.storage = f"http://localhost:{self._http.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def fail(self, route: str, **fault: Any) -> None:
        self.faults.append(Fault(route, **fault))

    def count(self, route: str) -> int:
        return sum(re.search(route, request) is not None for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        url = urlsplit(self.path)
        request = f"{self.command} {unquote(url.path)}"
        with self.hub.lock:
            self.hub.requests.append(request)
            matching = (fault for fault in self.hub.faults if fault.times and re.search(fault.route, request))
            fault = next(matching, Fault(""))
            fault.times -= 1
        size = int(self.headers.get("Content-Length", 0))
        if fault.cut and self.command == "PUT":
            self.rfile.read(size // 2)
            self.close_connection = True
            return
        # Before any error: an unread body would be parsed as the connection's next request.
        self.body = self.rfile.read(size)
        try:
            if fault.status is not None:
                raise HubError(fault.status, f"fault {fault.status}")
            with self.hub.lock:
                status, headers, body = self._route(url.path, parse_qs(url.query))
        except HubError as error:
            status, headers = error.status, {"X-Error-Message": str(error), "X-Error-Code": error.code}
            body = json.dumps({"error": str(error)}).encode()
        time.sleep(fault.seconds)
        if fault.until is not None:
            fault.until.wait(30)
        if fault.other_checksums:
            body = re.sub(rb'("(?:blobId|sha256)": ")..', rb"\g<1>zz", body)
        self._respond(status, headers, body, fault.cut)

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815 - http.server's names

    def _respond(self, status: int, headers: dict[str, str], body: bytes, cut: bool) -> None:
        try:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if cut else body)
        except ConnectionError:
            self.close_connection = True  # the client timed out
        self.close_connection |= cut

    def _json(self, content: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _may_write(self) -> None:
        if self._token() not in (WRITER, READER):
            raise HubError(401, "Invalid username or password.")
        if self._token() != WRITER:
            raise HubError(403, "Forbidden: you must use a write token")

    def _repo(self, name: str) -> Repo:
        if self._token() not in (None, WRITER, READER):
            raise HubError(401, "Invalid credentials in Authorization header")
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self._token() is None):
            raise HubError(404 if self._token() else 401, "Repository not found", "RepoNotFound")
        return repo

    def _commit(self, repo: Repo, revision: str) -> str:
        sha = repo.branches.get(revision, revision)
        if sha not in repo.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def _route(self, path: str, query: dict[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        if path == "/api/repos/create":
            return self._create()
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.startswith("/storage/"):
            return self._storage(path.removeprefix("/storage/"))
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._may_write()
            return self._batch(self._repo(match[1]))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(self._repo(match[1]), unquote(match[2]), unquote(match[3]))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z]+)(?:/([^/]+))?)?", path):
            return self._models(match[1], match[2] or "revision", unquote(match[3] or "main"), query)
        raise HubError(404, f"no such route: {self.command} {path}")

    def _create(self) -> tuple[int, dict[str, str], bytes]:
        self._may_write()
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.hub.endpoint}/{name}"}
        if name in self.hub.repos:
            return 409, {}, json.dumps(url | {"error": "You already created this model repo"}).encode()
        repo = self.hub.repos[name] = Repo(wanted.get("visibility") == "private" or bool(wanted.get("private")))
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs -text\n"}, "initial commit")
        return self._json(url)

    def _models(
        self, name: str, action: str, revision: str, query: dict[str, list[str]]
    ) -> tuple[int, dict[str, str], bytes]:
        repo = self._repo(name)
        if action in ("branch", "preupload", "commit"):
            self._may_write()
        if action == "branch":
            start = json.loads(self.body or b"{}").get("startingPoint", "main")
            if revision in repo.branches:
                raise HubError(409, f"Reference already exists: {revision}")
            repo.branches[revision] = self._commit(repo, start)
            return self._json({})
        if action == "refs":
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.branches.items()]
            return self._json({"branches": branches, "converts": [], "tags": []})
        sha = self._commit(repo, revision)
        if action == "commit":
            return self._new_commit(repo, name, revision, sha)
        tree = [tree_entry(path, content) for path, content in repo.commits[sha].items()]
        if action == "preupload":
            oids = {file["path"]: file.get("lfs", file)["oid"] for file in tree}
            files = []
            for path in (file["path"] for file in json.loads(self.body)["files"]):
                mode = "lfs" if path.endswith(LARGE) else "regular"
                files.append({"path": path, "uploadMode": mode, "oid": oids.get(path), "shouldIgnore": False})
            return self._json({"files": files})
        if action == "tree":
            return self._json(tree)
        siblings = [sibling(file) if "blobs" in query else {"rfilename": file["path"]} for file in tree]
        info = {"id": name, "modelId": name, "sha": sha, "private": repo.private, "gated": False, "disabled": False}
        return self._json(info | {"tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def _batch(self, repo: Repo) -> tuple[int, dict[str, str], bytes]:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.large:
                entry["actions"] = {"upload": {"href": f"{self.hub.storage}/storage/{wanted['oid']}"}}
            objects.append(entry)
        return self._json({"transfer": "basic", "objects": objects})

    def _storage(self, oid: str) -> tuple[int, dict[str, str], bytes]:
        if self._token() is not None:
            raise HubError(400, "the storage host received a token")
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise HubError(400, "the content does not match its SHA-256")
            self.hub.large[oid] = self.body
            return 200, {}, b""
        return self._content(self.hub.large[oid], {"ETag": f'"{oid}"'})

    def _new_commit(self, repo: Repo, name: str, branch: str, head: str) -> tuple[int, dict[str, str], bytes]:
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, head):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[head])
        for line in lines[1:]:
            path = line["value"]["path"]
            if line["key"] == "file":
                files[path] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[path] = self.hub.large[line["value"]["oid"]]
            else:
                files = {name: content for name, content in files.items() if name != path}
        sha = repo.commit(branch, files, header["summary"])
        url = f"{self.hub.endpoint}/{name}/commit/{sha}"
        return self._json({"success": True, "commitUrl": url, "commitOid": sha})

    def _resolve(self, repo: Repo, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        sha = self._commit(repo, revision)
        headers = {"X-Repo-Commit": sha}
        if path not in repo.commits[sha]:
            return 404, headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
        file = tree_entry(path, repo.commits[sha][path])
        if "lfs" not in file:
            return self._content(repo.commits[sha][path], headers | {"ETag": f'"{file["oid"]}"'})
        oid = file["lfs"]["oid"]
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(file["size"])}
        return 302, headers | linked | {"Location": f"{self.hub.storage}/storage/{oid}"}, b""

    def _content(self, content: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        headers = headers | {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return 200, headers, content
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        return 206, headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}, content[first : last + 1]
