"""A Hub on this machine, in memory: the endpoints that `huggingface_hub` calls to publish and to read, over real HTTP.

`serve` runs it in a thread; the `Hub` it yields holds what was published, records every request, and can be told to
fail: to cut uploads off in the middle (`cuts`) or to refuse commits (`refused_commits`).
"""

import atexit
import base64
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from hub_metadata import metadata_errors

TOKENS = {"hf_user": "user", "hf_stranger": "stranger"}
LFS = (".safetensors", ".bin")


@dataclass(frozen=True)
class Commit:
    """A state of a repository: path -> content."""

    oid: str
    message: str
    files: dict[str, bytes]
    changed: tuple[str, ...]


@dataclass
class Repo:
    """A repository: its branches, each the list of its commits, oldest first."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def commit(self, revision: str) -> Commit:
        commits = self.branches.get(revision) or [c for b in self.branches.values() for c in b if c.oid == revision]
        if not commits:
            raise refused(404, "RevisionNotFound")
        return commits[-1]

    def add(self, branch: str, message: str, files: dict[str, bytes], changed: tuple[str, ...]) -> Commit:
        history = self.branches.setdefault(branch, [])
        content = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
        known = json.dumps([[c.oid for c in history], message, branch, content], sort_keys=True)
        history.append(Commit(hashlib.sha1(known.encode()).hexdigest(), message, files, changed))
        return history[-1]


@dataclass(frozen=True)
class Call:
    """A request: its method, path and range, and the bytes of content it was answered with."""

    method: str
    path: str
    range: str | None
    sent: int


class Hub:
    """All repositories, uploaded files, and what was asked."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.server: uvicorn.Server | None = None
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.repos: dict[str, Repo] = {}
        self.uploaded: dict[str, bytes] = {}
        self.calls: list[Call] = []
        self.cuts = 0
        self.refused_commits = 0

    def readable(self, request: Request, name: str) -> Repo:
        """The repository, where the token of a request may see it."""
        repo, user = self.repos.get(name), self.user(request)
        if repo is None or (repo.private and user != name.split("/")[0]):
            raise refused(401 if user is None else 404, "RepoNotFound")
        return repo

    def writable(self, request: Request, name: str) -> Repo:
        """The repository, where the token of a request may write to it."""
        repo = self.readable(request, name)
        if self.user(request) != name.split("/")[0]:
            raise refused(401 if self.user(request) is None else 403, None, "no write permission")
        return repo

    def user(self, request: Request) -> str | None:
        """Who a request is from; `None` without a token."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise refused(401, None, "Invalid credentials in Authorization header")
        return TOKENS.get(token)

    def cut(self, request: Request) -> None:
        """Closes the connection of a request, unanswered."""
        assert self.server is not None
        for connection in list(self.server.server_state.connections):
            if connection.client == tuple(request.scope["client"]):
                connection.transport.abort()

    def downloads(self, path: str) -> list[Call]:
        """The GETs of a file."""
        return [call for call in self.calls if call.method == "GET" and call.path.endswith(f"/{path}")]


def refused(status: int, code: str | None, message: str | None = None) -> HTTPException:
    """An answer as the Hub's: the code and the message are headers."""
    headers = {"X-Error-Code": code, "X-Error-Message": message}
    return HTTPException(status, message, {name: value for name, value in headers.items() if value})


def key(kind: str, user: str, name: str) -> str:
    """The name of a repository among all: that of a data set begins with its kind."""
    return f"{user}/{name}" if kind == "models" else f"{kind}/{user}/{name}"


def git_oid(content: bytes) -> str:
    """The hash that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(path: str, content: bytes) -> str:
    """What identifies a file's content: sha256 of large files, git's hash of others."""
    return hashlib.sha256(content).hexdigest() if path.endswith(LFS) else git_oid(content)


def make_app(hub: Hub) -> FastAPI:
    """The application that answers for a hub."""
    app = FastAPI()

    @app.post("/api/repos/create")
    async def create(request: Request) -> Response:
        values, user = await request.json(), hub.user(request)
        if user is None:
            raise refused(401, None, "Invalid username or password.")
        owner = values.get("organization") or user
        name, taken = f"{owner}/{values['name']}", 200
        if owner != user:
            raise refused(403, None, "You don't have the rights to create a model under this namespace")
        if name in hub.repos:
            taken = 409
        else:
            hub.repos[name] = Repo(private=bool(values.get("private")) or values.get("visibility") == "private")
            hub.repos[name].add("main", "initial commit", {".gitattributes": b"*.safetensors lfs\n"}, ())
        return Response(json.dumps({"url": f"{hub.endpoint}/{name}"}), taken)

    @app.post("/api/validate-yaml")
    async def validate(request: Request) -> Response:
        errors = [{"message": error} for error in metadata_errors((await request.json())["content"])]
        return Response(json.dumps({"errors": errors, "warnings": []}), 400 if errors else 200)

    @app.get("/api/{kind}/{user}/{name}")
    @app.get("/api/{kind}/{user}/{name}/revision/{revision}")
    async def info(request: Request, kind: str, user: str, name: str, revision: str = "main") -> dict:
        repo = hub.readable(request, key(kind, user, name))
        commit = repo.commit(revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        return {"id": f"{user}/{name}", "sha": commit.oid, "private": repo.private, "tags": [], "siblings": siblings}

    @app.get("/api/{kind}/{user}/{name}/tree/{revision}")
    async def tree(request: Request, kind: str, user: str, name: str, revision: str) -> list:
        files = hub.readable(request, key(kind, user, name)).commit(revision).files
        return [_entry(path, content) for path, content in sorted(files.items())]

    @app.get("/api/{kind}/{user}/{name}/tree/{revision}/{path:path}")
    async def subtree(request: Request, kind: str, user: str, name: str, revision: str, path: str) -> list:
        hub.readable(request, key(kind, user, name)).commit(revision)
        raise refused(404, "EntryNotFound")

    @app.post("/api/{kind}/{user}/{name}/paths-info/{revision}")
    async def paths_info(request: Request, kind: str, user: str, name: str, revision: str) -> list:
        files = hub.readable(request, key(kind, user, name)).commit(revision).files
        asked = parse_qs((await request.body()).decode())["paths"]
        return [_entry(path, files[path]) for path in asked if path in files]

    @app.post("/api/models/{user}/{name}/branch/{branch}")
    async def branch(request: Request, user: str, name: str, branch: str) -> Response:
        repo = hub.writable(request, f"{user}/{name}")
        if branch in repo.branches:
            return Response(status_code=409)
        repo.branches[branch] = list(repo.branches["main"])
        return Response("{}")

    @app.post("/api/models/{user}/{name}/preupload/{revision}")
    async def preupload(request: Request, user: str, name: str, revision: str) -> dict:
        files = hub.writable(request, f"{user}/{name}").commit(revision).files
        answers = []
        for asked in (await request.json())["files"]:
            path = asked["path"]
            oid = etag(path, files[path]) if path in files else None
            mode = "lfs" if path.endswith(LFS) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    @app.post("/{user}/{name}.git/info/lfs/objects/batch")
    async def batch(request: Request, user: str, name: str) -> dict:
        hub.writable(request, f"{user}/{name}")
        objects = []
        for asked in (await request.json())["objects"]:
            href = f"{hub.endpoint}/lfs/{asked['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(asked if asked["oid"] in hub.uploaded else {**asked, "actions": actions})
        return {"transfer": "basic", "objects": objects}

    @app.put("/lfs/{oid}")
    async def upload(request: Request, oid: str) -> Response:
        content = b""
        async for chunk in request.stream():
            content += chunk
            if hub.cuts:
                hub.cuts -= 1
                hub.cut(request)
                return Response(status_code=500)
        if hashlib.sha256(content).hexdigest() != oid:
            raise refused(400, None, "the content is not what was announced")
        hub.uploaded[oid] = content
        return Response()

    @app.post("/lfs/{oid}/verify")
    async def verify(oid: str) -> Response:
        return Response(status_code=200 if oid in hub.uploaded else 404)

    @app.post("/api/models/{user}/{name}/commit/{revision}")
    async def commit(request: Request, user: str, name: str, revision: str) -> dict:
        repo = hub.writable(request, f"{user}/{name}")
        if hub.refused_commits:
            hub.refused_commits -= 1
            raise refused(500, None, "no commits today")
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        files, message, changed = dict(repo.commit(revision).files), "", []
        for line in lines:
            kind, value = line["key"], line["value"]
            if kind == "header":
                message = value["summary"]
                continue
            changed.append(value["path"])
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = hub.uploaded[value["oid"]]
            else:
                assert kind == "deletedFile"
                del files[value["path"]]
        made = repo.add(revision, message, files, tuple(sorted(changed)))
        return {"success": True, "commitOid": made.oid, "commitUrl": f"{hub.endpoint}/{user}/{name}/commit/{made.oid}"}

    @app.api_route("/{user}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    @app.api_route("/{kind}/{user}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    async def resolve(
        request: Request, user: str, name: str, revision: str, path: str, kind: str = "models"
    ) -> Response:
        commit = hub.readable(request, key(kind, user, name)).commit(revision)
        if path not in commit.files:
            raise HTTPException(404, None, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.oid})
        content = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{etag(path, content)}"', "Accept-Ranges": "bytes"}
        asked, status = request.headers.get("range"), 200
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last) + 1 if last else None]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            content, status = part, 206
        hub.calls.append(Call(request.method, request.url.path, asked, len(content)))
        return Response(content, status, headers, "application/octet-stream")

    return app


def _entry(path: str, content: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if path.endswith(LFS):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


@contextmanager
def serve() -> Iterator[Hub]:
    """Runs an empty Hub in a thread."""
    hub = Hub()
    config = uvicorn.Config(make_app(hub), port=0, log_level="critical", lifespan="off")
    hub.server = uvicorn.Server(config)
    thread = threading.Thread(target=hub.server.run, daemon=True)
    thread.start()
    while not hub.server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    hub.endpoint = f"http://127.0.0.1:{hub.server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield hub
    finally:
        hub.server.should_exit = True
        thread.join(timeout=30)


def stand_in(cache: str) -> Hub:
    """Runs an empty Hub until this process ends, in the place of huggingface.co.

    To be called before `huggingface_hub` is imported, which reads the environment then. `cache` keeps downloads.
    """
    running = ExitStack()
    atexit.register(running.close)
    hub = running.enter_context(serve())
    os.environ.update(HF_ENDPOINT=hub.endpoint, HF_TOKEN="hf_user", HF_HUB_CACHE=cache)
    os.environ.update(HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1")
    return hub
