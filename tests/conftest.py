"""Fixtures that several test files share.

Everything runs on one thread: small models gain nothing from more, and lose much where the cores
are shared. The commands that tests start inherit it.
"""

import base64
import hashlib
import json
import os
import re
import signal
import struct
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import hypothesis
import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import constants, utils
from safetensors.torch import save, save_file

import gram_hear
from gram_hear.checkpoints import published
from gram_hear.commands.gram_hear import app as gram_hear_app
from gram_hear.config import (
    LAYOUT_OF_CHANNELS,
    PATCHINGS,
    DecoderConfig,
    FrontEndConfig,
    Mamba1Config,
    Mamba2Config,
    ModelConfig,
    TransformerConfig,
)
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mae import MaskedAutoencoder

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONSAFEPATH"] = "1"  # commands import the package that is tested, not this folder
torch.set_num_threads(1)
hypothesis.settings.register_profile("shared", deadline=None)  # of a machine that others load too
hypothesis.settings.load_profile("shared")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of some shells
    signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(__file__).parent / "data" / "golden"


@pytest.fixture(scope="session")
def golden():
    """Return a function from a file name in tests/data/golden to its arrays."""
    return lambda name: np.load(GOLDEN / name, allow_pickle=False)


@pytest.fixture(scope="session")
def golden_path():
    """Return a function from a file name in tests/data/golden to its path."""
    return lambda name: GOLDEN / name


@pytest.fixture(scope="session")
def golden_audio(golden):
    """Return a function: (3, channels, 134400) float32 for 2 (binaural) or 7 (Ambisonic)."""
    audio = torch.from_numpy(golden("gramt_audio.npz")["foa_int16"]).float() / 32768
    return lambda channels: audio[:, 1:3] if channels == 2 else audio


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Return a function that runs gram-hear in this process, in tmp_path.

    It returns the exit code, and what was written to stdout and stderr.
    """

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gram-hear", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            gram_hear_app.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main replaces it
    monkeypatch.chdir(tmp_path)
    return run


SMALL_ENCODERS = {
    "transformer": TransformerConfig(width=64, depth=2, heads=1, mlp_width=128),
    "mamba2": Mamba2Config(width=64, depth=2, state=16, head_width=32),
    "mamba1": Mamba1Config(width=64, depth=2, state=4, expansion=3, step_rank=4),
}


def small_config(channels, patching="frame", decoder="multi_window", backbone="transformer"):
    """A model small enough for tests: width 64, two layers."""
    patch, windows = PATCHINGS[patching]
    return ModelConfig(
        front_end=FrontEndConfig(
            layout=LAYOUT_OF_CHANNELS[channels], log_floor=1e-6 if channels == 7 else 1.1920929e-07
        ),
        patch=patch,
        encoder=SMALL_ENCODERS[backbone],
        decoder={
            "multi_window": DecoderConfig(
                width=32, depth=1, heads=8, mlp_width=64, windows=windows
            ),
            "plain": DecoderConfig(width=32, depth=1, heads=8, mlp_width=64),
            None: None,
        }[decoder],
    )


@pytest.fixture(scope="session")
def make_config():
    """Return :func:`small_config`."""
    return small_config


@pytest.fixture(scope="session")
def published_tensors():
    """Return a function that makes a random small model's tensors under the authors' names.

    ``published_tensors(channels, patching="frame", decoder="multi_window" | "plain" | None,
    seed=0, backbone="transformer" | "mamba2" | "mamba1")``; the shape is the published one too. Not
    only the recognised tensors: the derived ones that the authors' files carry are left out.
    """

    def make(channels, patching="frame", decoder="multi_window", seed=0, backbone="transformer"):
        config = small_config(channels, patching, decoder or "multi_window", backbone)
        model = MaskedAutoencoder(config)
        initialise(model, seed)
        return {
            published.published_name(name, config): tensor.reshape(
                published.published_shape(name, tensor.shape)
            ).clone()
            for name, tensor in model.state_dict().items()
            if decoder is not None or not name.startswith("decoder.")
        }

    return make


@pytest.fixture(scope="session")
def published_file(published_tensors, tmp_path_factory):
    """Return a function that writes such tensors as a safetensors file and returns its path."""

    def write(channels, patching="frame", decoder="multi_window", seed=0, backbone="transformer"):
        path = tmp_path_factory.mktemp("published") / "model.safetensors"
        save_file(published_tensors(channels, patching, decoder, seed, backbone), path)
        return path

    return write


@pytest.fixture(scope="session")
def small_model(published_file):
    """Return a function that loads a random small model: (channels, patching, **options)."""

    def load(channels, patching="frame", backbone="transformer", **options):
        return gram_hear.load_model(
            published_file(channels, patching, backbone=backbone), **options
        )

    return load


@pytest.fixture
def noise():
    """Return a function: reproducible noise (*shape) float32 in [-1, 1], from ``seed``."""

    def make(*shape, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(*shape, generator=generator) * 2 - 1

    return make


@pytest.fixture
def write_wavex():
    """Return a function that writes WAVEX of 16 bits at 32 kHz from (samples, channels).

    ``mask`` holds positions of loudspeakers. ``b_format`` says that it is Ambisonic B-format.
    """

    def write(path, audio, mask=0, b_format=False):
        channels = audio.shape[1]
        sizes = (channels, 32000, 64000 * channels, 2 * channels, 16, 22, 16, mask)
        tail = "2107d3118644c8c1ca000000" if b_format else "00001000800000aa00389b71"
        subformat = struct.pack("<I", 1) + bytes.fromhex(tail)
        samples = np.rint(audio * 32767).astype("<i2").tobytes()
        body = b"WAVEfmt " + struct.pack("<IHHIIHHHHI", 40, 0xFFFE, *sizes) + subformat
        body += b"data" + struct.pack("<I", len(samples)) + samples
        path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
        return path

    return write


@pytest.fixture
def b_format(tmp_path, write_wavex):
    """A second of noise from the left front as ``b.amb`` and as AmbiX, ``ambix.wav``: the paths."""
    w = 0.1 * np.random.default_rng(0).standard_normal(32000)
    sound = np.stack([w / 2**0.5, 0.5 * w, 0.75**0.5 * w, 0 * w], axis=1)
    path = write_wavex(tmp_path / "b.amb", sound, b_format=True)
    w, x, y, z = soundfile.read(path, dtype="float32")[0].T
    ambix = np.stack([w * 2**0.5, y, z, x], axis=1)
    soundfile.write(tmp_path / "ambix.wav", ambix, 32000, subtype="FLOAT")
    return path, tmp_path / "ambix.wav"


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
    RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
    API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|preupload|commit)/([^/]+))?")

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
        self.requests.append((request.command, request.path))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.fault == "silence":
            self.stopping.wait()
        if self.fault in ("hang up", "silence"):
            request.close_connection = True
        elif isinstance(self.fault, int):
            self.refuse(request, self.fault)
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
        repository, _, revision = match.groups()
        if self.missing(request, repository, revision or "main"):
            return
        files = self.repositories[repository]
        siblings = [
            {"rfilename": name, "lfs": {"sha256": oid} if is_large(name) else None}
            for name, oid in ({n: sha256(c) for n, c in files.items()} | self.listed).items()
        ]
        facts = {"id": repository, "private": repository in self.private, "siblings": siblings}
        self.send_json(request, facts | {"sha": self.commit(repository)})

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
        place = {"Location": f"{elsewhere}/storage/{oid}", "Content-Length": "0"}
        headers = commit | linked | place | {"ETag": '"of-the-redirect"'} | self.lies
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()

    def send_file(self, request, content, headers):
        start = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        first = int(start[1]) if start else 0
        request.send_response(206 if start else 200)
        if start:
            span = f"bytes {first}-{len(content) - 1}/{len(content)}"
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
            repository, what, revision = self.API.fullmatch(path).groups()
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


def registered():
    return [entry for entry in gram_hear.list_models() if entry.repository]


def close_session():
    """Let the client forget its connections; before version 1.0 it has another name for that."""
    close = getattr(huggingface_hub, "close_session", None) or utils.reset_sessions
    close()


@pytest.fixture(scope="session")
def small_files(published_tensors):
    """Each registered model's channels and patching -> the bytes of a small random one."""
    kinds = {(entry.channels, entry.patching) for entry in registered()}
    return {kind: save(published_tensors(*kind)) for kind in kinds}


@pytest.fixture
def hub(small_files, monkeypatch, tmp_path):
    """The server with every registered repository, and the client directed to it."""
    hub = Hub()
    for entry in registered():
        content = small_files[entry.channels, entry.patching]
        hub.repositories[entry.repository] = {"model.safetensors": content}
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    close_session()
    yield hub
    hub.stop()
