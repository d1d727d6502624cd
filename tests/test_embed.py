"""Files in, embeddings out: outputs, failures, collisions, and nothing half-written."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from gram_hear.audio.files import read_audio
from gram_hear.embed import embed_jobs, plan_jobs
from gram_hear.errors import OptionError
from gram_hear.hear import get_scene_embeddings, get_timestamp_embeddings

SOUNDS = Path(__file__).parent / "data" / "sounds"


@pytest.fixture(scope="module")
def model(small_model):
    return small_model(2)


def embed(paths, output, model, force=False):
    return list(embed_jobs(plan_jobs(paths, output, force), model))


def test_every_format_rate_and_layout_is_embedded_as_the_api_does(tmp_path, model):
    with pytest.warns(UserWarning, match="directions are lost"):  # of the Ambisonic file
        outcomes = embed([SOUNDS], tmp_path / "out", model)
    assert [outcome.error for outcome in outcomes] == [None] * 4
    for sound in SOUNDS.iterdir():
        arrays = np.load(tmp_path / "out" / f"{sound.name}.npz", allow_pickle=False)
        audio = read_audio(sound, model.sample_rate).audio
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vectors, timestamps = get_timestamp_embeddings([audio], model)
            scene = get_scene_embeddings([audio], model)[0]
        assert np.array_equal(arrays["vectors"], vectors[0].numpy())
        assert np.array_equal(arrays["timestamps"], timestamps[0].numpy())
        assert np.allclose(arrays["scene"], scene, atol=1e-6)
        assert {arrays[name].dtype for name in ("vectors", "timestamps", "scene")} == {
            np.dtype(np.float32)
        }


def test_metadata_says_what_made_the_embeddings(tmp_path, published_file, small_model):
    model = small_model(2, strategy="mean", layer=1)
    embed([SOUNDS / "mono_impacts.ogg"], tmp_path, model)
    arrays = np.load(tmp_path / "mono_impacts.ogg.npz", allow_pickle=False)
    metadata = json.loads(str(arrays["metadata"]))
    assert metadata["model"]["sha256"] == model.source.sha256()
    assert metadata["options"]["strategy"] == "mean"
    assert metadata["options"]["layer"] == 1
    assert metadata["file"] == "mono_impacts.ogg"
    assert metadata["file_sample_rate"] == 16000
    assert metadata["channels"] == 1
    assert metadata["duration_seconds"] == pytest.approx(1.8, abs=0.01)


def test_folders_are_mirrored_and_suffixes_kept(tmp_path):
    for name in ("in/a/x.wav", "in/b/x.wav", "in/x.wav", "in/x.flac"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out")
    outputs = {str(job.output.relative_to(tmp_path / "out")) for job in jobs}
    assert outputs == {"a/x.wav.npz", "b/x.wav.npz", "x.wav.npz", "x.flac.npz"}


def test_two_files_with_one_output_are_refused_before_any_work(tmp_path):
    with pytest.raises(OptionError, match="would both be written"):
        plan_jobs(["a/x.wav", "b/x.wav"], tmp_path)


def test_a_file_named_twice_is_embedded_once(tmp_path):
    sound = SOUNDS / "mono_impacts.ogg"
    assert len(plan_jobs([sound, sound], tmp_path)) == 1


def test_outputs_that_are_there_are_kept_without_force(tmp_path, model):
    sound = SOUNDS / "mono_impacts.ogg"
    output = tmp_path / "mono_impacts.ogg.npz"
    output.write_bytes(b"precious")
    with pytest.raises(OptionError, match="--force"):
        plan_jobs([sound], tmp_path)
    assert output.read_bytes() == b"precious"
    embed([sound], tmp_path, model, force=True)
    assert "vectors" in np.load(output, allow_pickle=False)


def test_nothing_to_do_and_a_file_for_an_output_folder_are_refused(tmp_path):
    with pytest.raises(OptionError, match="No sound file"):
        plan_jobs([tmp_path], tmp_path / "out")
    (tmp_path / "taken").touch()
    with pytest.raises(OptionError, match="must be a folder"):
        plan_jobs([SOUNDS], tmp_path / "taken")


def test_one_bad_file_does_not_stop_the_rest(tmp_path, model):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(SOUNDS / "mono_impacts.ogg", folder / "good.ogg")
    (folder / "bad.wav").write_text("nothing to hear")
    nan = np.full((1000, 1), np.nan, dtype=np.float32)
    soundfile.write(folder / "nan.wav", nan, 32000, subtype="FLOAT")
    outcomes = {o.job.source.name: o.error for o in embed([folder], tmp_path / "out", model)}
    assert outcomes["good.ogg"] is None
    assert "bad.wav could not be read" in outcomes["bad.wav"]
    assert "nan.wav" in outcomes["nan.wav"]
    assert "NaN" in outcomes["nan.wav"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.ogg.npz"]


def test_an_output_is_written_whole_or_not_at_all(tmp_path, model, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    outcomes = embed([SOUNDS / "mono_impacts.ogg"], tmp_path / "out", model)
    assert "No space left" in outcomes[0].error
    assert list((tmp_path / "out").iterdir()) == []


def test_a_clip_shorter_than_a_frame_is_embedded(tmp_path, model):
    soundfile.write(tmp_path / "click.wav", np.ones((10, 1)) * 0.5, 32000)
    assert embed([tmp_path / "click.wav"], tmp_path / "out", model)[0].error is None
    vectors = np.load(tmp_path / "out" / "click.wav.npz", allow_pickle=False)["vectors"]
    assert vectors.shape == (1, model.timestamp_embedding_size)
    assert torch.isfinite(torch.from_numpy(vectors)).all()
