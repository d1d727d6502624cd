"""HEAR tasks for tests: small folders in the kit's layout."""

import json

import numpy as np
import soundfile

from gram_hear.tasks import read_task

SPLITS = ("train", "valid", "test")
METADATA = {
    "task_name": "beeps",
    "embedding_type": "scene",
    "prediction_type": "multiclass",
    "sample_duration": None,
    "split_mode": "trainvaltest",
    "evaluation": ["top1_acc"],
}
LABELS = ("low", "middle", "high")
QUICK = {  # choices for the shallow predictors that take little time
    "hidden_dim": [16],
    "hidden_layers": [0, 1],
    "lr": [0.03],
    "max_epochs": [30],
    "check_val_every_n_epoch": [2],
}
FOLDS = ("fold00", "fold01", "fold02", "fold03")


def write_task(folder, splits=2, labels=("low", "high"), sound=None, rate=16000, **metadata):
    """Write a task.

    Args:
        folder: where it is made.
        splits: split -> file -> what is annotated; or split -> how many files, which have the
            labels in turn; or that number for train, valid and test.
        labels: the vocabulary; None leaves it out.
        sound: from what is annotated to (samples,) or (samples, channels); None leaves audio out.
        rate: of the audio, Hz.
        **metadata: what the task has beside METADATA, or instead.

    Returns:
        The folder.
    """
    if isinstance(splits, int):
        splits = dict.fromkeys(SPLITS, splits)
    folder.mkdir(parents=True, exist_ok=True)
    for split, files in splits.items():
        if isinstance(files, int):
            files = {f"{split}{i}.wav": [labels[i % len(labels)]] for i in range(files)}
        (folder / f"{split}.json").write_text(json.dumps(files))
        if sound is not None:
            (folder / str(rate) / split).mkdir(parents=True)
            for file, annotation in files.items():
                soundfile.write(folder / str(rate) / split / file, sound(annotation), rate)
    if labels is not None:
        rows = "".join(f"{i},{label}\n" for i, label in enumerate(labels))
        (folder / "labelvocabulary.csv").write_text(f"idx,label\n{rows}")
    content = METADATA | {"splits": list(splits)} | metadata
    (folder / "task_metadata.json").write_text(json.dumps(content))
    return folder


def annotate(kind, latent):
    """Return what three numbers in the embedding stand for."""
    if kind == "localisation":
        return [float(each) for each in latent / np.linalg.norm(latent)]
    if kind == "multiclass":
        return [LABELS[int(latent.argmax())]]
    return [label for label, value in zip(LABELS, latent, strict=True) if value > 0]


def write_embeddings(
    folder, kind="multiclass", splits=("train", "valid", "test"), rows=60, noise=0.3, **metadata
):
    """Write the embeddings of a task that can be learned: three numbers with noise, twice."""
    random = np.random.default_rng(0)
    latent = {s: {f"{s}-{i}.wav": random.standard_normal(3) for i in range(rows)} for s in splits}
    content = {
        "prediction_type": "multiclass" if kind == "multiclass" else "multilabel",
        "sample_duration": 1.0,
        "split_mode": "presplit_kfold" if splits[0].startswith("fold") else "trainvaltest",
        "evaluation": {"multiclass": ["top1_acc"], "multilabel": ["mAP", "aucroc", "d_prime"]}.get(
            kind, ["MAE", "DOA", "DOE", "3d_source_local", "3d_source_local_x"]
        ),
        "evaluation_params": {"task_specific_param_grid": QUICK},
    }
    annotations = {
        split: {name: annotate(kind, each) for name, each in latent[split].items()}
        for split in splits
    }
    write_task(folder, annotations, LABELS, **(content | metadata))
    task = read_task(folder)
    for split in splits:
        table = np.array([latent[split][name] for name in task.row_files(split)])
        table = np.concatenate([table + noise * random.standard_normal(table.shape)] * 2, axis=1)
        table.astype(np.float32).tofile(folder / f"{split}.embeddings.npy")
        (folder / f"{split}.embedding-dimensions.json").write_text(json.dumps([rows, 6]))
    return folder
