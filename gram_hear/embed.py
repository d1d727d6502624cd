"""Sound files in, embeddings out: one ``.npz`` for each file, mirroring the input tree."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from gram_hear.audio.clips import check_clip
from gram_hear.audio.files import find_audio, read_audio
from gram_hear.errors import GramError, OptionError
from gram_hear.hear import HearModel
from gram_hear.writing import write_whole


@dataclass(frozen=True)
class Job:
    """One file to embed, and the ``.npz`` that its embeddings go to."""

    source: Path
    output: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job: ``error`` is None, or says why there is no output."""

    job: Job
    error: str | None


def plan_jobs(
    paths: Iterable[str | os.PathLike], output: str | os.PathLike, force: bool = False
) -> list[Job]:
    """Pair every sound file with its output, before anything is computed.

    ``a/b.wav`` in a given folder goes to ``OUTPUT/a/b.wav.npz``, and a given file ``x/c.flac`` to
    ``OUTPUT/c.flac.npz``: the suffix stays, so that ``b.wav`` and ``b.flac`` do not collide.

    Args:
        paths: files, and folders that are searched for sound files.
        output: the folder of the embeddings.
        force: replace outputs that are there.

    Raises:
        OptionError: where there is no file, where two files have one output, or where outputs
            are there already and ``force`` is not set.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise OptionError(f"The output {output} is a file; it must be a folder.")
    jobs = []
    for path in map(Path, paths):
        if path.is_dir():
            found = find_audio(path)
            jobs += [Job(each, _output(output, each.relative_to(path))) for each in found]
        else:
            jobs.append(Job(path, _output(output, Path(path.name))))
    if not jobs:
        raise OptionError("No sound file was found in what was given.")
    sources: dict[Path, Path] = {}
    for job in jobs:
        other = sources.setdefault(job.output, job.source)
        if other != job.source:
            raise OptionError(
                f"{other} and {job.source} would both be written to {job.output}. Give the folder "
                "that holds both, or embed them into different folders."
            )
    there = [job.output for job in jobs if job.output.exists()]
    if there and not force:
        raise OptionError(
            f"{len(there)} of {len(jobs)} outputs are there already, such as {there[0]}. Use "
            "--force (force=True) to replace them, or another output folder."
        )
    return list({job.output: job for job in jobs}.values())


def _output(folder: Path, relative: Path) -> Path:
    return folder / relative.with_name(relative.name + ".npz")


def embed_jobs(jobs: Sequence[Job], model: HearModel) -> Iterator[Outcome]:
    """Embed the files of the jobs one by one, and yield what became of each.

    A file that cannot be read or embedded is reported and does not stop the rest.
    """
    provenance = describe_model(model)
    for job in jobs:
        try:
            embed_file(job, model, provenance)
        except (GramError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            name, message = str(job.source), str(error) or type(error).__name__
            yield Outcome(job, message if name in message else f"{name}: {message}")
        else:
            yield Outcome(job, None)


def describe_model(model: HearModel) -> dict:
    """Return what makes embeddings reproducible: version, checkpoint and options, for JSON."""
    source = model.source
    return {
        "gram_hear": version("gram-hear"),
        "model": {
            "name": source.name,
            "layout": source.layout,
            "repository": source.repository,
            "revision": source.revision,
            "sha256": source.sha256(),
        },
        "options": dataclasses.asdict(model.options),
        "device": str(model.device),
        "hop_ms": model.hop_ms,
    }


def embed_file(job: Job, model: HearModel, provenance: dict) -> None:
    """Embed one file into its ``.npz``, whole or not at all.

    The file holds ``vectors`` (rows, d), ``timestamps`` (rows,) in milliseconds, ``scene`` (d,),
    all float32, and ``metadata``, a JSON string: ``provenance`` and the file's own facts.
    """
    recording = read_audio(job.source, model.sample_rate)
    clip = check_clip(torch.from_numpy(recording.audio), str(job.source))
    with torch.no_grad():
        vectors = model.embed([clip])[0].cpu()
    metadata = {
        **provenance,
        "file": job.source.name,
        "file_sample_rate": recording.file_rate,
        "channels": len(recording.audio),
        "duration_seconds": recording.duration,
    }

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(
                file,
                vectors=vectors.numpy(),
                timestamps=model.plan(clip.shape[-1]).timestamps,
                scene=vectors.mean(dim=0).numpy(),
                metadata=np.array(json.dumps(metadata)),
            )

    job.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(job.output, write)
