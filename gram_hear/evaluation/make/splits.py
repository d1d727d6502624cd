"""Which clip is on which side: train, valid and test, or folds; by label, by group, from a seed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gram_hear.errors import OptionError, TaskError, nearest
from gram_hear.evaluation.make.labels import SIDES, Clip, Collection, some
from gram_hear.tasks import FEWEST_FOLDS, SPLITS

SHARES = (0.6, 0.2, 0.2)  # of train, valid and test, unless told
ALSO_VALID = ("val", "validation")  # what else tables call the valid split
SECTORS = 8  # of the azimuth, in which directions are spread evenly over the sides


@dataclass(frozen=True)
class Division:
    """How clips are shared among sides.

    Attributes:
        shares: of train, valid and test; they are scaled to a sum of 1. None: :data:`SHARES`.
        folds: how many folds there are instead; None for none.
        seed: of the order in which groups of equal size are dealt out.
        group_by: the field whose values stay on one side; "" where every clip stands for itself.
        allow_rare: warn of classes that are in one split only, or not in what is trained on.
    """

    shares: tuple[float, ...] | None = None
    folds: int | None = None
    seed: int = 0
    group_by: str = ""
    allow_rare: bool = False

    def __post_init__(self) -> None:
        if self.shares is not None and (
            len(self.shares) != len(SPLITS)
            or not all(math.isfinite(share) and share > 0 for share in self.shares)
        ):
            raise OptionError(
                f"The shares are {', '.join(f'{share:g}' for share in self.shares)}; give three "
                "numbers above 0, of train, valid and test, as 0.6,0.2,0.2."
            )
        if self.folds is not None and self.folds < FEWEST_FOLDS:
            raise OptionError(
                f"folds is {self.folds}; there must be at least {FEWEST_FOLDS}, one to test, one "
                "to validate and the others to train."
            )
        if self.shares is not None and self.folds is not None:
            raise OptionError("There are both shares and folds; give one of them.")
        if self.seed < 0:
            raise OptionError(f"The seed is {self.seed}; it must be 0 or more.")


@dataclass(frozen=True)
class Sides:
    """What is on which side.

    Attributes:
        mode: the task's ``split_mode``.
        clips: name of the split -> its clips, sorted by file.
        notes: what a user should know of, one sentence each.
    """

    mode: str
    clips: Mapping[str, tuple[Clip, ...]]
    notes: tuple[str, ...]

    @property
    def side_of(self) -> dict[str, str]:
        """File -> the split that it is in."""
        return {clip.file: side for side, clips in self.clips.items() for clip in clips}


def divide(
    collection: Collection, division: Division, twins: Sequence[Sequence[str]] = ()
) -> Sides:
    """Return the sides that a collection says itself, or make them.

    Args:
        collection: with a column ``split`` or ``fold`` the sides are those given; where no clip is
            given to valid, it is taken from train.
        division: how the others are made.
        twins: files of equal sound, which stay on one side where sides are made.

    Raises:
        TaskError: for names of splits that are none, a side without clips, a group on two sides,
            a class in one split only or not in what is trained on.
        OptionError: for shares or folds where the sides are given.
    """
    given = next((side for side in SIDES if side in collection.columns), None)
    if given == "fold":
        names, sides, notes = _given_folds(collection.clips, division)
    elif given == "split":
        names, sides, notes = _given_splits(collection.clips, division, twins)
    else:
        names, shares, notes = SPLITS, division.shares or SHARES, []
        if division.folds:
            names = tuple(f"fold{i:02d}" for i in range(division.folds))
            shares = (1.0,) * len(names)
        sides = _deal(collection.clips, names, shares, division, twins)
    if given:
        _check_groups(collection.clips, sides, division.group_by)
    found: dict[str, list[Clip]] = {name: [] for name in names}
    for clip, side in zip(collection.clips, sides, strict=True):
        found[side].append(clip)
    if empty := [name for name, inside in found.items() if not inside]:
        raise TaskError(
            f"No clip is in {' and '.join(empty)}; there are {len(collection.clips)} clips"
            + (f" in groups by {division.group_by}" if division.group_by else "")
            + f" for {len(names)} splits. Give more of them, or fewer folds."
        )
    divided = {name: tuple(inside) for name, inside in found.items()}
    notes += _check_classes(divided, collection.labels, names == SPLITS, division.allow_rare)
    kfold = "presplit_kfold" if given else "new_split_kfold"
    return Sides("trainvaltest" if names == SPLITS else kfold, divided, tuple(notes))


# --- sides that are given -------------------------------------------------------------------

Given = tuple[tuple[str, ...], list[str], list[str]]  # names, the side of each clip, notes


def _given_folds(clips: Sequence[Clip], division: Division) -> Given:
    if division.shares or division.folds:
        raise OptionError(
            "Each file's fold is given; leave out --shares and --folds, or the column: "
            "--ignore-columns fold."
        )
    values = {clip.fields["fold"] for clip in clips}
    if all(value.isdecimal() for value in values):
        named = {value: f"fold{int(value):02d}" for value in sorted(values, key=int)}
    else:
        named = {value: f"fold{i:02d}" for i, value in enumerate(sorted(values))}
    names = tuple(dict.fromkeys(named.values()))
    if len(names) < FEWEST_FOLDS:
        raise TaskError(
            f"There are {len(names)} folds ({', '.join(sorted(values))}); a task needs at least "
            f"{FEWEST_FOLDS}, to test, to validate and to train."
        )
    said = ", ".join(f"{name} is {value}" for value, name in named.items())
    notes = [] if all(value.isdecimal() for value in values) else [f"Of the folds {said}."]
    return names, [named[clip.fields["fold"]] for clip in clips], notes


def _given_splits(
    clips: Sequence[Clip], division: Division, twins: Sequence[Sequence[str]]
) -> Given:
    """Return the splits given; valid is taken from train where no clip is given to it."""
    if division.folds:
        raise OptionError(
            "Each file's split is given; leave out --folds, or the column: --ignore-columns split."
        )
    sides = [_split_name(clip) for clip in clips]
    if absent := [split for split in ("train", "test") if split not in sides]:
        raise TaskError(
            f"No file is given to {' and '.join(absent)}; the splits are {', '.join(SPLITS)}, and "
            "only valid is made where it is not given."
        )
    if "valid" in sides:
        if division.shares:
            raise OptionError(
                "Each file's split is given; leave out --shares, or the column: --ignore-columns "
                "split."
            )
        return SPLITS, sides, []
    train = [clip for clip, side in zip(clips, sides, strict=True) if side == "train"]
    shares = (division.shares or SHARES)[:2]
    dealt = iter(_deal(train, SPLITS[:2], shares, division, twins))
    sides = [next(dealt) if side == "train" else side for side in sides]
    return (
        SPLITS,
        sides,
        [
            f"No file is given to valid: {sides.count('valid')} of the "
            f"{len(train)} given to train are taken."
        ],
    )


def _split_name(clip: Clip) -> str:
    name = clip.fields["split"]
    if name in ALSO_VALID:
        return "valid"
    if name not in SPLITS:
        raise TaskError(
            f"{clip.file} is given to the split {name!r}; allowed are {', '.join(SPLITS)}."
            + nearest(name, SPLITS)
        )
    return name


def _check_groups(clips: Sequence[Clip], sides: Sequence[str], group_by: str) -> None:
    """See that no group is on two of the sides that are given."""
    if not group_by:
        return
    found: dict[str, set[str]] = {}
    for clip, side in zip(clips, sides, strict=True):
        found.setdefault(clip.fields[group_by], set()).add(side)
    if torn := [f"{value} ({', '.join(sorted(on))})" for value, on in found.items() if len(on) > 1]:
        raise TaskError(
            f"{len(torn)} values of {group_by} are on several of the sides given: {some(torn)}. "
            "Correct these, leave out --group-by, or have sides made: --ignore-columns split,fold."
        )


def _check_classes(
    sides: Mapping[str, Sequence[Clip]], labels: Sequence[str], has_train: bool, allow_rare: bool
) -> list[str]:
    """Note the classes that some side lacks; where one cannot be learned or tested, fail."""
    there = {
        side: {label for clip in clips for label in clip.labels} for side, clips in sides.items()
    }
    single, unlearnt, missing = [], [], []
    for label in labels:
        on = [side for side, found in there.items() if label in found]
        if len(on) == 1:
            single.append(f"{label} ({on[0]})")
        elif has_train and "train" not in on:
            unlearnt.append(f"{label} ({', '.join(on)})")
        elif not has_train and (tested := _untrained_fold(sides, on)):
            unlearnt.append(f"{label} ({', '.join(on)}) where {tested} is tested")
        elif len(on) < len(sides):
            missing.append(
                f"{label} (not in {', '.join(side for side in sides if side not in on)})"
            )
    faults = [
        f"{len(found)} of {len(labels)} classes are {what}: {some(found)}."
        for what, found in (("in one split only", single), ("not in train", unlearnt))
        if found
    ]
    if faults and not allow_rare:
        raise TaskError(
            f"{' '.join(faults)} Give them more files or groups, leave them out, try other shares "
            "or another seed, or take them as they are with --allow-rare."
        )
    if missing:
        faults.append(
            f"{len(missing)} of {len(labels)} classes are not in every split: {some(missing)}."
        )
    return faults


def _untrained_fold(folds: Iterable[str], on: Iterable[str]) -> str:
    """Return the fold whose test leaves none of the folds ``on`` to train; "" where none does.

    The fold after the tested one validates, the others train (``prediction.folds_of``).
    """
    names = sorted(folds)
    following = [*names[1:], names[0]]
    pairs = zip(names, following, strict=True)
    return next((test for test, valid in pairs if set(on) <= {test, valid}), "")


# --- sides that are made --------------------------------------------------------------------


def _deal(
    clips: Sequence[Clip],
    names: Sequence[str],
    shares: Sequence[float],
    division: Division,
    twins: Sequence[Sequence[str]],
) -> list[str]:
    """Return the side of each clip: groups stay together, labels are spread evenly."""
    group_by = division.group_by
    groups = group_numbers(
        [clip.fields[group_by] if group_by else clip.file for clip in clips],
        _same_group([clip.file for clip in clips], twins),
    )
    count = int(groups.max()) + 1
    if count < len(names):
        raise TaskError(
            f"There are {count} {f'values of {group_by}' if group_by else 'different clips'} for "
            f"{len(names)} splits, and none may be on two sides; give more, or fewer folds."
        )
    strata = [_strata(clip) for clip in clips]
    index = {name: i for i, name in enumerate(sorted({each for some in strata for each in some}))}
    counts = np.zeros((count, len(index) + 1), dtype=np.int64)
    counts[:, -1] = np.bincount(groups)  # of clips, of whatever label
    for group, own in zip(groups, strata, strict=True):
        for name in own:
            counts[group, index[name]] += 1
    dealt = deal_groups(counts, shares, division.seed)
    return [names[dealt[group]] for group in groups]


def _strata(clip: Clip) -> Sequence[str]:
    """Return what is to be spread evenly over the sides: labels, or the sector of a direction."""
    if clip.labels or not clip.annotation or isinstance(clip.annotation[0], dict):
        return clip.labels
    x, y, _ = clip.annotation
    return [str(round(math.atan2(y, x) / math.tau * SECTORS) % SECTORS)]


def _same_group(files: Sequence[str], twins: Iterable[Sequence[str]]) -> list[list[int]]:
    """Return the indices of twins among some files."""
    index = {file: i for i, file in enumerate(files)}
    return [[index[file] for file in same if file in index] for same in twins]


def group_numbers(keys: Sequence[str], same: Iterable[Sequence[int]]) -> np.ndarray:
    """Return the number of each item's group, from 0 in the order of appearance.

    Args:
        keys: items of equal keys are in one group.
        same: indices of items whose groups are one.
    """
    parent = {key: key for key in keys}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    for indices in same:
        for i in indices[1:]:
            parent[root(keys[i])] = root(keys[indices[0]])
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(root(key), len(numbers)) for key in keys])


def deal_groups(counts: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Deal groups out to sides so that each side has its share of every label.

    The label that the fewest groups still have comes first, and of its groups the largest one. A
    group goes to the side where it lessens most what all sides' labels, each relative to its
    total, are off their shares by, squared; among equals to the one that wants most clips. A side
    that has none of the label yet goes before, where there are no more groups than such sides.
    The order is that of iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011).

    Args:
        counts: (groups, labels + 1) whole numbers: how often a group has each label, and last how
            many clips; every group has at least one.
        shares: of each side, above 0; they are scaled to a sum of 1.
        seed: of the order of groups that are equally large.

    Returns:
        (groups,) the side of each.
    """
    totals = counts.sum(axis=0)
    wanted = np.outer(np.array(shares) / sum(shares), totals)
    weights = 1 / np.maximum(totals[:-1], 1) ** 2
    has = np.zeros(wanted.shape, dtype=bool)
    sides = np.full(len(counts), -1)
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    shuffled = shuffled[np.argsort(-counts[shuffled, -1], kind="stable")]
    holders = (counts > 0).sum(axis=0)  # groups that have a label and are not dealt out
    while holders.any():
        label = int(np.where(holders > 0, holders, len(counts) + 1).argmin())
        own = shuffled[(counts[shuffled, label] > 0) & (sides[shuffled] < 0)]
        for left, group in zip(range(len(own), 0, -1), own, strict=True):
            lacking = np.flatnonzero(~has[:, label])
            able = lacking if 0 < left <= len(lacking) else np.arange(len(wanted))
            # (w - c)^2 - w^2 = c^2 - 2 c w, and c^2 is the same on every side.
            gains = wanted[able, :-1] @ (weights * counts[group, :-1])
            side = able[np.lexsort((-wanted[able, -1], -gains.round(12)))[0]]
            sides[group] = side
            wanted[side] -= counts[group]
            has[side] |= counts[group] > 0
            holders -= counts[group] > 0
    return sides
