"""A server of model repositories on this machine, as the Hub's client finds it."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import huggingface_hub
from huggingface_hub import utils


class Hub:
    """Repositories of files, served and taken as the Hub does.

    ``fault`` breaks every answer: an HTTP status, "hang up", "no commit", "silence" (until the
    server stops) or "wrong bytes" (as many as there should be); "break off" ends in the midst of
    a file and hangs up from then on, "break once" is in order from then on.

    Repositories in ``private`` need TOKEN, and so does an upload; those of ``locked`` owners take
    none. Where ``storage`` is set, large files lie on another host, as they do at the Hub.
    """

    COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of what was there from the start
    TOKEN = "hf_SecretOfTheTests"
    RESOLVE = re.compile(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
    API = re.compile(
        r"/api/(?:models|datasets)/([^/]+/[^/]+)"
        r"(?:/(revision|preupload|commit|tree|paths-info)/([^/]+)(/.+)?)?"
    )

    def __init__(self):
        self.repositories = {}
        self.private = set()
        self.locked = set()
        self.commits = {}
        self.large = {}  # what was uploaded and not committed: SHA-256 -> bytes
        self.storage = False
        self.fault = None
        self.lies = {}  # header -> what is sent instead with every file
        self.excess = 0  # bytes that follow each file, which is then sent in chunks
        self.listed = {}  # file -> SHA-256: names that are listed besides, or hashes instead
        self.requests = []
        self.headers = []
        self.stopping = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                hub.answer(self)

            do_HEAD = do_GET = do_POST = do_PUT = handle_any

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def stop(self):
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        close_session()  # no connection of the client outlives the server

    def commit(self, repository):
        return self.commits.get(repository, self.COMMIT)

    def answer(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        # Once in a process the client asks for what is of neither models nor repositories.
        if not re.match("/api/(?!models|datasets|repos)", request.path):
            self.requests.append((request.command, request.path))
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.fault == "silence":
            self.stopping.wait()
        if self.fault in ("hang up", "silence"):
            request.close_connection = True
        elif isinstance(self.fault, int):
            self.refuse(request, self.fault)
        elif "/paths-info/" in request.path:
            self.list_files(request, parse_qs(body.decode()).get("paths", []))
        elif request.command in ("POST", "PUT"):
            self.take(request, body)
        elif request.path.startswith("/api/"):
            self.tell(request)
        elif request.path.startswith("/storage/"):
            oid = request.path.rsplit("/", 1)[1]
            found = {sha256(f): f for files in self.repositories.values() for f in files.values()}
            self.send_file(request, found[oid], {"ETag": '"of-the-storage"'})
        else:
            self.resolve(request)

    @staticmethod
    def refuse(request, status, code=""):
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    @staticmethod
    def send_json(request, content, status=200):
        body = json.dumps(content).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def authorised(self, request):
        return request.headers.get("Authorization") == f"Bearer {self.TOKEN}"

    # --- down ---

    def missing(self, request, repository, revision, file=None):
        """Refuse what is not there; return whether it was."""
        if repository in self.private and not self.authorised(request):
            self.refuse(request, 401, "RepoNotFound")
        elif repository not in self.repositories:
            self.refuse(request, 404, "RepoNotFound")
        elif revision not in ("main", "v1", self.commit(repository)):
            self.refuse(request, 404, "RevisionNotFound")
        elif file is not None and file not in self.repositories[repository]:
            self.refuse(request, 404, "EntryNotFound")
        else:
            return False
        return True

    def tell(self, request):
        """Answer what a repository is, and what it holds."""
        path = request.path.partition("?")[0]
        match = self.API.fullmatch(path)
        if match is None:  # the client reports its use, and what it found, to the Hub
            self.refuse(request, 404)
            return
        repository, what, revision, folder = match.groups()
        if self.missing(request, repository, revision or "main"):
            return
        if what == "tree":
            start = f"{folder[1:]}/" if folder else ""
            below = [n for n in self.repositories[repository] if n.startswith(start)]
            if "recursive=true" not in request.path:  # the folders stand for what is in them
                below = {start + n.removeprefix(start).partition("/")[0] for n in below}
            self.list_files(request, sorted(below))
            return
        files = self.repositories[repository]
        siblings = [
            {"rfilename": name, "lfs": {"sha256": oid} if is_large(name) else None}
            for name, oid in ({n: sha256(c) for n, c in files.items()} | self.listed).items()
        ]
        facts = {"id": repository, "private": repository in self.private, "siblings": siblings}
        self.send_json(request, facts | {"sha": self.commit(repository)})

    def list_files(self, request, names):
        """Describe those of some files and folders that are there."""
        repository = self.API.fullmatch(request.path.partition("?")[0])[1]
        there = self.repositories[repository]
        facts = [
            {"type": "file", "path": n, "size": len(there[n]), "oid": git_hash(there[n])}
            if n in there
            else {"type": "directory", "path": n, "size": 0, "oid": git_hash(n.encode())}
            for n in names
            if any(f"{name}/".startswith(f"{n}/") for name in there)
        ]
        self.send_json(request, facts)

    def resolve(self, request):
        match = self.RESOLVE.fullmatch(request.path)
        repository, revision, file = match.groups() if match else ("", "", "")
        if self.missing(request, repository, revision, file):
            return
        content = self.repositories[repository][file]
        oid = sha256(content) if is_large(file) else git_hash(content)
        commit = {} if self.fault == "no commit" else {"X-Repo-Commit": self.commit(repository)}
        if not (is_large(file) and self.storage):
            self.send_file(request, content, commit | {"ETag": f'"{oid}"'})
            return
        elsewhere = self.endpoint.replace("127.0.0.1", "localhost")
        request.send_response(302)
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        location = {"Location": f"{elsewhere}/storage/{oid}", "Content-Length": "0"}
        headers = commit | linked | location | {"ETag": '"of-the-redirect"'} | self.lies
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()

    def send_file(self, request, content, headers):
        start = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        first = int(start[1]) if start else 0
        whole = len(content)
        if start and start[2]:
            content = content[: int(start[2]) + 1]
        request.send_response(206 if start else 200)
        if start:
            span = f"bytes {first}-{len(content) - 1}/{whole}"
            request.send_header("Content-Range", span)
        length = {"Content-Length": str(len(content) - first)}
        if self.excess and request.command == "GET":
            length = {"Transfer-Encoding": "chunked"}
        for name, value in (headers | {"Accept-Ranges": "bytes"} | length | self.lies).items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.excess:
            for chunk in (content, *[bytes(1 << 20)] * (self.excess >> 20), b""):
                request.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            return
        if self.fault == "wrong bytes":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.fault in ("break off", "break once"):
            request.wfile.write(content[first : first + 1000])
            request.close_connection = True
            self.fault = "hang up" if self.fault == "break off" else None
        else:
            request.wfile.write(content[first:])

    # --- up ---

    def take(self, request, body):
        """Take a new repository, a large file, or a commit."""
        path = request.path
        if path == "/api/validate-yaml":
            self.send_json(request, {})
        elif path.startswith("/storage/"):  # what was signed needs no token
            assert path.endswith(sha256(body))
            self.large[sha256(body)] = body
            self.send_json(request, {})
        elif not self.authorised(request):
            self.refuse(request, 401)
        elif path == "/api/repos/create":
            self.create(request, json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for each in objects:
                href = f"{self.endpoint}/storage/{each['oid']}"
                each["actions"] = {"upload": {"href": href}}
            self.send_json(request, {"transfer": "basic", "objects": objects})
        else:
            repository, what, revision, _ = self.API.fullmatch(path).groups()
            if not self.missing(request, repository, revision):
                getattr(self, f"take_{what}")(request, repository, body)

    def create(self, request, wanted):
        repository = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] in self.locked:
            self.refuse(request, 403)
            return
        status = 409 if repository in self.repositories else 200
        if status == 200:
            self.repositories[repository] = {}
            if wanted.get("visibility") == "private" or wanted.get("private"):
                self.private.add(repository)
        self.send_json(request, {"url": f"{self.endpoint}/{repository}"}, status)

    def take_preupload(self, request, repository, body):
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for each in json.loads(body)["files"]
        ]
        self.send_json(request, {"files": files})

    def take_commit(self, request, repository, body):
        files = self.repositories[repository]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
        oid = self.commits[repository] = git_hash(body)
        url = f"{self.endpoint}/{repository}/commit/{oid}"
        self.send_json(request, {"commitUrl": url, "commitOid": oid, "success": True})


def is_large(name):
    """Whether the Hub keeps a file of this name beside git, under its SHA-256."""
    return name.endswith(".safetensors")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def git_hash(content):
    """The hash by which git, and so the Hub's ETag, names a small file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def close_session():
    """Let the client forget its connections; before version 1.0 it has another name for that."""
    close = getattr(huggingface_hub, "close_session", None) or utils.reset_sessions
    close()
