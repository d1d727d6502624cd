"""Masks of each kind: how many tokens they hide, which ones, how often; masks as indices."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gram_hear.errors import ConfigError
from gram_hear.nn.masks import MASKS, draw_masks, random_mask, split_mask

KINDS = (*MASKS, "PyTorch's")

DISTANCES = [(0, 1), (1, 0), (2, 2), (0, 3), (4, 4), (0, 5)]
GRIDS = {"frame": (8, 25), "time": (1, 100)}


def draw(kind, windows=40, grid=(8, 25), masked=160, seed=0):
    rows, columns = grid
    if kind == "PyTorch's":
        generator = torch.Generator().manual_seed(seed)
        return random_mask(windows, rows * columns, masked, generator)
    generator = np.random.default_rng(seed)
    return draw_masks(kind, windows, rows * columns, rows, masked, generator)


@given(st.sampled_from(KINDS), st.integers(1, 5), st.integers(1, 9), st.integers(1, 26), st.data())
def test_every_window_hides_exactly_so_many_tokens(kind, windows, rows, columns, data):
    masked = data.draw(st.integers(1, rows * columns))
    masks = draw(kind, windows, (rows, columns), masked)
    assert masks.dtype == torch.bool
    assert masks.shape == (windows, rows * columns)
    assert masks.sum(dim=1).eq(masked).all()


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_reproducible_and_differ_by_window_and_seed(kind):
    one = draw(kind)
    assert torch.equal(one, draw(kind))
    assert not torch.equal(one, draw(kind, seed=1))
    assert len({tuple(mask.tolist()) for mask in one}) == 40


@pytest.mark.parametrize("kind", ["random", "frequency", "time", "PyTorch's"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_every_token_is_hidden_equally_often(kind, grid):
    masked = grid[0] * grid[1] * 4 // 5
    share = draw(kind, 2000, grid, masked).float().mean(dim=0)
    assert (share - 0.8).abs().max() < 0.045  # 5 deviations


def test_random_masks_are_the_lowest_of_a_permutation():
    order = np.random.default_rng(0).random((40, 200)).argsort(axis=1, kind="stable")
    assert torch.equal(draw("random"), torch.from_numpy(order < 160))


def partial_lines(masks, grid, dim):
    """How many tokens the lines along ``dim`` hide that are neither whole nor visible."""
    counts = masks.unflatten(1, grid).sum(dim=dim)
    length = grid[dim - 1]
    return [row[(row > 0) & (row < length)].tolist() for row in counts]


@pytest.mark.parametrize(
    ("kind", "dim", "masked", "left"),
    [
        ("frequency", 2, 160, [10]),  # six rows of 25, and 10 tokens of a seventh
        ("frequency", 2, 150, []),
        ("time", 1, 160, []),  # twenty columns of 8
        ("time", 1, 163, [3]),
    ],
)
def test_frequency_and_time_masks_hide_whole_lines(kind, dim, masked, left):
    masks = draw(kind, masked=masked)
    assert partial_lines(masks, (8, 25), dim) == [left] * 40
    hidden = masks.unflatten(1, (8, 25))
    if left:  # the tokens of the last line are drawn anew in each window
        lines = {tuple(line.tolist()) for mask in hidden for line in mask.movedim(dim - 1, -1)}
        assert len({line for line in lines if 0 < sum(line) < len(line)}) > 20


def plain_cluster(rows, columns, masked, generator):
    """Squares drawn one by one until enough tokens are hidden, (rows, columns) bool."""
    side, hidden = generator.choice([3, 4, 5]), set()
    while len(hidden) < masked:
        start = int(generator.integers(rows * columns))
        square = {start + columns * down + right for down in range(side) for right in range(side)}
        hidden |= {token for token in square if token < rows * columns}
    mask = np.zeros(rows * columns, dtype=bool)
    mask[sorted(hidden)[:masked]] = True
    return mask.reshape(rows, columns)


@pytest.mark.parametrize("masked", [20, 160])
def test_cluster_masks_equal_the_plain_reference_in_distribution(masked):
    """How often a band is hidden, and two tokens at some distance together."""
    generator = np.random.default_rng(1)
    expected = np.stack([plain_cluster(8, 25, masked, generator) for _ in range(600)])
    found = draw("cluster", 600, masked=masked).unflatten(1, (8, 25)).numpy()

    def together(masks, down, right):
        pairs = masks[:, down:, right:] & masks[:, : 8 - down, : 25 - right]
        return pairs.mean(axis=(1, 2))

    shares = [(each.mean(axis=2).T, each.mean(axis=1).T) for each in (found, expected)]
    pairs = [
        *zip(*(rows for rows, _ in shares), strict=True),
        *zip(*(columns for _, columns in shares), strict=True),
        *((together(found, *at), together(expected, *at)) for at in DISTANCES),
    ]
    for one, other in pairs:
        error = ((one.var() + other.var()) / 600) ** 0.5
        assert abs(one.mean() - other.mean()) <= 5 * error + 1e-9


# --- masks as indices -----------------------------------------------------------------------


def unequal():
    mask = draw("random", 3)
    mask[1] = draw("random", 3, masked=150)[1]
    return mask


@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        (unequal(), r"hides \[150, 160\] of 200 tokens"),
        (torch.zeros(3, 200, dtype=torch.bool), r"hides \[0\] of 200 tokens"),
        (torch.ones(3, 200, dtype=torch.bool), r"hides \[200\] of 200 tokens"),
        (draw("random")[0], r"shape \(200,\); it must be bool, \(windows, tokens\)"),
        (draw("random").float(), "torch.float32"),
        (draw("random").long(), "torch.int64"),
    ],
    ids=["unequal", "none", "all", "rank", "float", "integer"],
)
def test_a_mask_that_cannot_be_is_an_error(mask, complaint):
    with pytest.raises(ConfigError, match=complaint):
        split_mask(mask)


def test_a_mask_is_split_into_what_is_visible_and_what_is_hidden_in_order():
    mask = draw("random", 5, (4, 10), 13)
    visible, hidden = split_mask(mask)
    assert visible.tolist() == [(~row).nonzero()[:, 0].tolist() for row in mask]
    assert hidden.tolist() == [row.nonzero()[:, 0].tolist() for row in mask]
