"""How much faster events and classes are scored than by sed_eval and scikit-learn.

    pip install "gram-hear[benchmark]"     # with sed_eval, which brings scikit-learn
    python benchmarks/events.py

Events are the golden ones of tests/data: 12 files of 10 s, 6 classes. sed_eval is given lists of
events; we start from probabilities, with the target's own work done, as at every validation but the
first. Times are CPU time, the median of alternating runs. The scores of both are compared first.
"""

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure import cpu_seconds, parser_of

from gram_hear.evaluation.predict.event_metrics import EventScorer
from gram_hear.evaluation.predict.events import Timeline, target_events
from gram_hear.evaluation.predict.metrics import METRICS

NAMES = ("event_onset_200ms_fms", "segment_1s_er")  # what both score
GOLDEN = Path(__file__).parent.parent / "tests" / "data" / "golden" / "hear-eval"


def compare(what: str, theirs: Callable[[], object], ours: Callable[[], object], runs: int) -> None:
    """Print how long both take; ours runs fifty times as often, being short for the clock."""
    theirs(), ours()
    pairs = [(cpu_seconds(theirs, 1), cpu_seconds(ours, 50)) for _ in range(runs)]
    slow, fast = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratios = [a / b for a, b in pairs]
    print(
        f"{what:<42}{1000 * slow:10.2f}{1000 * fast:10.3f}{slow / fast:8.0f}"
        f"  ({min(ratios):.0f} to {max(ratios):.0f})",
        flush=True,
    )


def sed_eval_lists(listed: dict[str, list[dict[str, Any]]]) -> dict[str, object]:
    import dcase_util  # type: ignore

    return {
        name: dcase_util.containers.MetaDataContainer(
            [
                {
                    "event_label": event["label"],
                    "onset": event["start"] / 1000,
                    "offset": event["end"] / 1000,
                    "file": name,
                }
                for event in found
            ]
        )
        for name, found in listed.items()
    }


def sed_eval_scores(
    target: dict[str, object], predicted: dict[str, object], labels: list[str]
) -> list[float]:
    from sed_eval.sound_event import EventBasedMetrics, SegmentBasedMetrics  # type: ignore

    onsets = EventBasedMetrics(labels, evaluate_onset=True, evaluate_offset=False, t_collar=0.2)
    segments = SegmentBasedMetrics(labels, time_resolution=1.0)
    for name, reference in target.items():
        for metrics in (onsets, segments):
            metrics.evaluate(reference_event_list=reference, estimated_event_list=predicted[name])
    return [
        onsets.results_overall_metrics()["f_measure"]["f_measure"],
        segments.results_overall_metrics()["error_rate"]["error_rate"],
    ]


def measure_events(run: str, runs: int) -> None:
    recorded = json.loads((GOLDEN / "predictions.json").read_text(encoding="utf-8"))
    arrays = np.load(GOLDEN / "predictions-esc10events.npz", allow_pickle=False)
    labels, files = recorded["labels"], recorded["files"]
    timeline = Timeline.of([files[i] for i in arrays["file_index"]], arrays["timestamp"])
    vocabulary = {label: index for index, label in enumerate(labels)}
    target = target_events(recorded["target_events"], timeline.files, vocabulary)
    chosen = recorded["esc10events"][run]["postprocessing"]
    choice = (chosen["median_filter_ms"], chosen["min_duration"])
    probabilities = arrays[run]
    scorer = EventScorer(target, timeline)
    (predicted,) = scorer.postprocessing.events(probabilities, [choice])
    lists = [sed_eval_lists(each.by_file(files, labels)) for each in (target, predicted)]

    def ours() -> dict[str, float]:
        return scorer.score(probabilities, [choice], NAMES)[0]

    def theirs() -> list[float]:
        return sed_eval_scores(lists[0], lists[1], labels)

    np.testing.assert_allclose([ours()[name] for name in NAMES], theirs(), rtol=1e-12)
    compare(f"{run}, events", theirs, ours, runs)


def measure_classes(runs: int) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score  # type: ignore

    random = np.random.default_rng(0)
    target = random.random((5000, 200)) < 0.02
    prediction = random.random((5000, 200), dtype=np.float32)
    for name, theirs in (("mAP", average_precision_score), ("aucroc", roc_auc_score)):
        curves = partial(theirs, target, prediction)
        ranks = partial(METRICS[name].compute, prediction, target)
        np.testing.assert_allclose(ranks(), curves(), rtol=1e-12)
        compare(f"{name}, 5,000 x 200", curves, ranks, runs)


def main() -> None:
    arguments = parser_of(__doc__, repeats=5).parse_args()
    print("                                       theirs, ms    ours, ms   ratio")
    for run in ("fast-s42", "faster-s43"):
        measure_events(run, arguments.repeats)
    measure_classes(arguments.repeats)
    print("Wanted: 20 for events, 5 for classes.")


if __name__ == "__main__":
    main()
