"""HEAR tasks for tests: small folders in the kit's layout."""

import json

import soundfile

SPLITS = ("train", "valid", "test")
METADATA = {
    "task_name": "beeps",
    "embedding_type": "scene",
    "prediction_type": "multiclass",
    "sample_duration": None,
    "split_mode": "trainvaltest",
    "evaluation": ["top1_acc"],
}


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
