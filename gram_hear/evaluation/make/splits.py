"""The splits of a task (train, valid and test, or folds): given, or drawn by label and group."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gram_hear.errors import OptionError, TaskError, allowed, some
from gram_hear.evaluation.make.labels import SPLIT_COLUMNS, LabelledClip, LabelledRecordings
from gram_hear.tasks import FEWEST_FOLDS, SPLITS

SHARES = (0.6, 0.2, 0.2)  # of train, valid and test, unless told
ALSO_VALID = ("val", "validation")  # what else tables call the valid split
SECTORS = 8  # of the azimuth, in which directions are spread evenly over the splits


@dataclass(frozen=True)
class SplitOptions:
    """How clips are divided into splits.

    Attributes:
        shares: of train, valid and test; they are scaled to a sum of 1. None: :data:`SHARES`.
        folds: how many folds there are instead; None for none.
        seed: of the order in which groups of equal size are dealt out.
        group_by: the field whose values stay in one split; "" where every clip stands for itself.
        allow_rare: accept, with a warning instead of an error, classes that are in one split only,
            or not in the training split.
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
class Splits:
    """The splits of a task.

    Attributes:
        mode: the task's ``split_mode``.
        clips: name of the split -> its clips, sorted by file.
        notes: what a user should know of, one sentence each.
    """

    mode: str
    clips: Mapping[str, tuple[LabelledClip, ...]]
    notes: tuple[str, ...]

    @property
    def split_of(self) -> dict[str, str]:
        """File -> the split that it is in."""
        return {clip.file: split for split, clips in self.clips.items() for clip in clips}


def make_splits(
    recordings: LabelledRecordings, options: SplitOptions, duplicates: Sequence[Sequence[str]] = ()
) -> Splits:
    """Return the splits that the recordings' labels give, or make them.

    Args:
        recordings: with a column ``split`` or ``fold`` the splits are those given; where no clip is
            given to valid, it is taken from train.
        options: how splits are made that are not given.
        duplicates: files of equal sound, which stay in one split where splits are made.

    Raises:
        TaskError: for unknown names of splits, a split without clips, a group in two splits, a
            class in one split only or not in what is trained on.
        OptionError: for shares or folds where the splits are given.
    """
    given = next((column for column in SPLIT_COLUMNS if column in recordings.columns), None)
    if given == "fold":
        names, splits, notes = _given_folds(recordings.clips, options)
    elif given == "split":
        names, splits, notes = _given_splits(recordings.clips, options, duplicates)
    else:
        names, shares, notes = SPLITS, options.shares or SHARES, []
        if options.folds:
            names = tuple(f"fold{i:02d}" for i in range(options.folds))
            shares = (1.0,) * len(names)
        splits = _deal(recordings.clips, names, shares, options, duplicates)
    if given:
        _check_groups(recordings.clips, splits, options.group_by)
    found: dict[str, list[LabelledClip]] = {name: [] for name in names}
    for clip, split in zip(recordings.clips, splits, strict=True):
        found[split].append(clip)
    if empty := [name for name, inside in found.items() if not inside]:
        raise TaskError(
            f"No clip is in {' and '.join(empty)}; there are {len(recordings.clips)} clips"
            + (f" in groups by {options.group_by}" if options.group_by else "")
            + f" for {len(names)} splits. Give more of them, or fewer folds."
        )
    divided = {name: tuple(inside) for name, inside in found.items()}
    notes += _check_classes(divided, recordings.labels, names == SPLITS, options.allow_rare)
    kfold = "presplit_kfold" if given else "new_split_kfold"
    return Splits("trainvaltest" if names == SPLITS else kfold, divided, tuple(notes))


# --- splits that are given ------------------------------------------------------------------

Given = tuple[tuple[str, ...], list[str], list[str]]  # names, the split of each clip, notes


def _given_folds(clips: Sequence[LabelledClip], options: SplitOptions) -> Given:
    _refuse("fold", "--shares and --folds", options.shares or options.folds)
    values = {clip.fields["fold"] for clip in clips}
    notes = []
    if all(value.isdecimal() for value in values):
        named = {value: f"fold{int(value):02d}" for value in sorted(values, key=int)}
    else:
        named = {value: f"fold{i:02d}" for i, value in enumerate(sorted(values))}
        renamed = ", ".join(f"{value} is {name}" for value, name in named.items())
        notes.append(f"Folds are numbered: {renamed}.")
    names = tuple(dict.fromkeys(named.values()))
    if len(names) < FEWEST_FOLDS:
        raise TaskError(
            f"There are {len(names)} folds ({', '.join(sorted(values))}); a task needs at least "
            f"{FEWEST_FOLDS}, to test, to validate and to train."
        )
    return names, [named[clip.fields["fold"]] for clip in clips], notes


def _given_splits(
    clips: Sequence[LabelledClip], options: SplitOptions, duplicates: Sequence[Sequence[str]]
) -> Given:
    """Return the splits given; valid is taken from train where no clip is given to it."""
    _refuse("split", "--folds", options.folds)
    splits = [_split_name(clip) for clip in clips]
    if absent := [split for split in ("train", "test") if split not in splits]:
        raise TaskError(
            f"No file is given to {' and '.join(absent)}; the splits are {', '.join(SPLITS)}, and "
            "only valid is made where it is not given."
        )
    if "valid" in splits:
        _refuse("split", "--shares", options.shares)
        return SPLITS, splits, []
    train = [clip for clip, split in zip(clips, splits, strict=True) if split == "train"]
    shares = (options.shares or SHARES)[:2]
    dealt = iter(_deal(train, SPLITS[:2], shares, options, duplicates))
    splits = [next(dealt) if split == "train" else split for split in splits]
    taken = f"{splits.count('valid')} of the {len(train)} given to train are taken"
    return SPLITS, splits, [f"No file is given to valid: {taken}."]


def _refuse(column: str, options: str, given: object) -> None:
    """Refuse options that make splits where a column has them already."""
    if given:
        raise OptionError(
            f"Each file's {column} is given; leave out {options}, or the column: "
            f"--ignore-columns {column}."
        )


def _split_name(clip: LabelledClip) -> str:
    name = clip.fields["split"]
    if name in ALSO_VALID:
        return "valid"
    if name not in SPLITS:
        raise TaskError(f"{clip.file} is given to the split {name!r}; {allowed(name, SPLITS)}")
    return name


def _check_groups(clips: Sequence[LabelledClip], splits: Sequence[str], group_by: str) -> None:
    """Check that no group is in two of the splits that are given."""
    if not group_by:
        return
    found: dict[str, set[str]] = {}
    for clip, split in zip(clips, splits, strict=True):
        found.setdefault(clip.fields[group_by], set()).add(split)
    if torn := [f"{key} ({', '.join(sorted(own))})" for key, own in found.items() if len(own) > 1]:
        raise TaskError(
            f"{len(torn)} values of {group_by} are in several of the splits given: {some(torn)}. "
            "Correct these, leave out --group-by, or have splits made: --ignore-columns split,fold."
        )


def _check_classes(
    splits: Mapping[str, Sequence[LabelledClip]],
    labels: Sequence[str],
    has_train: bool,
    allow_rare: bool,
) -> list[str]:
    """Return notes on the classes that some split lacks.

    Raises:
        TaskError: for a class that cannot be learned or tested, unless ``allow_rare``.
    """
    there = {
        split: {label for clip in clips for label in clip.labels} for split, clips in splits.items()
    }
    single, unlearnt, missing = [], [], []
    for label in labels:
        own = [split for split, found in there.items() if label in found]
        if len(own) == 1:
            single.append(f"{label} ({own[0]})")
        elif has_train and "train" not in own:
            unlearnt.append(f"{label} ({', '.join(own)})")
        elif not has_train and (tested := _untrained_fold(splits, own)):
            unlearnt.append(f"{label} ({', '.join(own)}) where {tested} is tested")
        elif len(own) < len(splits):
            others = [split for split in splits if split not in own]
            missing.append(f"{label} (not in {', '.join(others)})")
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


def _untrained_fold(folds: Iterable[str], own: Iterable[str]) -> str:
    """Return the fold whose test leaves none of a class's own folds to train; "" where none does.

    The fold after the tested one validates, the others train, as in
    :func:`gram_hear.evaluation.predict.folds.folds_of`.
    """
    names = sorted(folds)
    following = [*names[1:], names[0]]
    pairs = zip(names, following, strict=True)
    return next((test for test, valid in pairs if set(own) <= {test, valid}), "")


# --- splits that are made -------------------------------------------------------------------


def _deal(
    clips: Sequence[LabelledClip],
    names: Sequence[str],
    shares: Sequence[float],
    options: SplitOptions,
    duplicates: Sequence[Sequence[str]],
) -> list[str]:
    """Return the split of each clip: groups stay together, labels are spread evenly."""
    group_by = options.group_by
    index_of = {clip.file: i for i, clip in enumerate(clips)}
    groups = group_numbers(
        [clip.fields[group_by] if group_by else clip.file for clip in clips],
        [[index_of[file] for file in same if file in index_of] for same in duplicates],
    )
    count = int(groups.max()) + 1
    if count < len(names):
        raise TaskError(
            f"There are {count} {f'values of {group_by}' if group_by else 'different clips'} for "
            f"{len(names)} splits, and none may be in two; give more, or fewer folds."
        )
    strata = [_strata(clip) for clip in clips]
    index = {name: i for i, name in enumerate(sorted({each for some in strata for each in some}))}
    counts = np.zeros((count, len(index) + 1), dtype=np.int64)
    counts[:, -1] = np.bincount(groups)  # of clips, of whatever label
    for group, own in zip(groups, strata, strict=True):
        for name in own:
            counts[group, index[name]] += 1
    dealt = deal_groups(counts, shares, options.seed)
    return [names[dealt[group]] for group in groups]


def _strata(clip: LabelledClip) -> Sequence[str]:
    """Return what is to be spread evenly over the splits: labels, or the sector of a direction."""
    if clip.labels or not clip.annotation or isinstance(clip.annotation[0], dict):
        return clip.labels
    x, y, _ = clip.annotation
    return [str(round(math.atan2(y, x) / math.tau * SECTORS) % SECTORS)]


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
    """Deal groups out to splits so that each split has its share of every label.

    The label that the fewest groups still have comes first, and of its groups the largest one. The
    error is what the labels of all splits, each relative to its total, are off their shares by,
    squared and added up. A group goes to the split where it lessens the error most, and among
    equals to the one that lacks most clips. Splits that have none of the label yet come before the
    others once there are no more groups than such splits. The order is that of iterative
    stratification (Sechidis, Tsoumakas and Vlahavas 2011).

    Args:
        counts: (groups, labels + 1) whole numbers: how often a group has each label, and last how
            many clips; every group has at least one.
        shares: of each split, above 0; they are scaled to a sum of 1.
        seed: of the order of groups that are equally large.

    Returns:
        (groups,) the split of each.
    """
    totals = counts.sum(axis=0)
    wanted = np.outer(np.array(shares) / sum(shares), totals)
    weights = 1 / np.maximum(totals[:-1], 1) ** 2
    has = np.zeros(wanted.shape, dtype=bool)
    splits = np.full(len(counts), -1)
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    shuffled = shuffled[np.argsort(-counts[shuffled, -1], kind="stable")]
    holders = (counts > 0).sum(axis=0)  # groups that have a label and are not dealt out
    while holders.any():
        label = int(np.where(holders > 0, holders, len(counts) + 1).argmin())
        own = shuffled[(counts[shuffled, label] > 0) & (splits[shuffled] < 0)]
        for left, group in zip(range(len(own), 0, -1), own, strict=True):
            lacking = np.flatnonzero(~has[:, label])
            able = lacking if 0 < left <= len(lacking) else np.arange(len(wanted))
            # (w - c)^2 - w^2 = c^2 - 2 c w, and c^2 is the same for every split.
            gains = wanted[able, :-1] @ (weights * counts[group, :-1])
            split = able[np.lexsort((-wanted[able, -1], -gains.round(12)))[0]]
            splits[group] = split
            wanted[split] -= counts[group]
            has[split] |= counts[group] > 0
            holders -= counts[group] > 0
    return splits
