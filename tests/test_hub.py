"""Models from the Hub: the real client against a server of its protocol on this machine."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch

import gram_hear
from gram_hear.errors import CheckpointError, OptionError

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # that the server of conftest.py tells
REGISTERED = {entry.name: entry for entry in gram_hear.list_models() if entry.repository}


@pytest.fixture
def impatient(monkeypatch):
    """Let the client not wait between its attempts."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


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
    hub.repositories["labhamlet/gramt-mono"]["modeling_gram.py"] = b"raise SystemExit"
    gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    assert {path.rsplit("/", 1)[-1] for _, path in hub.requests} == {"model.safetensors"}


def test_the_default_model_is_the_published_binaural_one(hub, tmp_path):
    model = gram_hear.load_model("", cache_dir=tmp_path)
    assert model.source.repository == "labhamlet/gramt-binaural"


def test_a_second_load_needs_no_server(hub, tmp_path):
    first = gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
    hub.stop()
    second = gram_hear.load_model("gramt-mono", cache_dir=tmp_path)
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


@pytest.mark.parametrize("revision", ["v1", COMMIT])
def test_a_revision_is_asked_for(revision, hub, tmp_path):
    model = gram_hear.load_model("gramt-mono", cache_dir=tmp_path, revision=revision)
    assert all(f"/resolve/{revision}/" in path for _, path in hub.requests)
    assert model.source.revision == revision


def test_the_environment_directs_the_client(hub, tmp_path):
    """In a fresh process: HF_ENDPOINT, the usual cache, then the same without the network."""
    script = "import gram_hear, sys; print(gram_hear.load_model(sys.argv[1]).source.path)"
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    paths = []
    for offline in ("0", "1"):
        process = subprocess.run(
            [sys.executable, "-c", script, "gramt-mono"],
            env=environment | {"HF_HUB_OFFLINE": offline},
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


# --- what does not --------------------------------------------------------------------------


def test_a_model_that_contradicts_the_registry_is_refused(hub, small_files, tmp_path):
    hub.repositories["labhamlet/gramt-binaural"]["model.safetensors"] = small_files[1, "frame"]
    message = refusal("gramt-binaural", tmp_path)
    assert "registered with 2 channels and frame patches" in message
    assert "holds a model with 1 and frame" in message
    repository = gram_hear.load_model("labhamlet/gramt-binaural", cache_dir=tmp_path)
    assert repository.config.front_end.layout == "mono"


def test_a_patching_that_contradicts_the_registry_is_refused(hub, small_files, tmp_path):
    hub.repositories["labhamlet/gramt-binaural-time"]["model.safetensors"] = small_files[2, "frame"]
    assert "time patches" in refusal("gramt-binaural-time", tmp_path)


def test_an_absent_repository_is_told(hub, tmp_path):
    message = refusal("someone/absent", tmp_path)
    assert "There is no someone/absent on the Hugging Face Hub" in message


def test_a_private_repository_is_told(hub, tmp_path):
    hub.private.add("labhamlet/gramt-mono")
    message = refusal("gramt-mono", tmp_path)
    assert "private" in message
    assert "hf auth login" in message


def test_an_absent_revision_is_told(hub, tmp_path):
    message = refusal("gramt-mono", tmp_path, revision="v9")
    assert "There is no revision 'v9' of labhamlet/gramt-mono" in message


def test_an_absent_file_is_told(hub, tmp_path):
    hub.repositories["someone/empty"] = {"README.md": b"soon"}
    message = refusal("someone/empty", tmp_path)
    assert "There is no model.safetensors in someone/empty" in message


@pytest.mark.parametrize("name", ["a--b/c", "someone/model.git", "-a/b", "a/b..c"])
def test_names_that_the_hub_does_not_allow_are_refused(name, hub, tmp_path):
    assert name in refusal(name, tmp_path)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["a/b/c", "someone /model", "https://huggingface.co/a/b"])
def test_names_that_are_no_repository_are_refused(name, hub, tmp_path):
    with pytest.raises(OptionError, match="not a Hub repository"):
        gram_hear.load_model(name, cache_dir=tmp_path)
    assert hub.requests == []


def test_without_a_server_the_offline_model_is_named(hub, tmp_path, impatient):
    hub.stop()
    message = refusal("", tmp_path)
    assert "labhamlet/gramt-binaural" in message
    assert "could not be reached" in message
    assert "load_model('gram-tiny-untrained')" in message


@pytest.mark.parametrize("fault", [403, 500, "hang up", "no commit"])
def test_an_ailing_server_is_told(fault, hub, tmp_path, impatient):
    hub.fault = fault
    assert "labhamlet/gramt-mono" in refusal("gramt-mono", tmp_path)


def test_a_download_that_breaks_off_is_told(hub, tmp_path, impatient):
    hub.fault = "break off"
    assert "labhamlet/gramt-mono" in refusal("gramt-mono", tmp_path)
    hub.fault = None
    gram_hear.load_model("gramt-mono", cache_dir=tmp_path)


def test_a_download_that_is_no_checkpoint_is_refused(hub, tmp_path):
    hub.repositories["someone/page"] = {"model.safetensors": b"<html>log in first</html>"}
    assert "not a whole safetensors file" in refusal("someone/page", tmp_path)


def test_heads_reach_a_model_of_the_hub(hub, golden_path, tmp_path):
    content = golden_path("gramt_frame_2ch.safetensors").read_bytes()
    hub.repositories["someone/golden"] = {"model.safetensors": content}
    assert "heads=" in refusal("someone/golden", tmp_path)
    model = gram_hear.load_model("someone/golden", cache_dir=tmp_path, heads="4")
    assert model.config.encoder.heads == 4
