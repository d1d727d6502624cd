"""Fixtures that several test files share.

Everything runs on one thread: small models gain nothing from more, and lose much where the cores
are shared. The commands that tests start inherit it.
"""

import hashlib
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save, save_file

import gram_hear
from gram_hear.checkpoints import published
from gram_hear.config import (
    LAYOUT_OF_CHANNELS,
    PATCHINGS,
    DecoderConfig,
    EncoderConfig,
    FrontEndConfig,
    ModelConfig,
)
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mae import MaskedAutoencoder

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

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


def small_config(channels, patching="frame", decoder="multi_window"):
    """A model small enough for tests: width 64, one head, two layers."""
    patch, windows = PATCHINGS[patching]
    return ModelConfig(
        front_end=FrontEndConfig(
            layout=LAYOUT_OF_CHANNELS[channels], log_floor=1e-6 if channels == 7 else 1.1920929e-07
        ),
        patch=patch,
        encoder=EncoderConfig(width=64, depth=2, heads=1, mlp_width=128),
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
    seed=0)``; the shape is the published one too. Not only the recognised tensors: the derived
    ones that the authors' files carry are left out.
    """

    def make(channels, patching="frame", decoder="multi_window", seed=0):
        config = small_config(channels, patching, decoder or "multi_window")
        model = MaskedAutoencoder(config)
        initialise(model, seed)
        return {
            published.published_name(name, config.decoder): tensor.reshape(
                published.published_shape(name, tensor.shape)
            ).clone()
            for name, tensor in model.state_dict().items()
            if decoder is not None or not name.startswith("decoder.")
        }

    return make


@pytest.fixture(scope="session")
def published_file(published_tensors, tmp_path_factory):
    """Return a function that writes such tensors as a safetensors file and returns its path."""

    def write(channels, patching="frame", decoder="multi_window", seed=0):
        path = tmp_path_factory.mktemp("published") / "model.safetensors"
        save_file(published_tensors(channels, patching, decoder, seed), path)
        return path

    return write


@pytest.fixture(scope="session")
def small_model(published_file):
    """Return a function that loads a random small model: (channels, patching, **options)."""
    return lambda channels, patching="frame", **options: gram_hear.load_model(
        published_file(channels, patching), **options
    )


@pytest.fixture
def noise():
    """Return a function: reproducible noise (*shape) float32 in [-1, 1], from ``seed``."""

    def make(*shape, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(*shape, generator=generator) * 2 - 1

    return make


class Hub:
    """Repositories of files, served as the Hub serves them.

    ``fault`` breaks every answer: an HTTP status, "hang up" or "no commit"; or "break off", which
    ends in the midst of a file and hangs up from then on.
    """

    COMMIT = "0123456789abcdef0123456789abcdef01234567"
    RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")

    def __init__(self):
        self.repositories = {}
        self.private = set()
        self.fault = None
        self.requests = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        huggingface_hub.close_session()  # no connection of the client outlives the server

    def look_up(self, path):
        """Return a file's bytes, or an HTTP status and the Hub's name of the error."""
        match = self.RESOLVE.fullmatch(path)
        repository, revision, file = match.groups() if match else ("", "", "")
        if repository in self.private:
            return 401, "RepoNotFound"
        if repository not in self.repositories:
            return 404, "RepoNotFound"
        if revision not in ("main", "v1", self.COMMIT):
            return 404, "RevisionNotFound"
        if file not in self.repositories[repository]:
            return 404, "EntryNotFound"
        return self.repositories[repository][file]

    def answer(self, request, body):
        self.requests.append((request.command, request.path))
        if self.fault == "hang up":
            request.close_connection = True
            return
        found = (self.fault, "") if isinstance(self.fault, int) else self.look_up(request.path)
        if isinstance(found, tuple):
            status, code = found
            request.send_response(status)
            request.send_header("X-Error-Code", code)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        first = int(start[1]) if start else 0
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {first}-{len(found) - 1}/{len(found)}")
        if self.fault != "no commit":
            request.send_header("X-Repo-Commit", self.COMMIT)
        request.send_header("ETag", f'"{hashlib.sha256(found).hexdigest()}"')
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("Content-Length", str(len(found) - first))
        request.end_headers()
        if body and self.fault == "break off":
            request.wfile.write(found[first : first + 1000])
            request.close_connection = True
            self.fault = "hang up"
        elif body:
            request.wfile.write(found[first:])


def registered():
    return [entry for entry in gram_hear.list_models() if entry.repository]


@pytest.fixture(scope="session")
def small_files(published_tensors):
    """Each registered model's channels and patching -> the bytes of a small random one."""
    kinds = {(entry.channels, entry.patching) for entry in registered()}
    return {kind: save(published_tensors(*kind)) for kind in kinds}


@pytest.fixture
def hub(small_files, monkeypatch):
    """The server with every registered repository, and the client directed to it."""
    hub = Hub()
    for entry in registered():
        content = small_files[entry.channels, entry.patching]
        hub.repositories[entry.repository] = {"model.safetensors": content}
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    yield hub
    hub.stop()
