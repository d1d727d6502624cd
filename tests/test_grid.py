"""Grid points: those that the original kit drew, and what a task may change about them."""

import json
import random

import pytest

from gram_hear.errors import OptionError, TaskError
from gram_hear.evaluation.predict.grid import DEFAULT, GRIDS, draw_settings, most_steps

CHECK_10 = {"check_val_every_n_epoch": [10]}
MANY = 1000  # more points than any grid has


@pytest.fixture(scope="module")
def drawn(golden_path):
    """What the kit draws at seed 42: grid -> number of combinations, first eight of the draw."""
    return json.loads(golden_path("hear-eval/grid_points_seed42.json").read_text(encoding="utf-8"))


def dictionaries(settings):
    return [setting.to_dict() for setting in settings]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("own", [None, CHECK_10])
def test_the_draw_is_the_kits(drawn, grid, own):
    theirs = drawn[grid + ("+check10" if own else "")]
    ours = dictionaries(draw_settings(grid, 8, "fsdd", own))
    assert ours == theirs["first8"]
    assert list(ours[0]) == list(theirs["first8"][0])
    assert len(draw_settings(grid, MANY, "fsdd", own)) == theirs["size"]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_task_that_the_kit_knows_has_choices_of_its_own(drawn, grid):
    ours = dictionaries(draw_settings(grid, 8, "dcase2016_task2"))
    assert ours == drawn[f"{grid}+check10"]["first8"]


def test_the_metadata_overrules_what_is_known_of_a_task():
    own = {"check_val_every_n_epoch": [7]}
    periods = {
        setting.check_val_every_n_epoch
        for setting in draw_settings("fast", MANY, "dcase2016_task2", own)
    }
    assert periods == {7}


@pytest.mark.parametrize("grid", GRIDS)
def test_every_combination_is_there_once(grid):
    points = draw_settings(grid, MANY, "fsdd")
    assert len(set(points)) == len(points)
    for name, choices in GRIDS[grid].items():
        assert {point.to_dict()[name] for point in points} == set(choices)


def test_fewer_points_are_the_first_ones():
    assert draw_settings("fast", 3, "fsdd") == draw_settings("fast", 8, "fsdd")[:3]


def test_drawing_leaves_the_global_generator_and_the_grids_alone():
    random.seed(0)
    expected = random.random()
    random.seed(0)
    draw_settings("fast", 8, "fsdd", {"lr": [0.1]})
    assert random.random() == expected
    assert DEFAULT["lr"] == [3.2e-3, 1e-3, 3.2e-4, 1e-4]


def test_choices_of_a_task_reach_the_points():
    own = {"hidden_layers": [0], "lr": [1], "dropout": [0], "initialization": ["xavier_normal_"]}
    (point,) = draw_settings("default", 8, "fsdd", own)
    assert (point.hidden_layers, point.lr, point.dropout) == (0, 1, 0)
    assert point.initialization == "xavier_normal_"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"learning_rate": [0.1]}, "'learning_rate'; allowed are .*lr"),
        ({"hidden_layer": [1]}, "Did you mean 'hidden_layers'?"),
        ({"optim": ["SGD"]}, "'optim'"),  # there is one way each
        ({"lr": 0.1}, "lr is 0.1; it must be a list"),
        ({"lr": []}, "must be a list"),
        ({"lr": ["0.1"]}, "'0.1'; it must be like"),
        ({"lr": [0]}, "out of range"),
        ({"lr": [float("nan")]}, "out of range"),
        ({"lr": [-0.1]}, "out of range"),
        ({"dropout": [1.0]}, "out of range"),
        ({"max_epochs": [0]}, "out of range"),
        ({"max_epochs": [2.5]}, "it must be like"),
        ({"max_epochs": [10**9]}, "out of range"),
        ({"hidden_dim": [10**9]}, "out of range"),
        ({"hidden_layers": [10**9]}, "out of range"),
        ({"batch_size": [10**9]}, "out of range"),
        ({"lr": [0.1] * 1000, "patience": [1] * 1000}, "makes 4000000 points; at most 100000"),
        ({"lr": [[0.1] * 1000]}, r"lr has the choice \[0.1.*\.\.\.; it must be like"),
        ({"hidden_layers": [-1]}, "out of range"),
        ({"hidden_layers": [True]}, "True"),
        ({"initialization": ["zeros_"]}, "'zeros_'"),
    ],
)
def test_bad_choices_of_a_task_are_refused(own, message):
    with pytest.raises(TaskError, match=f"fsdd.*{message}"):
        draw_settings("default", 8, "fsdd", own)


def test_the_most_steps_of_a_grid():
    """Ten epochs, of one batch for up to 1,024 rows; of several points the longest."""
    faster = draw_settings("faster", 8, "fsdd")
    assert [most_steps(faster, rows) for rows in (1, 1024, 1025, 10_000)] == [10, 10, 20, 100]
    assert most_steps(draw_settings("fast", 8, "fsdd"), 300) == 50
    small = draw_settings("fast", 8, "fsdd", {"batch_size": [64], "max_epochs": [5]})
    assert most_steps(small, 300) == 25


def test_unknown_grids_and_too_few_points_are_refused():
    with pytest.raises(OptionError, match=r"no grid 'fastest'; .*Did you mean 'faster'"):
        draw_settings("fastest", 8, "fsdd")
    with pytest.raises(OptionError, match=r"0 grid points .*1 or more"):
        draw_settings("fast", 0, "fsdd")
