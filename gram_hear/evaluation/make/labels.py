"""What recordings are labelled with: a class per folder, names of files, or a CSV; all checked.

Nothing here opens a sound file, and nothing is written.
"""

import csv
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gram_hear.audio.files import SUFFIXES, UNREADABLE, find_audio
from gram_hear.errors import OptionError, TaskError, allowed, count, nearest, reason_of, some

TIMES = ("onset", "offset")
ANGLES = ("azimuth", "elevation")
AXES = ("x", "y", "z")
SPLIT_COLUMNS = ("split", "fold")
COLUMNS = ("file", "label", *SPLIT_COLUMNS, *TIMES, *ANGLES, *AXES)
EVERY = "all"  # of --ignore-columns

Row = dict[str, str]


@dataclass(frozen=True)
class LabelOptions:
    """Where the labels of recordings come from.

    Attributes:
        csv: a table, one row for each label, event or direction of a file; None: a class per
            folder, or the names of the files.
        pattern: what the names of the files say, as ``{label}_{speaker}_{index}`` or a regular
            expression with named groups; see :func:`compile_pattern`.
        columns: what the table calls the columns that are known here: ``{"file": "filename"}``.
        ignored: columns of the table that count for nothing; ``("all",)`` is every unknown one.
        group_by: the column or field of the pattern whose values must not be in two splits.
        skip_unlisted: leave out the files that have no row, which are an error otherwise.
        prediction_type: "multiclass" or "multilabel"; None is what the labels of the files say.
    """

    csv: Path | None = None
    pattern: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    group_by: str = ""
    skip_unlisted: bool = False
    prediction_type: str | None = None


@dataclass(frozen=True)
class LabelledClip:
    """A recording and its labels.

    Attributes:
        file: its path below the folder of the recordings.
        annotation: what the task says of it: labels, events or a direction.
        fields: the other columns of its rows, and fields of the pattern: name -> value.
    """

    file: str
    annotation: list
    fields: Row

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels of the clip or of its events, each once; none for a direction."""
        return labels_of(self.annotation)


@dataclass(frozen=True)
class LabelledRecordings:
    """All labelled recordings below a folder.

    Attributes:
        source: the folder.
        kind: "scene", "event" or "localisation".
        prediction_type: "multiclass" or "multilabel".
        clips: sorted by file.
        labels: the vocabulary: rising where all are whole numbers, else sorted as text.
        columns: the names that the clips' fields have.
        notes: what a user should know of, one sentence each.
    """

    source: Path
    kind: str
    prediction_type: str
    clips: tuple[LabelledClip, ...]
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...]


def read_labels(source: Path, options: LabelOptions) -> LabelledRecordings:
    """Find the files below a folder and what they are labelled with.

    Raises:
        TaskError: for a folder without sound files, an empty class, a table that cannot be read,
            has unknown or lacks needed columns, names files that are not there, lacks files that
            are, or contradicts itself.
        OptionError: for a pattern or option that fits nothing.
    """
    if options.prediction_type not in (None, "multiclass", "multilabel"):
        raise OptionError(
            f"The prediction type is {options.prediction_type!r}; "
            + allowed(options.prediction_type, ("multiclass", "multilabel"))
        )
    if not source.is_dir():
        raise TaskError(f"There is no folder {source}; give the one that the recordings lie in.")
    everything = find_audio(source, suffixes=(*SUFFIXES, *UNREADABLE))
    files = [path.relative_to(source).as_posix() for path in everything]
    unread = {file for file in files if file.lower().endswith(UNREADABLE)}
    found = [file for file in files if file not in unread]
    rows = [{"file": file} for file in found] if options.csv is None else []
    notes: list[str] = []
    if options.csv is not None and found:
        rows = read_table(options.csv, options)
        notes = _match_files(source, found, rows, options)
    if left_out := sorted(unread - {row["file"] for row in rows}):
        notes.insert(
            0,
            f"{count(len(left_out), 'file')} left out, as sound of such a format is not read: "
            f"{some(left_out)}. Convert them, to WAV or FLAC, if they belong to the task.",
        )
    if not found:
        raise TaskError(" ".join([f"No sound file was found in {source}.", *notes]))
    _add_names(rows, options)
    if options.csv is None and "label" not in rows[0]:
        _add_folders(source, rows, notes)
    _check_columns(rows[0], options)
    return _collect(source, rows, notes, options)


# --- tables ---------------------------------------------------------------------------------


def read_table(path: Path, options: LabelOptions) -> list[Row]:
    """Return the rows of a CSV file, under the names that columns have here, and stripped.

    The separator is a comma, a semicolon or a tab, whichever the first line has most of.

    Raises:
        TaskError: for a table that cannot be read, is empty, has unknown columns, or rows of
            another length than the first line.
        OptionError: for names of columns that it does not have.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text.partition("\n")[0]
        separator = max((",", ";", "\t"), key=head.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {reason_of(error)}.") from error
    except (ValueError, csv.Error) as error:
        raise TaskError(f"{path} is no CSV in UTF-8 ({error}).") from error
    if len(lines) < 2:
        raise TaskError(
            f"{path} has {len(lines)} lines; it needs one that names the columns, and "
            "one for each label."
        )
    names = _names_here(path, lines[0][1], options)
    wrong = [
        f"line {number} has {len(cells)} cells"
        for number, cells in lines
        if len(cells) != len(names)
    ]
    if wrong:
        raise TaskError(f"{path} has {len(names)} columns, but {some(wrong)}.")
    return [
        {name: cell for name, cell in zip(names, cells, strict=True) if name}
        for _, cells in lines[1:]
    ]


def _names_here(path: Path, head: list[str], options: LabelOptions) -> list[str]:
    """Return what the columns are called here; an empty name for those that are ignored."""
    if len(set(head)) < len(head):
        raise TaskError(f"{path} names a column twice: {', '.join(head)}.")
    if unknown := [name for name in options.columns if name not in COLUMNS]:
        raise OptionError(
            f"--columns names {', '.join(unknown)}; what can be named is {', '.join(COLUMNS)}, as "
            f"file=filename.{nearest(unknown[0], COLUMNS)}"
        )
    theirs = {name: here for here, name in options.columns.items()}
    absent = [name for name in [*theirs, *options.ignored] if name not in [*head, EVERY]]
    if absent:
        raise OptionError(
            f"{path} has no column {absent[0]!r}; it has {', '.join(head)}."
            + nearest(absent[0], head)
        )
    names = [theirs.get(name, "" if name in options.ignored else name) for name in head]
    known = {*COLUMNS, options.group_by, ""}
    others = [name for name in names if name not in known]
    if others and EVERY not in options.ignored:
        raise TaskError(
            f"{path} has unknown columns: {', '.join(others)}. Known are {', '.join(COLUMNS)}"
            f"{' and the one to group by' if not options.group_by else ''}."
            f"{nearest(others[0], [each for each in COLUMNS if each not in names])} What they "
            f"mean is said by --columns, as label={others[0]}; what is not needed is left out by "
            f"--ignore-columns {','.join(others)}."
        )
    names = ["" if name in others else name for name in names]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise TaskError(f"{path} has two columns for {twice[0]!r}; ignore one of them.")
    if "file" not in names:
        raise TaskError(
            f"{path} has no column 'file'; it has {', '.join(head)}. If one of them names the "
            "files, say so: --columns file=NAME."
        )
    return names


def _match_files(
    source: Path, found: Sequence[str], rows: Sequence[Row], options: LabelOptions
) -> list[str]:
    """Check that rows have files and files have rows; return notes on what is left out."""
    here = set(found)
    absent = []
    for row in rows:
        file = row["file"] = Path(row["file"]).as_posix()
        if file not in here and (
            (path := Path(file)).is_absolute()
            or ".." in path.parts
            or not os.path.isfile(source / path)  # False too for a name that is too long
        ):
            absent.append(file)
    if absent := list(dict.fromkeys(absent)):
        raise TaskError(
            f"{options.csv} names {count(len(absent), 'file')} not in {source}: {some(absent)}. "
            f"Names are paths below that folder, with their suffix.{nearest(absent[0], found)}"
        )
    named = {row["file"] for row in rows}
    if unlisted := [file for file in found if file not in named]:
        if not options.skip_unlisted:
            raise TaskError(
                f"{count(len(unlisted), 'file')} in {source} without a row in {options.csv}: "
                f"{some(unlisted)}. Add rows (a file without events has one whose onset, offset "
                "and label are empty), or leave them out with --skip-unlisted."
            )
        return [f"{count(len(unlisted), 'file')} without a row left out."]
    return []


# --- names of files -------------------------------------------------------------------------


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern of files' names.

    A pattern with ``(?P<name>...)`` is a regular expression already. Else ``{name}`` stands for
    one or more characters other than those that stand between the fields, and ``{}`` for the same
    without a name.

    Raises:
        OptionError: for a pattern without fields, with a field twice, or that is no expression.
    """
    if "(?P<" in pattern:
        text = pattern
    else:
        parts = re.split(r"\{(\w*)\}", pattern)
        between = "".join(dict.fromkeys("".join(parts[::2]) + "/"))
        one = f"[^{re.escape(between)}]+"
        text = "".join(
            (f"(?P<{part}>{one})" if part else one) if i % 2 else re.escape(part)
            for i, part in enumerate(parts)
        )
    try:
        compiled = re.compile(text)
    except re.error as error:
        raise OptionError(
            f"--pattern {pattern!r} cannot be understood ({error}); give names of fields in "
            "braces, as {label}_{speaker}_{index}, or a regular expression with named groups."
        ) from error
    if not compiled.groupindex:
        raise OptionError(
            f"--pattern {pattern!r} has no field; name them in braces, as "
            "{label}_{speaker}_{index}."
        )
    return compiled


def _add_names(rows: Sequence[Row], options: LabelOptions) -> None:
    """Add what the files' names say to the rows."""
    if not options.pattern:
        return
    pattern = compile_pattern(options.pattern)
    if twice := [name for name in pattern.groupindex if name in rows[0]]:
        raise OptionError(
            f"--pattern has the field {twice[0]!r}, which the files have already"
            f"{f' from {options.csv}' if options.csv else ''}; call it otherwise."
        )
    with_folders = "/" in options.pattern
    wrong = []
    for row in rows:
        path = Path(row["file"])
        text = path.with_suffix("").as_posix() if with_folders else path.stem
        if match := pattern.fullmatch(text):
            row.update({name: value or "" for name, value in match.groupdict().items()})
        else:
            wrong.append(row["file"])
    if wrong:
        raise TaskError(
            f"The names of {len(wrong)} of {len(rows)} files do not fit --pattern "
            f"{options.pattern!r}: {some(wrong)}. It must fit the whole name without its suffix"
            + (", folders included." if with_folders else "; folders count where it has a '/'.")
        )


def _add_folders(source: Path, rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Label each file with the folder, directly in the source, that it lies in."""
    if outside := [row["file"] for row in rows if "/" not in row["file"]]:
        raise TaskError(
            f"{len(outside)} files lie in {source} itself, in no folder that names their class: "
            f"{some(outside)}. Put them into such folders, or say what labels them: --csv, or "
            "--pattern where their names do, as {label}_{speaker}_{index}."
        )
    for row in rows:
        row["label"] = row["file"].partition("/")[0]
    classes = {row["label"] for row in rows}
    folders = sorted(path.name for path in source.iterdir() if path.is_dir())
    empty = [name for name in folders if name not in classes and not name.startswith(".")]
    if links := [name for name in empty if (source / name).is_symlink()]:
        raise TaskError(
            f"{source} has {len(links)} classes that are symbolic links, which are not followed: "
            f"{some(links)}. Put the folders themselves there, or remove the links."
        )
    if empty:
        raise TaskError(
            f"{source} has {len(empty)} classes without a sound file: {some(empty)}. Fill their "
            f"folders or remove them.{''.join(f' {note}' for note in notes)}"
        )


def _check_columns(row: Row, options: LabelOptions) -> None:
    if options.group_by and options.group_by not in row:
        raise OptionError(
            f"--group-by {options.group_by!r} is no column and no field of a pattern; there are "
            f"{', '.join(row)}.{nearest(options.group_by, row)}"
        )
    if all(column in row for column in SPLIT_COLUMNS):
        raise TaskError(
            "There are both a split and a fold for each file; leave one out with "
            "--ignore-columns split, or fold."
        )


# --- files and their annotations ------------------------------------------------------------


def kind_of(columns: Iterable[str]) -> str:
    """Return what rows with these columns are: "scene", "event" or "localisation".

    Raises:
        TaskError: for columns that make none of these, or several.
    """
    there = set(columns)
    if there & set(TIMES):
        kind, needed = "event", {"label", *TIMES}
    elif there & {*ANGLES, *AXES}:
        kind, needed = "localisation", set(ANGLES) if there & set(ANGLES) else set(AXES)
    else:
        kind, needed = "scene", {"label"}
    missing, wrong = needed - there, ({"label", *TIMES, *ANGLES, *AXES} - needed) & there
    if missing or wrong:
        raise TaskError(
            f"The columns {', '.join(sorted(there))} make no task"
            + (f": {', '.join(sorted(missing))} is missing." if missing else ".")
            + (f" {', '.join(sorted(wrong))} does not go with the others." if wrong else "")
            + " Give file,label for clips; file,onset,offset,label for events; file,azimuth,"
            "elevation or file,x,y,z for directions; --ignore-columns leaves columns out."
        )
    return kind


def _collect(
    source: Path, rows: Sequence[Row], notes: Sequence[str], options: LabelOptions
) -> LabelledRecordings:
    """Join the rows of each file."""
    kind = kind_of(rows[0])
    own = {"file", "label", *TIMES} if kind != "localisation" else {"file", *ANGLES, *AXES}
    columns = tuple(name for name in rows[0] if name not in own)
    gathered: dict[str, list[Row]] = {}
    for row in rows:
        gathered.setdefault(row["file"], []).append(row)
    checks: dict[str, Callable[[str, Sequence[Row]], list]]
    checks = {"scene": _scene, "event": _events, "localisation": _direction}
    clips, faults, repeated = [], [], 0
    for file, own_rows in sorted(gathered.items()):
        unique = list({tuple(row.values()): row for row in own_rows}.values())
        repeated += len(own_rows) - len(unique)
        try:
            fields = _agreed(file, unique, columns, options.group_by)
            clips.append(LabelledClip(file, checks[kind](file, unique), fields))
        except TaskError as error:
            faults.append(str(error))
    if faults:
        raise TaskError(
            f"{count(len(faults), 'file is', 'files are')} labelled wrongly: {some(faults, '; ')}."
        )
    said = [*notes]
    if repeated:
        said.append(f"{count(repeated, 'row says', 'rows say')} the same as others.")
    types = _prediction_type(kind, clips, options, said)
    vocabulary = vocabulary_of({label for clip in clips for label in clip.labels})
    if kind != "localisation":
        check_vocabulary(vocabulary)
    return LabelledRecordings(source, kind, types, tuple(clips), vocabulary, columns, tuple(said))


def _agreed(file: str, rows: Sequence[Row], columns: Sequence[str], group_by: str) -> Row:
    """Return the fields that all rows of a file share."""
    for column in columns:
        values = sorted({row[column] for row in rows})
        if len(values) > 1 and column in (*SPLIT_COLUMNS, group_by):
            raise TaskError(f"{file} has several values of {column}: {', '.join(values)}")
        if values == [""] and column in (*SPLIT_COLUMNS, group_by):
            raise TaskError(f"{file} has no {column}")
    return {column: rows[0][column] for column in columns}


def _scene(file: str, rows: Sequence[Row]) -> list[str]:
    if not all(row["label"] for row in rows):
        raise TaskError(f"{file} has an empty label")
    return list(dict.fromkeys(row["label"] for row in rows))


def _events(file: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the events of a file in milliseconds, in the order of their onsets."""
    events = []
    for row in rows:
        cells = [row[name] for name in ("label", *TIMES)]
        if not any(cells):
            continue
        if not all(cells):
            raise TaskError(f"{file} has an event without {'label' if cells[0] == '' else 'times'}")
        onset, offset = (_number(file, name, row[name]) for name in TIMES)
        if not 0 <= onset <= offset:
            raise TaskError(
                f"{file} has an event of {cells[0]} from {onset:g} to {offset:g} s; an onset is 0 "
                "or more, and no offset is before it"
            )
        events.append(
            {"label": cells[0], "start": round(1000 * onset, 3), "end": round(1000 * offset, 3)}
        )
    return sorted(events, key=lambda event: (event["start"], event["end"], event["label"]))


def _direction(file: str, rows: Sequence[Row]) -> list[float]:
    """Return the unit vector to a file's source: x front, y left, z up."""
    if len(rows) > 1:
        raise TaskError(f"{file} has {len(rows)} directions; a clip has one source")
    if "azimuth" in rows[0]:
        azimuth, elevation = (_number(file, name, rows[0][name]) for name in ANGLES)
        if not (-360 <= azimuth <= 360 and -90 <= elevation <= 90):
            raise TaskError(
                f"{file} has azimuth {azimuth:g} and elevation {elevation:g}; they are degrees, "
                "-360 to 360 (counter-clockwise from the front) and -90 to 90"
            )
        a, e = math.radians(azimuth), math.radians(elevation)
        return [math.cos(a) * math.cos(e), math.sin(a) * math.cos(e), math.sin(e)]
    vector = [_number(file, name, rows[0][name]) for name in AXES]
    length = math.hypot(*vector)
    if length == 0:
        raise TaskError(f"{file} has the direction 0, 0, 0, which points nowhere")
    return [coordinate / length for coordinate in vector]


def _number(file: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TaskError(f"{file} has the {name} {text!r}; it must be a number")
    return value


def _prediction_type(
    kind: str, clips: Sequence[LabelledClip], options: LabelOptions, notes: list[str]
) -> str:
    """Return "multiclass" or "multilabel", and note where a few clips made the difference."""
    if kind != "scene":
        if options.prediction_type == "multiclass":
            raise OptionError(
                "Events and directions are multilabel tasks; leave out --prediction-type."
            )
        return "multilabel"
    several = [clip for clip in clips if len(clip.labels) > 1]
    if options.prediction_type == "multiclass" and several:
        conflicts = [f"{clip.file} ({', '.join(clip.labels)})" for clip in several]
        raise TaskError(
            f"{len(several)} files have conflicting labels: {some(conflicts)}. In a multiclass "
            "task each file has exactly one; correct them, or let the task be multilabel."
        )
    if several:
        notes.append(
            f"{len(several)} of {len(clips)} files have several labels, such as "
            f"{several[0].file} ({', '.join(several[0].labels)}): the task is multilabel. If they "
            "should have one, --prediction-type multiclass lists them."
        )
    return options.prediction_type or ("multilabel" if several else "multiclass")


def labels_of(annotation: Sequence) -> tuple[str, ...]:
    """Return the labels of a clip's annotation, each once; none of a direction."""
    names = [each["label"] if isinstance(each, dict) else each for each in annotation]
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))


def vocabulary_of(labels: Iterable[str]) -> tuple[str, ...]:
    """Return labels in order: rising where all are whole numbers, else sorted as text."""
    known = sorted(labels)
    if all(re.fullmatch(r"-?[0-9]+", label) for label in known):
        known.sort(key=lambda label: (int(label), label))
    return tuple(known)


def check_vocabulary(labels: Sequence[str], where: str = "") -> None:
    """Raise a TaskError for fewer than two classes.

    Its message puts ``where`` after "All labels".
    """
    if len(labels) < 2:
        raise TaskError(
            f"All labels{where} are the same ({', '.join(labels) or 'there is none'}); a task "
            "needs at least two classes."
        )
