"""benchmarks/evidence.py: a miniature run end to end, what it measures, and what it refuses."""

import importlib
import json
import sys
from math import cos, radians, sin
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from gram_hear.checkpoints.store import load_checkpoint, save_model
from gram_hear.errors import AudioError, OptionError, TaskError
from gram_hear.evaluation.check import check_module
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mae import MaskedAutoencoder
from gram_hear.pretrain.new_model import first_weights
from gram_hear.scenes.rendering import Rendered
from gram_hear.scenes.rir_building import RirPlan, build_rirs
from gram_hear.scenes.rirs import open_rirs
from gram_hear.tasks import read_task

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RATE = 8000
SPEAKERS = {"ann": 1.0, "ben": 1.3, "cem": 1.6}
DIGITS = {0: 300.0, 1: 700.0}
SMALL = (
    *("--takes", "4", "--sounds", "5", "--placements", "1"),
    *("--grid", "faster", "--grid-points", "2", "--seeds", "42", "43", "--jobs", "1"),
)


@pytest.fixture(scope="module")
def modules():
    """The program's modules by name, as they find each other where it is run; with less to do."""
    names = ("evidence", "evidence_tasks", "evidence_scores", "evidence_report", "logmel_module")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        found = {name: importlib.import_module(name) for name in names}
        tasks = found["evidence_tasks"]
        patch.setattr(tasks, "SOUNDS", {kind: tasks.SOUNDS[kind] for kind in ("tone", "chirp")})
        patch.setattr(tasks, "NOISES", {"rain": tasks.NOISES["rain"]})
        patch.setitem(tasks.PREDICTORS["task_specific_param_grid"], "max_epochs", [20])
        patch.setattr(found["evidence_scores"], "ITERATIONS", 8)
        yield found


def write_recordings(folder):
    """Two tones for digits, by three "speakers" of other pitch."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    times = np.arange(RATE // 4) / RATE
    for digit, hertz in DIGITS.items():
        for speaker, factor in SPEAKERS.items():
            for index in range(5):
                sound = 0.3 * np.sin(2 * np.pi * hertz * factor * times)
                sound += 0.01 * generator.standard_normal(len(times))
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", sound, RATE)
    return folder


def stand_in(plan, place):
    """An impulse at both ears, louder on the side of the source, and a noise in the middle."""
    seed = (plan.seed, ["train", "valid", "test"].index(place.split), place.room, place.scene)
    azimuth = float(np.random.default_rng(seed).uniform(-180, 180))
    rirs = np.zeros((2, 2, 200), dtype=np.float32)
    left = sin(radians(azimuth))
    rirs[0, :, 20] = 1 + 0.8 * left, 1 - 0.8 * left
    rirs[1, :, 40] = 0.5
    direction = [cos(radians(azimuth)), left, 0.0]
    metadata = {"seed": seed, "azimuth": azimuth, "elevation": 0.0, "direction": direction}
    return [Rendered(rirs, plan.rate, "binaural", metadata)]


def write_rirs(folder):
    plan = RirPlan(rooms=8, scenes_per_room=3, layouts=("binaural",), valid=0.25, test=0.25)
    build_rirs(folder, plan, jobs=1, simulator=stand_in)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_config):
    """Recordings, RIRs, two small models, and a page with prose."""
    folder = tmp_path_factory.mktemp("evidence")
    write_recordings(folder / "recordings")
    write_rirs(folder / "rirs")
    for seed, name in enumerate(("scenes", "dry"), 1):
        model = MaskedAutoencoder(make_config(2))
        initialise(model, seed)
        save_model(model, folder / f"{name}.safetensors")
    (folder / "docs").mkdir()
    (folder / "docs" / "results.md").write_text("# Results\n\nWords before.\n")
    return folder


def run(modules, place, *arguments, results="docs"):
    """Run the program with its small sizes; return its exit code."""
    before = sys.argv
    common = ["--rirs", place / "rirs", "--work", place / "work", "--results", place / results]
    sys.argv = ["evidence.py", *map(str, [*common, *SMALL, place / "recordings", *arguments])]
    try:
        modules["evidence"].main()
    except SystemExit as leaving:
        return leaving.code
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def done(modules, place):
    """The program has run once."""
    assert run(modules, place, place / "scenes.safetensors") == 0
    return place


def results_of(place, folder="docs"):
    return json.loads((place / folder / "results.json").read_text())["evidence"]


def test_everything_in_one_command(done, capsys, modules):
    results = results_of(done)
    assert results["contenders"] == ["scenes", "untrained", "log-mel"]
    assert results["sizes"] == {"takes": 4, "sounds": 5, "placements": 1}
    assert set(results["weights"]) == {"scenes", "untrained"}
    for title in results["contenders"]:
        scores = results["accuracy"][title]
        assert len(scores) == 6
        assert all(len(each["values"]) == 2 for each in scores.values())
        dry = np.mean([scores[name]["mean"] for name in modules["evidence_tasks"].DRY])
        assert results["averages"][title]["dry"]["mean"] == pytest.approx(dry)
        assert 0 <= results["probe"][title]["digits-v1-full"] <= 1  # the networks are random
    assert results["probe"]["log-mel"]["digits-v1-full"] > 0.5  # chance, of two digits
    assert results["accuracy"]["log-mel"]["speakers-v1-full"]["mean"] > 0.5  # chance is 1 in 3
    page = (done / "docs" / "results.md").read_text()
    assert page.startswith("# Results\n\nWords before.\n")
    assert "python benchmarks/evidence.py recordings scenes --rirs rirs" in page
    assert str(done) not in page


def test_predictions_are_told_by_seed_and_directions_by_predictions(done, modules):
    measured = results_of(done)["localisation"]["directions-v1-full"]
    assert set(measured) == {"scenes", "untrained", "log-mel", "straight ahead"}
    (folder,) = (done / "work" / "predictions").glob("*seed43/logmel_module/directions-v1-full")
    with np.load(folder / "test.predictions.npz") as arrays:
        prediction, target = arrays["prediction"], arrays["target"]
    expected = modules["evidence_scores"].direction_errors(prediction, target)
    assert measured["log-mel"]["folded"]["values"][1] == expected["folded"]
    assert measured["straight ahead"]["elevation"]["mean"] == 0.0


def test_run_again_nothing_is_made_again(done, modules, capsys):
    before = results_of(done)
    paths = [path for path in (done / "work").rglob("*") if path.is_file()]
    times = {path: path.stat().st_mtime_ns for path in paths}
    page = (done / "docs" / "results.md").read_text()
    assert run(modules, done, done / "scenes.safetensors") == 0
    assert "| straight ahead |" in capsys.readouterr().out
    assert results_of(done) == before
    assert (done / "docs" / "results.md").read_text() == page
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_two_models_stand_side_by_side(done, modules, capsys):
    models = [done / "scenes.safetensors", done / "dry.safetensors"]
    assert run(modules, done, *models, results="both") == 0
    results = results_of(done, "both")
    assert results["contenders"] == ["scenes", "dry", "untrained", "log-mel"]
    assert results["accuracy"]["scenes"] == results_of(done)["accuracy"]["scenes"]
    assert "recordings scenes dry --rirs" in (done / "both" / "results.md").read_text()


def test_directions_share_neither_rooms_nor_speakers(done):
    task = read_task(done / "work" / "tasks" / "directions-v1-full")
    rirs = open_rirs(done / "rirs", "binaural")
    assert task.kind == "localisation"
    names = {
        split: {file.rsplit("-", 1)[0] for file in task.annotations(split)} for split in task.splits
    }
    for split, found in names.items():
        assert found == {rirs.name(i).replace("/", "-") for i in rirs.indices(split)}
    assert len(task.annotations("test")) == 2 * len(names["test"])


def test_folds_are_speakers(done):
    task = read_task(done / "work" / "tasks" / "digits-v1-full")
    for split, speaker in zip(sorted(task.splits), sorted(SPEAKERS), strict=True):
        assert {file.split("_")[1] for file in task.annotations(split)} == {speaker}
        assert {file.split("_")[2] for file in task.annotations(split)} == {
            f"{index}.wav" for index in range(4)
        }


def test_other_sizes_in_the_same_folder_are_refused(done, modules, capsys):
    assert run(modules, done, done / "scenes.safetensors", "--takes", "3") == 1
    assert "takes" in capsys.readouterr().err


def test_recordings_that_are_none_are_refused(tmp_path, modules):
    with pytest.raises(TaskError, match="three speakers"):
        modules["evidence_tasks"].list_recordings(tmp_path, 20)


def test_a_model_is_needed(modules, capsys):
    with pytest.raises(SystemExit):
        modules["evidence"].read_command(["recordings", "--rirs", "rirs"])


def test_untrained_is_what_training_begins_with(place, tmp_path, modules):
    path = modules["evidence"].save_untrained(str(place / "scenes.safetensors"), tmp_path)
    config = load_checkpoint(place / "scenes.safetensors").config
    first, tensors = first_weights(config, 0, None)[0].state_dict(), load_checkpoint(path).tensors
    assert tensors
    assert all(torch.equal(tensor, first[name]) for name, tensor in tensors.items())


def vectors(*angles):
    return np.array(
        [
            [cos(radians(a)) * cos(radians(e)), sin(radians(a)) * cos(radians(e)), sin(radians(e))]
            for a, e in angles
        ]
    )


@pytest.mark.parametrize(
    ("heard", "true", "azimuth", "folded", "confusions"),
    [
        (30, 40, 10, 10, 0),
        (150, 40, 110, 10, 1),
        (-170, 170, 20, 20, 0),
        (-30, -150, 120, 0, 1),
        (10, 0, 10, 10, 0),
        (180, 0, 180, 0, 1),
    ],
)
def test_azimuth_is_measured_over_the_circle_and_folded(
    modules, heard, true, azimuth, folded, confusions
):
    errors = modules["evidence_scores"].direction_errors(
        3 * vectors((heard, 10)), vectors((true, -20))
    )
    assert errors["azimuth"] == pytest.approx(azimuth)
    assert errors["folded"] == pytest.approx(folded, abs=1e-9)
    assert errors["confusions"] == confusions
    assert errors["elevation"] == pytest.approx(30)


def test_sources_beside_the_ears_are_no_confusions(modules):
    heard, true = vectors((100, 0), (10, 0)), vectors((80, 0), (20, 0))
    assert modules["evidence_scores"].direction_errors(heard, true)["confusions"] == 0


def test_a_block_is_replaced_and_prose_kept(modules):
    replace = modules["evidence_report"].replace_block
    first = replace("# Results\n\nBefore.\n", "evidence", "old") + "\nAfter.\n"
    second = replace(first, "evidence", "new")
    assert "old" not in second
    assert second.startswith("# Results\n\nBefore.\n\n<!-- evidence")
    assert second.endswith("<!-- end of evidence -->\n\nAfter.\n")
    assert replace(second, "evidence", "new") == second
    with pytest.raises(ValueError, match="missing"):
        replace(second.replace("<!-- end of evidence -->", ""), "evidence", "new")


def test_the_baseline_is_a_hear_module(modules):
    findings = check_module("logmel_module", "", {}, "cpu")
    assert [each for each in findings if each.level == "error"] == []


def test_the_baseline_hears_both_ears(modules):
    module = modules["logmel_module"]
    model = module.load_model()
    audio = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    mono = module.get_scene_embeddings(audio, model)
    assert torch.equal(mono[:, :256], mono[:, 256:])
    both = module.get_scene_embeddings(torch.stack([audio, audio / 2], dim=1), model)
    assert torch.equal(both[:, :256], mono[:, :256])
    assert (both[:, 256:384] < both[:, :128]).all()
    assert module.get_scene_embeddings(audio[:, :100], model).isfinite().all()
    with pytest.raises(AudioError, match="one or two channels"):
        module.get_scene_embeddings(torch.zeros(1, 4, 16000), model)
    with pytest.raises(OptionError, match="no weights"):
        module.load_model("model.safetensors")


def test_made_sounds_follow_from_their_seed(modules):
    make = modules["evidence_tasks"].make_sound
    first = make("chirp", (1, 2))
    assert 32000 <= len(first) <= 64000
    assert np.abs(first).max() <= 1
    np.testing.assert_array_equal(first, make("chirp", (1, 2)))
    assert len(make("chirp", (1, 3))) != len(first)
