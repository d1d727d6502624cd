"""hear-eval's checker: gram_hear passes, and each way to break the API is found and explained."""

from pathlib import Path

import pytest

from gram_hear.evaluation import check
from gram_hear.evaluation.check import Finding, check_module

MODULES = Path(__file__).parent / "data" / "hear_modules"


@pytest.fixture(autouse=True)
def modules_are_found(monkeypatch):
    monkeypatch.syspath_prepend(MODULES)


def texts(findings, level):
    return [finding.text for finding in findings if finding.level == level]


@pytest.mark.slow
def test_gram_hear_passes(recwarn):
    findings = check_module("gram_hear", "gram-tiny-untrained")
    assert texts(findings, "error") == []
    assert ["80 ms apart" in text or "last 75 ms" in text for text in texts(findings, "warning")]
    assert any("2 and 4 channels" in text for text in texts(findings, "ok"))


@pytest.mark.parametrize("name", ["faulty", "logmel"])
def test_good_modules_pass(name):
    findings = check_module(name)
    assert texts(findings, "error") == []
    assert all(isinstance(finding, Finding) for finding in findings)
    for words in (
        "16000 Hz",
        "a path",
        "80 for 4 s, one each 50 ms",
        "one embedding for each of 4",
        "same embeddings again",
        "among 16 as alone",
        "Silence",
        "0.1 s can",
        "64 s do not drift",
        "2 and 4 channels, channels last, as from the original kit, is taken",
    ):
        assert sum(words in text for text in texts(findings, "ok")) == 1, words


FAULTS = {
    "load": ("error", "failed: ValueError: the weights are of 1997"),
    "rate": ("error", "sample_rate = 16000.0 (float)"),
    "strange rate": ("error", "sample_rate is 8000 Hz; the API allows 16000, 22050, 32000"),
    "no size": ("error", "no attribute scene_embedding_size"),
    "plain": ("warning", "not a torch.nn.Module"),
    "multichannel": ("warning", "multichannel is 'channels_last'"),
    "raise": ("error", "KeyError: 'conv1.weight'"),
    "NaN": ("error", "NaN or infinite values for clip 1"),
    "double": ("error", "torch.float64 embeddings; they must be float32"),
    "integer": ("error", "torch.int64"),
    "n": ("error", "2 clips were given"),
    "d": ("error", "scene_embedding_size is 4"),
    "no pair": ("error", "two tensors"),
    "times shape": ("error", "one for each embedding"),
    "decreasing": ("error", "do not increase"),
    "library": ("error", "LibraryError: the codec is unknown"),
    "exit": ("error", "it called sys.exit(0)"),
    "seconds": ("error", "look like seconds"),
    "negative": ("error", "first timestamp of -25 ms"),
    "differing": ("error", "other timestamps for clip 1"),
    "past the end": ("error", "past its end"),
    "drift": ("warning", "The timestamps drift, by -9"),  # -94 ms, rounded
    "drift past the end": ("error", "ms in one of 64000 ms"),
    "long": ("warning", "A clip of 64 s cannot be embedded over time"),
    "irregular": ("error", "must be regular"),
    "wide": ("warning", "The timestamps are 400 ms apart"),
    "stops early": ("error", "events in the last"),
    "one": ("warning", "one timestamp"),
    "dropout": ("error", "other embeddings the second time"),
    "batch": ("error", "among 16 than alone"),
    "short": ("warning", "0.1 s cannot be embedded"),
}


@pytest.mark.filterwarnings("ignore:.*float64 embeddings", "ignore:.*look like seconds")
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault):
    level, words = FAULTS[fault]
    findings = check_module("faulty", options={"fault": fault})
    assert [text for text in texts(findings, level) if words in text], findings
    if level == "warning":
        assert texts(findings, "error") == []


def test_every_fault_of_an_api_function_is_found_on_its_own():
    """A module that fails in one function is still told about the other."""
    findings = check_module("faulty", options={"fault": "decreasing"})
    assert any("one embedding for each of 4" in text for text in texts(findings, "ok"))


def test_a_long_clip_is_not_tried_where_it_takes_too_long(monkeypatch):
    monkeypatch.setattr(check, "LONGEST_WAIT", 0.0)
    findings = check_module("faulty", options={"fault": "drift"})
    assert any("drift over 64 s was not tried" in text for text in texts(findings, "ok"))
    assert not any("The timestamps drift" in text for text in texts(findings, "warning"))


def test_memory(monkeypatch):
    findings = check_module("faulty", options={"largest": 1, "fault": "memory"})
    assert any("ran out of memory" in text for text in texts(findings, "error"))


def test_channels_first_are_tried():
    findings = check_module("faulty", options={"fault": "channels"})
    taken = "2 and 4 channels, channels first, is taken"
    assert any(taken in text for text in texts(findings, "ok"))


@pytest.mark.parametrize("fault", ["mono", "mono, channels first", "sizes of channels"])
def test_a_module_without_several_channels_is_warned_of_tasks_in_rooms(fault):
    findings = check_module("faulty", options={"fault": fault})
    assert texts(findings, "error") == []
    (warning,) = texts(findings, "warning")
    first = fault == "mono, channels first"
    for words in (
        "2 and 4 channels is not taken: the module cannot be scored on tasks in rooms",
        "two channels (binaural) or of four channels",
        f"come as ({'clips, channels, samples' if first else 'clips, samples, channels'})",
        f"audio.mean(dim={1 if first else 2})",
        "returned embeddings of shape" if fault == "sizes of channels" else "one channel only",
    ):
        assert words in warning
    assert ('"channels_first" to get (clips, channels, samples)' in warning) != first
    assert not any("of 2 and 4 channels, " in text for text in texts(findings, "ok"))


def test_a_load_model_that_needs_a_path(tmp_path, monkeypatch):
    source = (MODULES / "faulty.py").read_text()
    (tmp_path / "needy.py").write_text(
        source.replace('load_model(model_file_path="",', "load_model(model_file_path,")
    )
    monkeypatch.syspath_prepend(tmp_path)
    findings = check_module("needy", "weights.pt")
    assert any("needy.load_model() is not possible" in text for text in texts(findings, "error"))


def test_no_module():
    (finding,) = check_module("no_such_module")
    assert finding.level == "error"
    assert "install it" in finding.text
