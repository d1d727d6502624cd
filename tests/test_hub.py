"""Models from and to the Hub: the real client against a server of its protocol on this machine."""

import hashlib
import os
import pickle
import re
import subprocess
import sys
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, file_download

import gram_hear
from gram_hear.checkpoints import hub as hub_files
from gram_hear.checkpoints import push, store
from gram_hear.checkpoints.description import describe_checkpoint
from gram_hear.checkpoints.store import load_checkpoint
from gram_hear.errors import CheckpointError, OptionError

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # that the server tells
REGISTERED = {entry.name: entry for entry in gram_hear.list_models() if entry.repository}


@pytest.fixture
def impatient(monkeypatch):
    """Let the client not wait between its attempts."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def environment(hub, home):
    """The environment of a process whose client talks to the server."""
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home)}
    return os.environ | own | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def refusal(name, tmp_path, **options):
    """Return the message with which a name is refused."""
    with pytest.raises(CheckpointError) as error:
        gram_hear.load_model(name, cache_dir=tmp_path, **options)
    return str(error.value)


# --- what loads -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGISTERED)
def test_each_registered_model_loads(name, hub, tmp_path):
    entry = REGISTERED[name]
    model = gram_hear.load_model(name, cache_dir=tmp_path)
    assert model.config.front_end.feature_channels == entry.channels
    assert model.config.patching == entry.patching
    source = model.source
    assert (source.name, source.repository, source.layout) == (name, entry.repository, "published")
    assert source.path.is_relative_to(tmp_path)
    content = hub.repositories[entry.repository]["model.safetensors"]
    assert source.sha256() == hashlib.sha256(content).hexdigest()
    assert gram_hear.get_scene_embeddings(torch.rand(1, 9000), model).isfinite().all()


def test_only_the_weights_are_asked_for(hub, tmp_path):
    """Neither code nor pickles, and no configuration that names code."""
    hub.repositories["labhamlet/gramt-mono"] |= {
        "modeling_gram.py": b"raise SystemExit",
        "pytorch_model.bin": pickle.dumps(Path("x")),
        "config.json": b'{"auto_map": {"AutoModel": "modeling_gram.GRAM"}}',
    }
    gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    assert {path.rsplit("/", 1)[-1] for _, path in hub.requests} == {"model.safetensors"}


def test_the_only_checkpoint_of_another_name_loads(hub, published_tensors, tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": published_tensors(1)}, path)
    hub.repositories["someone/run"] = {"runs/last.ckpt": path.read_bytes(), "train.py": b"1/0"}
    online = gram_hear.load_model("someone/run", cache_dir=tmp_path)
    assert online.source.path.name == "last.ckpt"
    assert not any(request.endswith("train.py") for _, request in hub.requests)
    hub.stop()
    with pytest.warns(UserWarning, match=r"copy in the cache is used: last\.ckpt"):
        offline = gram_hear.load_model("someone/run", cache_dir=tmp_path)
    assert offline.source == online.source


def test_which_of_several_checkpoints_is_not_guessed(hub, small_files, tmp_path):
    files = {f"{i}.safetensors": small_files[1, "frame"] for i in range(2)}
    hub.repositories["someone/two"] = files
    message = refusal("someone/two", tmp_path)
    assert "There is no model.safetensors in someone/two" in message
    assert "0.safetensors, 1.safetensors" in message


def test_a_pickle_under_the_name_of_a_checkpoint_does_not_run(hub, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "it-ran",)

    hub.repositories["someone/evil"] = {"model.bin": pickle.dumps({"a": Evil()}, protocol=2)}
    assert "model.bin" in refusal("someone/evil", tmp_path)
    assert not (tmp_path / "it-ran").exists()


def test_the_default_model_is_the_published_binaural_one(hub, tmp_path):
    model = gram_hear.load_model("", cache_dir=tmp_path)
    assert model.source.repository == "labhamlet/gramt-binaural"


def test_a_second_load_needs_no_server(hub, tmp_path):
    first = gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    hub.stop()
    with pytest.warns(UserWarning, match=f"copy in the cache is used: .*{COMMIT}") as caught:
        second = gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    assert [warning.filename for warning in caught] == [__file__]
    audio = torch.rand(1, 9000)
    embeddings = (gram_hear.get_scene_embeddings(audio, model) for model in (first, second))
    assert torch.equal(*embeddings)


def test_a_second_load_fetches_nothing_anew(hub, tmp_path):
    for _ in range(2):
        gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    assert [command for command, _ in hub.requests].count("GET") == 1


@pytest.mark.parametrize("fault", [401, 404, 500, 503, "hang up", "no commit"])
def test_a_cached_model_loads_whatever_ails_the_server(fault, hub, tmp_path):
    gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    hub.fault = fault
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some say that the copy is used
        gram_hear.load_model("gramt-mono", cache_dir=tmp_path)


def test_any_repository_loads(hub, small_files, tmp_path):
    hub.repositories["someone/my.model_1"] = {"model.safetensors": small_files[2, "time"]}
    model = gram_hear.load_model("someone/my.model_1", cache_dir=tmp_path, strategy="mean")
    assert (model.config.patching, model.scene_embedding_size) == ("time", 64)
    assert model.source.repository == "someone/my.model_1"


def test_a_repository_of_our_format_loads(hub, small_model, tmp_path):
    path = gram_hear.save_model(small_model(7), tmp_path / "ours.safetensors")
    hub.repositories["someone/ours"] = {"model.safetensors": path.read_bytes()}
    model = gram_hear.load_model("someone/ours", cache_dir=tmp_path)
    assert (model.source.layout, model.source.repository) == ("gram-hear", "someone/ours")


@pytest.mark.parametrize("backbone", ["mamba2", "mamba1"])
def test_a_repository_of_gram_m_loads(backbone, hub, published_file, noise, tmp_path):
    path = published_file(2, backbone=backbone)
    hub.repositories["someone/gramm"] = {"model.safetensors": path.read_bytes()}
    model = gram_hear.load_model("someone/gramm", cache_dir=tmp_path)
    assert (model.config.family, model.config.encoder.backbone) == ("GRAM-M", backbone)
    assert (model.source.layout, model.source.commit) == ("published", COMMIT)
    audio, local = noise(1, 20000), gram_hear.load_model(path)
    embeddings = (gram_hear.get_scene_embeddings(audio, each) for each in (model, local))
    assert torch.equal(*embeddings)
    with pytest.raises(OptionError, match="'cls' says nothing with GRAM-M"):
        gram_hear.load_model("someone/gramm", cache_dir=tmp_path, strategy="cls")


@pytest.mark.parametrize("revision", ["v1", COMMIT])
def test_a_revision_is_asked_for(revision, hub, tmp_path):
    model = gram_hear.load_model("gramt-mono", cache_dir=tmp_path, revision=revision)
    assert all(f"/resolve/{revision}/" in path for _, path in hub.requests)
    assert model.source.revision == revision


@pytest.mark.slow
def test_the_environment_directs_the_client(hub, tmp_path):
    """In a fresh process: HF_ENDPOINT, the usual cache, then the same without the network."""
    script = "import gram_hear, sys; print(gram_hear.load_model(sys.argv[1]).source.path)"
    paths = []
    for offline in ("0", "1"):
        process = subprocess.run(
            [sys.executable, "-P", "-c", script, "gramt-mono"],
            env=environment(hub, tmp_path) | {"HF_HUB_OFFLINE": offline},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        paths.append(process.stdout.strip())
        hub.fault = "hang up"
    assert paths[0] == paths[1]
    assert paths[0].startswith(str(tmp_path))


@pytest.mark.slow
def test_a_server_that_never_answers_is_left_within_five_seconds(hub, tmp_path):
    """With nothing cached an error, with a copy the copy; side by side."""
    gram_hear.load_model("gramt-mono", cache_dir=tmp_path / "full")
    hub.fault = "silence"

    def load(cache):
        started = time.monotonic()
        try:
            said = gram_hear.load_model("gramt-mono", cache_dir=tmp_path / cache).source.commit
        except CheckpointError as error:
            said = str(error)
        return said, time.monotonic() - started

    with ThreadPoolExecutor(2) as pool, pytest.warns(match="copy") as caught:
        (refused, _), (loaded, _) = answers = list(pool.map(load, ["empty", "full"]))
    assert all(seconds < 5 for _, seconds in answers)
    assert "could not be reached" in refused
    assert "no answer" in refused
    assert "Models that need no network: gram-tiny, gram-tiny-ambisonics, " in refused
    assert loaded == COMMIT
    assert len(caught) == 1


@pytest.mark.parametrize("host", [None, "hub.invalid"])
def test_no_server_and_no_such_host_are_told_within_five_seconds(host, hub, tmp_path, monkeypatch):
    """The client's retries, here not shortened, would take 23."""
    hub.stop()
    if host:
        template = f"http://{host}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://{host}")
    started = time.monotonic()
    message = refusal("", tmp_path)
    assert time.monotonic() - started < 5
    assert "labhamlet/gramt-binaural" in message
    assert "could not be reached" in message
    assert "Models that need no network: gram-tiny, gram-tiny-ambisonics, " in message


def test_the_users_own_limit_is_kept(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    hub.fault = "silence"
    assert "no answer within 0.2 s" in refusal("gramt-mono", tmp_path)


def test_offline_mode_asks_nobody_and_does_not_complain(hub, tmp_path, monkeypatch):
    gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    message = refusal("gramt-binaural", tmp_path)
    assert "offline mode is enabled" in message
    assert "Models that need no network: gram-tiny, gram-tiny-ambisonics, " in message
    assert hub.requests == []


# --- what it was, and whether it is what it should be ---------------------------------------


def test_commit_and_hash_are_recorded(hub, tmp_path):
    checkpoint = load_checkpoint("gramt-mono", cache_dir=tmp_path, revision="v1")
    content = hub.repositories["labhamlet/gramt-mono"]["model.safetensors"]
    facts = describe_checkpoint(checkpoint)
    assert facts["revision"] == "v1"
    assert facts["commit"] == COMMIT
    assert facts["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_download_is_hashed_once(hub, tmp_path, monkeypatch):
    source = gram_hear.load_model("gramt-mono", cache_dir=tmp_path).source
    monkeypatch.setattr(store, "hash_file", None)
    assert source.sha256() == source.sha256()


def test_a_new_commit_is_fetched(hub, small_files, tmp_path):
    old = gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    changed = bytearray(small_files[1, "frame"])
    changed[-1] ^= 1
    hub.repositories["labhamlet/gramt-mono"]["model.safetensors"] = bytes(changed)
    hub.commits["labhamlet/gramt-mono"] = "f" * 40
    new = gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    assert (old.source.commit, new.source.commit) == (COMMIT, "f" * 40)
    assert old.source.sha256() != new.source.sha256()


def test_a_cached_commit_is_asked_for_no_more(hub, tmp_path):
    for _ in range(2):
        gram_hear.load_model("gramt-mono", cache_dir=tmp_path, revision=COMMIT)
        count = len(hub.requests)
    gram_hear.load_model("gramt-mono", cache_dir=tmp_path, revision=COMMIT)
    assert len(hub.requests) == count


@pytest.fixture(params=["links", "no links"])
def links(request, monkeypatch, tmp_path):
    """The cache with symbolic links, and without them, as on Windows."""
    if request.param == "no links":
        monkeypatch.setattr(file_download, "are_symlinks_supported", lambda cache_dir=None: False)
    return request.param


@pytest.mark.parametrize("storage", [False, True])
def test_wrong_bytes_are_refused_and_fetched_anew(storage, links, hub, tmp_path):
    hub.storage = storage
    hub.fault = "wrong bytes"
    content = hub.repositories["labhamlet/gramt-mono"]["model.safetensors"]
    wrong = content[:-1] + bytes([content[-1] ^ 1])
    message = refusal("gramt-mono", tmp_path)
    assert f"its SHA-256 is {hashlib.sha256(wrong).hexdigest()}" in message
    assert f"the Hub's ETag says {hashlib.sha256(content).hexdigest()}" in message
    assert "removed from the cache" in message
    assert not list(tmp_path.rglob("model.safetensors"))
    assert not [path for path in tmp_path.rglob("blobs/*") if path.stat().st_size > 1000]
    hub.fault = None
    model = gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    assert model.source.path.is_symlink() == (links == "links")
    assert model.source.sha256() == hashlib.sha256(content).hexdigest()


def test_a_file_that_was_damaged_in_the_cache_is_fetched_anew(links, hub, tmp_path):
    path = gram_hear.load_model("gramt-mono", cache_dir=tmp_path).source.path
    path.resolve().write_bytes(path.read_bytes()[:-1000])
    assert "the Hub's ETag says" in refusal("gramt-mono", tmp_path)
    gram_hear.load_model("gramt-mono", cache_dir=tmp_path)


def test_the_registrys_hash_is_compared(hub, tmp_path, monkeypatch):
    content = hub.repositories["labhamlet/gramt-mono"]["model.safetensors"]
    right, wrong = hashlib.sha256(content).hexdigest(), "0" * 64

    def register(sha256):
        entry = replace(REGISTERED["gramt-mono"], sha256=sha256)
        monkeypatch.setattr(store, "find_entry", lambda name: entry)

    register(right.upper())
    gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    register(wrong)
    message = refusal("gramt-mono", tmp_path)
    assert f"SHA-256 is {right}, but gram_hear's registry says {wrong}" in message
    gram_hear.load_model("gramt-mono", cache_dir=tmp_path, revision="v1")  # it tells main's


@pytest.mark.parametrize("storage", [False, True])
def test_a_cut_download_is_resumed(storage, hub, tmp_path, impatient, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # the client keeps whole blocks
    hub.storage = storage
    hub.fault = "break once"
    if tuple(map(int, huggingface_hub.__version__.split(".")[:2])) < (1, 20):
        with pytest.raises(CheckpointError):  # clients before 1.20 leave it to the next run
            gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    assert "bytes=1000-" in [headers.get("range") for headers in hub.headers]


def test_a_download_that_broke_off_goes_on_in_the_next_run(hub, tmp_path, impatient, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # the client keeps whole blocks
    hub.fault = "break off"
    with pytest.raises(CheckpointError):
        gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    [partial] = tmp_path.rglob("*.incomplete")
    there = partial.stat().st_size
    assert there > 0
    hub.fault = None
    hub.headers.clear()
    gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    assert f"bytes={there}-" in [headers.get("range") for headers in hub.headers]
    assert not list(tmp_path.rglob("*.incomplete"))


# --- a server or a cache that lies ----------------------------------------------------------


@pytest.fixture
def cache(tmp_path):
    """A cache, and beside it a file that nobody may touch."""
    (tmp_path / "cache").mkdir()
    kept = tmp_path / "kept"
    kept.write_bytes(b"mine")
    yield tmp_path / "cache"
    assert kept.read_bytes() == b"mine"
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "kept"}


def fetched(hub):
    """The paths of the files whose content was asked for."""
    return [path for command, path in hub.requests if command == "GET" and "/api/" not in path]


LIES = {
    "ETag": ("../../../kept", "/tmp/made", "a/b", "..", "", "a\\b"),
    "X-Repo-Commit": ("../../../kept", "/tmp", "main", "A" * 40, ""),
    "Content-Length": ("1" + "0" * 15, "-1", "many"),
}
LINKED_LIES = {  # of a redirection to where large files are
    "X-Linked-Etag": tuple(filter(None, LIES["ETag"])),  # without one, the other counts
    "X-Linked-Size": LIES["Content-Length"],
    "Location": ("file:///etc/passwd", "ftp://a/b", "http://", "//["),
}


@pytest.mark.parametrize(
    ("storage", "header", "value"),
    [
        (storage, header, value)
        for storage, lies in ((False, LIES), (True, LINKED_LIES))
        for header, values in lies.items()
        for value in values
    ],
)
def test_an_answer_that_cannot_be_the_hubs_is_refused(storage, header, value, hub, cache):
    hub.storage = storage
    hub.lies = {header: value}
    message = refusal("gramt-mono", cache)
    assert "labhamlet/gramt-mono" in message
    assert "\n" not in message
    assert fetched(hub) == []
    assert not list(cache.iterdir())


def test_a_server_that_changes_its_answers_writes_nowhere_else(hub, cache):
    """Only the first answer counts: the client would ask again, and believe the second."""
    answer = hub.answer

    def then_lie(request):
        answer(request)
        hub.lies = {"ETag": '"../../../kept"', "X-Repo-Commit": "../../../kept"}

    hub.answer = then_lie
    model = gram_hear.load_model("gramt-mono", cache_dir=cache)
    assert model.source.commit == COMMIT


def test_a_lying_server_does_not_keep_a_cached_model_from_loading(hub, cache):
    gram_hear.load_model("gramt-mono", cache_dir=cache)
    hub.lies = {"ETag": '"../../../kept"'}
    with pytest.warns(UserWarning, match="the ETag that it sends is '../../../kept'"):
        gram_hear.load_model("gramt-mono", cache_dir=cache)


def test_a_body_that_exceeds_its_size_is_cut_off(hub, cache):
    hub.excess = 64 << 20
    assert "sent more than the" in refusal("gramt-mono", cache)
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < 1000


def test_a_file_larger_than_the_disk_is_refused_before_the_download(hub, cache, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert "has 100 left" in refusal("gramt-mono", cache)
    assert fetched(hub) == []


@pytest.mark.parametrize("name", ["../../kept", "/etc/passwd", "a/../../b", "a\\b", "C:x", "a//b"])
def test_names_of_files_that_lead_elsewhere_are_refused(name, hub, cache):
    hub.repositories["someone/odd"] = {"README.md": b"x"}
    hub.listed = {f"{name}.safetensors": "0" * 64}
    assert "no name on the Hugging Face Hub" in refusal("someone/odd", cache)


def test_a_list_of_files_without_end_is_cut_off(hub, cache, monkeypatch):
    monkeypatch.setattr(hub_files, "LARGEST_LIST", 2000)
    hub.repositories["someone/odd"] = {f"{i}.txt": b"" for i in range(100)}
    assert "sent more than the 2,000 bytes" in refusal("someone/odd", cache)


@pytest.mark.parametrize("answer", [[], {}, {"siblings": None}, {"siblings": [1]}])
def test_a_list_of_files_of_another_form_is_refused(answer, hub, cache):
    hub.repositories["someone/odd"] = {}
    hub.tell = lambda request: hub.send_json(request, answer)
    assert "is no list of files" in refusal("someone/odd", cache)


@pytest.mark.parametrize("revision", ["../../kept", "/tmp/made", "..", "a/../../../kept"])
def test_a_revision_that_leads_elsewhere_is_refused(revision, hub, cache):
    assert repr(revision) in refusal("gramt-mono", cache, revision=revision)
    assert hub.requests == []


@pytest.mark.parametrize("etag", ["abc", "d41d8cd98f00b204e9800998ecf8427e-12"])
def test_the_list_of_files_tells_the_hash_where_the_etag_does_not(etag, links, hub, cache):
    hub.lies = {"ETag": f'"{etag}"'}
    gram_hear.load_model("gramt-mono", cache_dir=cache)
    hub.listed = {"model.safetensors": "0" * 64}
    message = refusal("gramt-mono", cache)
    assert f"the Hub's list of files says {'0' * 64}" in message


def test_a_link_out_of_the_cache_is_refused_and_what_it_leads_to_is_kept(hub, cache, tmp_path):
    path = gram_hear.load_model("gramt-mono", cache_dir=cache).source.path
    path.unlink()
    path.symlink_to(tmp_path / "kept")
    message = refusal("gramt-mono", cache)
    assert f"leads to {tmp_path / 'kept'}, which is not in the cache" in message


def test_a_link_to_a_file_that_is_gone_is_fetched_anew_or_named(hub, cache):
    path = gram_hear.load_model("gramt-mono", cache_dir=cache).source.path
    path.resolve().unlink()
    gram_hear.load_model("gramt-mono", cache_dir=cache)
    path.resolve().unlink()
    hub.stop()
    message = refusal("gramt-mono", cache)
    assert f"{path} is a link to a file that is gone: put it back, or delete the link" in message


# --- tokens ---------------------------------------------------------------------------------


def authorizations(hub):
    return {
        headers.get("authorization")
        for (_, path), headers in zip(hub.requests, hub.headers, strict=True)
        if not path.startswith("/storage/")
    }


def test_a_token_opens_a_private_repository(hub, tmp_path):
    hub.private.add("labhamlet/gramt-mono")
    hub.storage = True
    model = gram_hear.load_model("gramt-mono", cache_dir=tmp_path, token=hub.TOKEN)
    assert authorizations(hub) == {f"Bearer {hub.TOKEN}"}
    elsewhere = [h for (_, p), h in zip(hub.requests, hub.headers, strict=True) if "/storage/" in p]
    assert elsewhere
    assert not any("authorization" in headers for headers in elsewhere)
    for text in (repr(model), repr(vars(model)), repr(model.options)):
        assert hub.TOKEN not in text
    cached = "".join(
        path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()
    )
    assert hub.TOKEN not in cached


def test_the_environments_token_is_used(hub, tmp_path, monkeypatch):
    hub.private.add("labhamlet/gramt-mono")
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    gram_hear.load_model("gramt-mono", cache_dir=tmp_path, token="none")
    assert authorizations(hub) == {f"Bearer {hub.TOKEN}"}


@pytest.mark.parametrize("fault", [401, 403, 500, "hang up"])
def test_a_token_is_in_no_message(fault, hub, tmp_path, impatient):
    hub.fault = fault
    with pytest.raises(CheckpointError) as error:
        gram_hear.load_model("gramt-mono", cache_dir=tmp_path, token=hub.TOKEN)
    assert hub.TOKEN not in "".join(map(str, traceback.format_exception(error.value)))


@pytest.mark.parametrize("token", ["hf_a\nb", "hf_ä", "hf a", 3])
def test_a_token_that_none_can_be_is_refused_unseen(token, hub, tmp_path):
    with pytest.raises(OptionError) as error:
        gram_hear.load_model("gramt-mono", cache_dir=tmp_path, token=token)
    assert str(token) not in str(error.value)
    assert hub.requests == []


# --- what does not --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "registered", "held"),
    [
        ("gramt-binaural", (1, "frame"), "transformer, 2 channels and frame", "transformer, 1"),
        ("gramt-binaural-time", (2, "frame"), "transformer, 2 channels and time", "transformer, 2"),
        ("gramt-mono", (1, "frame", "plain", 0, "mamba2"), "transformer, 1 channels", "mamba2, 1"),
    ],
)
def test_a_model_that_contradicts_the_registry_is_refused(
    name, kind, registered, held, hub, published_file, tmp_path
):
    path = published_file(*kind)
    hub.repositories[f"labhamlet/{name}"]["model.safetensors"] = path.read_bytes()
    message = refusal(name, tmp_path)
    assert f"{name} is registered with backbone {registered}" in message
    assert f"labhamlet/{name} holds a model with {held} and frame" in message
    repository = gram_hear.load_model(f"labhamlet/{name}", cache_dir=tmp_path)
    assert repository.config.encoder == load_checkpoint(path).config.encoder


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("someone/absent", {}, r"There is no someone/absent on the Hugging Face Hub"),
        ("someone/private", {}, r"private.*hf auth login"),
        ("gramt-mono", {"revision": "v9"}, r"no revision 'v9' of labhamlet/gramt-mono"),
        ("someone/empty", {}, r"There is no model\.safetensors in someone/empty"),
    ],
)
def test_what_is_not_there_is_told(name, options, message, hub, tmp_path):
    hub.repositories |= {"someone/empty": {"README.md": b"soon"}, "someone/private": {}}
    hub.private.add("someone/private")
    assert re.search(message, refusal(name, tmp_path, **options), re.DOTALL)


@pytest.mark.parametrize("name", ["a--b/c", "someone/model.git", "-a/b", "a/b..c"])
def test_names_that_the_hub_does_not_allow_are_refused(name, hub, tmp_path):
    assert name in refusal(name, tmp_path)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["a/b/c", "someone /model", "https://huggingface.co/a/b"])
def test_names_that_are_no_repository_are_refused(name, hub, tmp_path):
    with pytest.raises(OptionError, match="not a Hub repository"):
        gram_hear.load_model(name, cache_dir=tmp_path)
    assert hub.requests == []


@pytest.mark.parametrize("fault", [403, 500, "hang up", "no commit"])
def test_an_ailing_server_is_told(fault, hub, tmp_path, impatient):
    hub.fault = fault
    assert "labhamlet/gramt-mono" in refusal("gramt-mono", tmp_path)


def test_a_download_that_is_no_checkpoint_is_refused(hub, tmp_path):
    hub.repositories["someone/page"] = {"model.safetensors": b"<html>log in first</html>"}
    assert "not a whole safetensors file" in refusal("someone/page", tmp_path)


def test_heads_reach_a_model_of_the_hub(hub, golden_path, tmp_path):
    content = golden_path("gramt_frame_2ch.safetensors").read_bytes()
    hub.repositories["someone/golden"] = {"model.safetensors": content}
    assert "heads=" in refusal("someone/golden", tmp_path)
    model = gram_hear.load_model("someone/golden", cache_dir=tmp_path, heads="4")
    assert model.config.encoder.heads == 4


# --- up -------------------------------------------------------------------------------------


@pytest.fixture
def logged_in(hub, monkeypatch, tmp_path):
    """The server, with a login of the client; temporary folders go to tmp_path / "temporary"."""
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    yield hub
    assert not list((tmp_path / "temporary").iterdir())


def commits(hub):
    return [path for command, path in hub.requests if command == "POST" and "/commit/" in path]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["transformer", "mamba2", "mamba1"])
def test_what_is_pushed_loads_again(backbone, logged_in, small_model, noise, tmp_path):
    model = small_model(2, backbone=backbone)
    address = gram_hear.push_to_hub(model, "someone/pushed")
    assert address == f"{logged_in.endpoint}/someone/pushed"
    files = logged_in.repositories["someone/pushed"]
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    assert len(commits(logged_in)) == 1
    again = gram_hear.load_model("someone/pushed", cache_dir=tmp_path)
    assert again.source.layout == "gram-hear"
    assert again.source.commit == logged_in.commit("someone/pushed")
    audio = noise(2, 2, 40000)
    embeddings = [gram_hear.get_scene_embeddings(audio, each) for each in (model, again)]
    assert torch.equal(*embeddings)


def test_an_autoencoder_is_pushed_whole(logged_in, published_file, tmp_path):
    whole = store.build_autoencoder(load_checkpoint(published_file(1)))
    gram_hear.push_to_hub(whole, "someone/whole", token=logged_in.TOKEN)
    assert load_checkpoint("someone/whole", cache_dir=tmp_path).config.decoder is not None


def test_the_card_says_what_it_is(logged_in, small_model):
    gram_hear.push_to_hub(small_model(7), "someone/foa", licence="cc-by-4.0")
    card = logged_in.repositories["someone/foa"]["README.md"].decode()
    header = card.split("---\n")[1].splitlines()
    assert "license: cc-by-4.0" in header
    assert "library_name: gram-hear" in header
    assert "- ambisonic" in header
    for text in (
        'load_model("someone/foa")',
        "2506.00934",
        "A GRAM-T model (ambisonic)",
        "| width | 64 |",
        "| heads | 1 |",
        "| embedding size, cls | 64 |",
        "Not recorded",
    ):
        assert text in card
    assert "None" not in card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "sizes"),
    [
        ("mamba2", {"state": 16, "head width": 32, "expansion": 2, "convolution (taps)": 4}),
        ("mamba1", {"state": 4, "expansion": 3, "convolution (taps)": 4, "step rank": 4}),
    ],
)
def test_the_card_of_gram_m_has_the_sizes_of_its_mixer(backbone, sizes, logged_in, small_model):
    gram_hear.push_to_hub(small_model(2, backbone=backbone), "someone/gramm")
    card = logged_in.repositories["someone/gramm"]["README.md"].decode()
    assert "A GRAM-M model (binaural)" in card
    assert "GRAM-T" not in card
    facts = {"backbone": backbone, "width": 64, "layers": 2, "embedding size, cls": "none"}
    for label, value in (sizes | facts).items():
        assert f"| {label} | {value} |\n" in card
    assert ("| heads |" in card) == (backbone == "mamba2")


@pytest.mark.parametrize("name", ["gram-tiny-untrained", "gramm-tiny-untrained"])
def test_the_card_of_an_untrained_model_says_so(name):
    with pytest.warns(UserWarning, match="untrained"):
        model = gram_hear.load_model(name)
    card = push.model_card(store.checkpoint_of(model), "a/b", model.source)
    assert "**Untrained**: random numbers from seed 0" in card
    assert "license: other" in card
    with torch.no_grad():
        next(model.parameters()).add_(1)
    card = push.model_card(store.checkpoint_of(model), "a/b", model.source)
    assert f"started from `{name}`, random numbers" in card
    assert "not recorded" in card


def test_the_card_names_the_repository_that_the_weights_came_from(hub, tmp_path):
    model = gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    card = push.model_card(store.checkpoint_of(model), "a/b", model.source)
    assert f"loaded from `labhamlet/gramt-mono` at commit {COMMIT}" in card


def test_a_card_that_was_edited_is_kept(logged_in, small_model):
    gram_hear.push_to_hub(small_model(1), "a/b")
    logged_in.repositories["a/b"]["README.md"] = b"mine"
    gram_hear.push_to_hub(small_model(2), "a/b", message="again")
    assert logged_in.repositories["a/b"]["README.md"] == b"mine"
    assert len(commits(logged_in)) == 2


def test_a_private_push_makes_a_private_repository(logged_in, small_model):
    gram_hear.push_to_hub(small_model(1), "someone/mine", private=True)
    assert "someone/mine" in logged_in.private
    logged_in.repositories["someone/open"] = {}
    with pytest.raises(CheckpointError, match="someone/open is there already, and is public"):
        gram_hear.push_to_hub(small_model(1), "someone/open", private=True)
    assert logged_in.repositories["someone/open"] == {}


def test_a_push_without_login_asks_for_one(hub, small_model):
    with pytest.raises(CheckpointError, match="hf auth login"):
        gram_hear.push_to_hub(small_model(1), "someone/pushed")
    assert hub.requests == []


def test_a_push_without_permission_says_so(logged_in, small_model):
    logged_in.locked.add("others")
    with pytest.raises(CheckpointError, match=r"refused the upload to others/model.*write access"):
        gram_hear.push_to_hub(small_model(1), "others/model")
    with pytest.raises(CheckpointError, match="refused the upload") as error:
        gram_hear.push_to_hub(small_model(1), "someone/model", token="hf_wrong")
    assert "hf_wrong" not in str(error.value)


def test_a_push_without_network_says_so(logged_in, small_model):
    logged_in.stop()
    with pytest.raises(CheckpointError, match=r"upload to someone/model failed .*ConnectError"):
        gram_hear.push_to_hub(small_model(1), "someone/model")


def test_a_push_to_an_absent_branch_says_so(logged_in, small_model):
    with pytest.raises(CheckpointError, match="no branch 'v9' of someone/model"):
        gram_hear.push_to_hub(small_model(1), "someone/model", revision="v9")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model", {}, "must be owner/name"),
        ("a--b/model", {}, "no name of a repository"),
        ("a/b", {"licence": "mit\nevil: 1"}, "licence"),
    ],
)
def test_a_push_with_names_that_cannot_be_is_refused(
    name, options, message, logged_in, small_model
):
    with pytest.raises((CheckpointError, OptionError), match=message):
        gram_hear.push_to_hub(small_model(1), name, **options)
    assert commits(logged_in) == []


def test_what_is_no_model_is_not_pushed(logged_in):
    with pytest.raises(OptionError, match="Linear"):
        gram_hear.push_to_hub(torch.nn.Linear(2, 2), "someone/linear")


@pytest.mark.slow
def test_the_command_pushes(logged_in, published_file, tmp_path):
    command = Path(sys.executable).parent / "gram-hear"
    done = subprocess.run(
        [command, "push", published_file(1), "someone/shell", "--private"],
        env=environment(logged_in, tmp_path / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{logged_in.endpoint}/someone/shell\n"
    assert "someone/shell" in logged_in.private
