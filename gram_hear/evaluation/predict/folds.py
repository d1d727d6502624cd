"""The folds of a task: which splits train, validate and test."""

from dataclasses import dataclass

from gram_hear.tasks import Task


@dataclass(frozen=True)
class Fold:
    """One test: its name in the score file, and the splits that it trains on, validates and tests.

    ``validation`` is empty where nothing is chosen by a validation.
    """

    name: str
    training: tuple[str, ...]
    validation: str
    test: str

    @property
    def splits(self) -> set[str]:
        """All splits that the fold uses."""
        return {*self.training, self.validation, self.test} - {""}


def folds_of(task: Task, validate: bool = True) -> list[Fold]:
    """Return the folds of a task: one of train, valid and test, or one for each split.

    In k-fold tasks the splits are sorted; the one after the test split validates. What
    :func:`gram_hear.tasks.read_task` returns has all the splits that this needs.

    Args:
        task: a task.
        validate: whether a split validates. Without, the split that would is trained on in k-fold
            tasks, and is not used in others.
    """
    if not task.folds:
        return [Fold("test", ("train",), "valid" if validate else "", "test")]
    splits = sorted(task.splits)
    folds = []
    for i, test in enumerate(splits):
        validation = splits[(i + 1) % len(splits)] if validate else ""
        training = tuple(name for name in splits if name not in (test, validation))
        folds.append(Fold(test, training, validation, test))
    return folds
