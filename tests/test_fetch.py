"""hear-eval fetch, against a server of this machine that does what goes wrong on the way."""

import errno
import gzip
import hashlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import hear_tasks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gram_hear.commands.hear_eval.app import app
from gram_hear.errors import GramError, OptionError, TaskError
from gram_hear.evaluation.fetch import record, site, unpacking
from gram_hear.evaluation.fetch.download import download, take_turns
from gram_hear.evaluation.fetch.record import RECORD, STORE, choose, read_record
from gram_hear.jobs.locks import LOCK, try_lock
from gram_hear.tasks import find_tasks, read_task

ESC, PITCH = "esc50-v2.0.0-full", "nsynth_pitch-v2.2.3-5h"
METADATA = hear_tasks.METADATA | {"splits": ["train", "valid", "test"]}


def task_files(seed=0):
    """The files of a task: path in it -> content; the audio is noise, which does not compress."""
    noise = np.random.default_rng(seed)
    files = {
        "task_metadata.json": json.dumps(METADATA).encode(),
        "labelvocabulary.csv": b"idx,label\n0,dog\n",
    }
    for split in METADATA["splits"]:
        files[f"{split}.json"] = json.dumps({"a.wav": ["dog"]}).encode()
        files[f"48000/{split}/a.wav"] = noise.bytes(60_000)
    return files


def archive_of(members, mode="w:gz"):
    """A tar of (name or TarInfo, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def task_archive(task=ESC, folder="hear-2021.0.6/tasks", seed=0, mode="w:gz"):
    files = task_files(seed)
    return archive_of([(f"{folder}/{task}/{name}", text) for name, text in files.items()], mode)


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


class Zenodo:
    """A records API and its files; each request of a file meets the next of ``faults``."""

    def __init__(self):
        self.files = {}  # name -> content
        self.checksums = {}  # name -> checksum, where it is not the content's
        self.faults = []
        self.record_faults = []
        self.asked = []  # (first byte, bytes sent) of each request of a file
        self.hold = threading.Event()  # ends a connection that was stopped midway
        self.headers = {}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(handler):
                self.answer(handler)

            def log_message(*_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self):
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, request):
        request.close_connection = True
        if match := re.fullmatch(r"/api/records/(\d+)/files/([^/]+)/content", request.path):
            self.send_file(request, self.files[match[2]], self.next(self.faults))
        elif request.path == f"/api/records/{RECORD}":
            fault = self.next(self.record_faults)
            body = json.dumps(self.record()).encode()
            self.send(request, fault or 200, body if fault is None else b"")
        elif request.path == "/api/records/1":  # all versions: the newest one
            request.send_response(302)
            request.send_header("Location", f"/api/records/{RECORD}")
            request.send_header("Content-Length", "0")
            request.end_headers()
        else:
            self.send(request, 404, b"{}")

    @staticmethod
    def next(faults):
        return faults.pop(0) if faults else None

    def record(self):
        return {
            "id": int(RECORD),
            "metadata": {"title": "HEAR 2021", "version": "2021.0.6"},
            "files": [
                {
                    "key": name,
                    "size": len(content),
                    "checksum": self.checksums.get(name)
                    or f"md5:{hashlib.md5(content).hexdigest()}",
                    # The addresses of the original, as a mirror repeats them.
                    "links": {
                        "self": f"https://zenodo.org/api/records/{RECORD}/files/{name}/content"
                    },
                }
                for name, content in self.files.items()
            ],
        }

    def send(self, request, status, body):
        request.send_response(status)
        for name, value in self.headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def send_file(self, request, content, fault):
        if isinstance(fault, int):
            self.send(request, fault, b"")
            return
        if fault == "page":
            self.send(request, 200, b"<html>Please log in</html>")
            return
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        first = int(asked[1]) if asked and fault != "no ranges" else 0
        request.send_response(206 if asked and fault != "no ranges" else 200)
        if asked and fault != "no ranges":
            shown = first + 7 if fault == "elsewhere" else first
            span = f"bytes {shown}-{len(content) - 1}/{len(content)}"
            request.send_header("Content-Range", span)
        request.send_header("Content-Length", str(len(content) - first))
        request.end_headers()
        sent = content[first:]
        kind, _, count = (fault or "").partition(" after ")
        if kind in ("cut", "stop"):
            sent = sent[: int(count)]
        if fault == "wrong bytes":
            sent = bytes(len(sent))
        self.asked.append((int(asked[1]) if asked else 0, len(sent)))
        request.wfile.write(sent)
        if kind == "stop":
            request.wfile.flush()
            self.hold.wait(60)


@pytest.fixture
def zenodo(monkeypatch):
    server = Zenodo()
    server.files = {
        "hear2021-esc50-v2.0.0-full-48000.tar.gz": task_archive(),
        f"hear2021-{PITCH}-48000.tar.gz": task_archive(PITCH, "tasks", 1),
        "hear2021-nsynth_pitch-v2.2.3-50h-48000.tar.gz": b"large",
        "hear2021-tfds_gtzan-1.0.0-full-48000.tar.gz": b"gtzan",
        "README.md": b"what this is",
    }
    monkeypatch.setenv("GRAM_HEAR_ZENODO", f"{server.address}/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(site, "FIRST_PAUSE", 0.001)
    yield server
    server.stop()


@pytest.fixture
def esc(zenodo):
    """The content of one archive."""
    return zenodo.files["hear2021-esc50-v2.0.0-full-48000.tar.gz"]


def run(*arguments):
    """Run hear-eval fetch here; return the exit code, what it printed, and its messages."""
    result = CliRunner().invoke(app, ["fetch", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, (GramError, SystemExit)):
        raise result.exception
    error = result.exception if isinstance(result.exception, GramError) else None
    messages = re.sub(r"\s+", " ", f"{result.stderr}{error or ''}")
    return (1 if error else result.exit_code), result.stdout, messages


def assert_whole(folder, seed=0):
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert found == task_files(seed)


# --- what there is --------------------------------------------------------------------------


def test_without_names_it_lists_sizes_and_fetches_nothing(zenodo, tmp_path, esc):
    code, printed, _ = run("-o", tmp_path / "tasks")
    total = sum(len(content) for name, content in zenodo.files.items() if name != "README.md")
    assert code == 0
    assert "HEAR 2021 2021.0.6" in printed
    assert ESC in printed
    assert "README" not in printed
    assert f"{len(esc) / 1000:.1f} kB" in printed
    assert f"4 archives, {total / 1000:.1f} kB" in printed
    assert not zenodo.asked
    assert not (tmp_path / "tasks").exists()


def test_the_list_as_json_tells_what_is_here(zenodo, tmp_path, esc):
    tasks = tmp_path / "tasks"
    assert run("esc50", "-o", tasks)[0] == 0
    (tasks / PITCH).mkdir()
    zenodo.faults = ["cut after 3", 404]
    run("gtzan", "-o", tasks)
    code, printed, _ = run("--list", "--json", "-o", tasks)
    listed = json.loads(printed)
    assert code == 0
    assert listed["record"] == RECORD
    states = {each["task"]: each["state"] for each in listed["archives"]}
    assert states == {
        ESC: "there",
        PITCH: "in the way",
        "nsynth_pitch-v2.2.3-50h": "",
        "tfds_gtzan-1.0.0-full": "60 % fetched",
    }
    assert {each["rate"] for each in listed["archives"]} == {48000}
    only = json.loads(run("esc50", "--list", "--json", "-o", tasks)[1])
    assert only["bytes"] == len(esc)


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["esc5"], "Did you mean 'esc50'?"),
        (["nsynth_pitch"], "nsynth_pitch-v2.2.3-50h, nsynth_pitch-v2.2.3-5h; give one"),
        (["esc50", "--rate", "16000"], "only at 48000. Fetch that"),
        (["esc50", "--record", "five"], "must be the number"),
        (["esc50", "--record", "7"], "There is no record 7 at 127.0.0.1"),
    ],
)
def test_what_is_not_there_is_an_error_that_helps(zenodo, tmp_path, names, error):
    code, _, messages = run(*names, "-o", tmp_path / "tasks")
    assert code == 1
    assert error in messages
    assert not (tmp_path / "tasks").exists()


@pytest.mark.parametrize(
    ("file", "task", "rate"),
    [
        ("hear2021-esc50-v2.0.0-full-48000.tar.gz", ESC, 48000),
        (
            "hear2021-dcase2016_task2-hear2021-full-48000.tar.gz",
            "dcase2016_task2-hear2021-full",
            48000,
        ),
        ("hear2021-tfds_crema_d-1.0.0-full-48000.tar.gz", "tfds_crema_d-1.0.0-full", 48000),
        ("hear-2021.0.6-speech_commands-v0.0.2-5h-16000.tar", "speech_commands-v0.0.2-5h", 16000),
        (
            "hear-LATEST-speech_commands-v0.0.2-small-44100.tgz",
            "speech_commands-v0.0.2-small",
            44100,
        ),
        ("esc50-v2.0.0-full.tar.gz", ESC, None),
    ],
)
def test_names_of_archives(file, task, rate):
    match = record.NAME.fullmatch(file)
    assert (match["task"], match["rate"] and int(match["rate"])) == (task, rate)


@given(st.text(alphabet="abz09/\\.-_\0 \n", max_size=30))
def test_no_name_of_an_archive_leaves_the_folder(text):
    match = record.NAME.fullmatch(f"{text}-48000.tar.gz")
    if match is not None:
        assert not set(match["task"]) & set("/\\\0\n")
        assert not match["task"].startswith(".")


def test_a_record_of_all_versions_and_one_of_another_form(zenodo, monkeypatch):
    assert read_record("1").number == "1"
    entries = {each["key"]: each for each in zenodo.record()["files"]}
    monkeypatch.setattr(zenodo, "record", lambda: {"files": {"entries": entries}})
    assert len(read_record().archives) == 4


def record_with_link(address):
    file = {"key": "a-48000.tar", "size": 1, "checksum": f"md5:{'0' * 32}"}
    return {"files": [file | {"links": {"self": address}}]}


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ([], "is not understood"),
        ({"files": [{"key": "a-48000.tar"}]}, "is not understood"),
        ({"files": [{"key": "a-48000.tar", "size": 1, "checksum": "md5:12"}]}, "md5:12"),
        ({"files": [{"key": "a.md", "size": 1, "checksum": "md5:12"}]}, "holds no archive"),
        ({"files": [{"key": "x" * 10**6 + ".tar", "size": 1}]}, "holds no archive"),
        ({"files": [], "metadata": {"title": "a\nb\x1b[2J" * 100}}, r"\(ab\[2Jab"),
        (record_with_link("http://localhost:99999/a"), "localhost:99999"),
        (record_with_link("file:///etc/passwd"), "file:///etc/passwd"),
    ],
)
def test_a_record_that_is_none(zenodo, monkeypatch, record, error):
    monkeypatch.setattr(zenodo, "record", lambda: record)
    with pytest.raises(TaskError, match=error):
        read_record()


@pytest.mark.parametrize("body", [b'{"files": ' + b"[" * 5000, b'{"size": ' + b"9" * 5000 + b"}"])
def test_a_record_that_is_no_json_to_be_read(zenodo, monkeypatch, body):
    monkeypatch.setattr(record, "open_url", lambda url: io.BytesIO(body))
    with pytest.raises(TaskError, match=f"says of record {RECORD} is"):
        read_record()


def test_an_address_that_is_none(monkeypatch):
    monkeypatch.setenv("GRAM_HEAR_ZENODO", "file:///tmp")
    with pytest.raises(OptionError, match="GRAM_HEAR_ZENODO"):
        read_record()


# --- fetching -------------------------------------------------------------------------------


def test_fetched_unpacked_and_not_fetched_again(zenodo, tmp_path, esc):
    tasks = tmp_path / "new" / "tasks"
    code, printed, messages = run(f"esc50,{PITCH}", "-o", tasks)
    assert code == 0, messages
    assert printed.split() == [str(tasks / ESC), str(tasks / PITCH)]
    assert "2 to fetch: " in messages
    assert_whole(tasks / ESC)
    assert_whole(tasks / PITCH, seed=1)
    assert [path.name for path in find_tasks(tasks)] == [ESC, PITCH]
    assert read_task(tasks / ESC).rates() == [48000]
    assert sorted(path.name for path in tasks.iterdir()) == [ESC, PITCH]
    assert len(zenodo.asked) == 2

    code, printed, messages = run("esc50", "-o", tasks)
    assert (code, printed.strip()) == (0, str(tasks / ESC))
    assert "is there already" in messages
    assert len(zenodo.asked) == 2


def test_a_connection_that_is_cut_goes_on_where_it_was(zenodo, tmp_path, esc):
    zenodo.faults = ["cut after 1000", "cut after 0", "cut after 50000", None]
    code, _, messages = run("esc50", "-o", tmp_path)
    assert code == 0
    assert "the connection was cut; trying again" in messages
    assert zenodo.asked == [(0, 1000), (1000, 0), (1000, 50000), (51000, len(esc) - 51000)]
    assert_whole(tmp_path / ESC)


def test_a_site_without_ranges_loses_nothing_of_what_came(zenodo, tmp_path, esc):
    zenodo.faults = ["cut after 1000", "no ranges"]
    code, _, messages = run("esc50", "-o", tmp_path)
    assert code == 0
    assert "sends it from its beginning" in messages
    assert_whole(tmp_path / ESC)


def test_refusals_that_pass(zenodo, tmp_path):
    zenodo.headers = {"Retry-After": "0"}
    zenodo.record_faults = [500, 429]
    zenodo.faults = [429, 503, 500]
    code, _, messages = run("esc50", "-o", tmp_path)
    assert code == 0
    assert "429 Too Many Requests; trying again in 0 s" in messages
    assert_whole(tmp_path / ESC)


@pytest.mark.parametrize(
    ("faults", "headers", "error"),
    [
        ([404], {}, "There is no hear2021-esc50"),
        ([403], {}, "was refused by 127.0.0.1"),
        ([500] * 5, {}, "500 Internal Server Error"),
        (["cut after 0"] * 5, {}, "the connection was cut"),
        ([429], {"Retry-After": "3600"}, "asks to wait for 3600 s"),
        (["page"], {}, "has 26 bytes"),
    ],
)
def test_refusals_that_stay_fail_and_keep_what_came(zenodo, tmp_path, esc, faults, headers, error):
    zenodo.faults = ["cut after 1000", 404]
    assert run("esc50", "-o", tmp_path)[0] == 1
    zenodo.faults, zenodo.headers = list(faults), headers
    code, printed, messages = run("esc50", "-o", tmp_path)
    assert (code, printed) == (1, "")
    assert error in messages
    assert "1 failed: esc50" in messages
    assert not (tmp_path / ESC).exists()
    zenodo.asked.clear()
    assert run("esc50", "-o", tmp_path)[0] == 0
    assert zenodo.asked == [(1000, len(esc) - 1000)]


def test_a_range_that_was_not_asked_for(zenodo, tmp_path):
    zenodo.faults = ["cut after 1000", "elsewhere"]
    code, _, messages = run("esc50", "-o", tmp_path)
    assert code == 1
    assert "asked for the bytes from 1000" in messages


def test_wrong_bytes_are_deleted_and_said(zenodo, tmp_path):
    zenodo.faults = ["cut after 1000", "wrong bytes"]
    code, _, messages = run("esc50", PITCH, "-o", tmp_path)
    assert code == 1
    assert "its md5 is" in messages
    assert "It was deleted" in messages
    assert not (tmp_path / ESC).exists()
    assert (tmp_path / PITCH).is_dir()  # the others are fetched nevertheless
    assert not (tmp_path / STORE).exists()
    assert run("esc50", "-o", tmp_path)[0] == 0
    assert_whole(tmp_path / ESC)


def test_a_part_of_another_content_is_not_gone_on_with(zenodo, tmp_path):
    zenodo.faults = ["cut after 1000", 404]
    run("esc50", "-o", tmp_path)
    zenodo.files["hear2021-esc50-v2.0.0-full-48000.tar.gz"] = task_archive(seed=2)
    zenodo.asked.clear()
    assert run("esc50", "-o", tmp_path)[0] == 0
    assert zenodo.asked[0][0] == 0
    assert_whole(tmp_path / ESC, seed=2)


def test_no_site(zenodo, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("GRAM_HEAR_ZENODO", f"http://127.0.0.1:{port}")
    code, _, messages = run("esc50", "-o", tmp_path)
    assert code == 1
    assert f"record {RECORD} could not be fetched" in messages
    assert "refused). Run the same command again." in messages


def test_too_little_space_is_said_before_anything_is_fetched(zenodo, tmp_path, monkeypatch, esc):
    usage = type("usage", (), {"free": 2 * len(esc) - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    code, _, messages = run("esc50", "-o", tmp_path)
    assert code == 1
    assert "free, but at least" in messages
    assert not zenodo.asked
    usage.free += 1
    assert run("esc50", "-o", tmp_path)[0] == 0


@pytest.mark.parametrize("made", [(), ("task_metadata.json",)])
def test_what_stands_in_the_way_is_left_alone(zenodo, tmp_path, made):
    (tmp_path / ESC).mkdir()
    for name in made:
        (tmp_path / ESC / name).write_text("{}")
    code, _, messages = run("esc50", PITCH, "-o", tmp_path)
    assert code == 1
    assert "without audio at 48000" in messages if made else "is no HEAR task" in messages
    assert sorted(os.listdir(tmp_path / ESC)) == list(made)
    assert (tmp_path / PITCH).is_dir()


# --- killed ---------------------------------------------------------------------------------


def test_a_killed_fetch_goes_on_with_nothing_repeated_or_lost(zenodo, tmp_path, esc):
    zenodo.faults = ["stop after 70000"]
    command = [sys.executable, "-m", "gram_hear.evaluation", "fetch", "esc50", "-o", str(tmp_path)]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        part = next(tmp_path.glob(f"{STORE}/*.part"), None)
        if part is not None and part.stat().st_size == 70000:
            break
        time.sleep(0.01)
    else:
        pytest.fail("it did not come so far")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert part.read_bytes() == esc[:70000]
    code, printed, messages = run("esc50", "-o", tmp_path)
    assert (code, printed.strip()) == (0, str(tmp_path / ESC)), messages
    assert zenodo.asked == [(0, 70000), (70000, len(esc) - 70000)]
    assert_whole(tmp_path / ESC)
    assert sorted(os.listdir(tmp_path)) == [ESC]


def test_a_killed_unpacking_is_done_anew_without_fetching(zenodo, tmp_path):
    archive = choose(read_record().archives, ["esc50"], 48000)[0]
    for each in take_turns([archive], tmp_path):
        download(each, tmp_path)
    stored = archive.stored(tmp_path)
    half = stored.with_name(f"{stored.name}.unpacking")
    (half / "hear-2021.0.6").mkdir(parents=True)
    (half / "hear-2021.0.6" / "task_metadata.json").write_text("{}")
    lock = {"pid": 1234, "host": socket.gethostname(), "run": "killed"}
    (tmp_path / STORE / LOCK).write_text(json.dumps(lock))  # of version 0.1.0
    archive.lock(tmp_path).touch()
    assert run("esc50", "-o", tmp_path)[0] == 0
    assert len(zenodo.asked) == 1
    assert_whole(tmp_path / ESC)
    assert sorted(os.listdir(tmp_path)) == [ESC]


def test_two_runs_take_different_archives(zenodo, tmp_path, esc):
    """What another run holds is fetched last: by then it is there, or to be gone on with."""
    held = choose(read_record().archives, ["esc50"], 48000)[0]
    zenodo.faults = ["cut after 1000", 404]
    assert run("esc50", "-o", tmp_path)[0] == 1
    zenodo.asked.clear()

    def hold_until_the_other_is_there():
        with try_lock(held.lock(tmp_path)) as is_mine:
            holding.set()
            while not (tmp_path / PITCH).exists():
                time.sleep(0.01)
            return is_mine

    holding = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(hold_until_the_other_is_there)
        holding.wait()
        code, printed, messages = run("esc50", PITCH, "-o", tmp_path)
    assert other.result()
    assert (code, len(printed.split())) == (0, 2)
    assert f"Another run fetches {ESC}; waiting." in messages
    assert zenodo.asked[-1] == (1000, len(esc) - 1000)
    assert_whole(tmp_path / ESC)


def test_what_another_run_fetched_meanwhile_is_left_alone(zenodo, tmp_path, monkeypatch):
    """It fetches the second archive while this one is at the first."""

    def after_the_other_run(archive, *rest):
        if archive.task == ESC:
            assert run(PITCH, "-o", tmp_path)[0] == 0
        download(archive, *rest)

    monkeypatch.setattr("gram_hear.evaluation.fetch.download.download", after_the_other_run)
    code, printed, messages = run("esc50", PITCH, "-o", tmp_path)
    assert (code, len(printed.split())) == (0, 2)
    assert f"{PITCH} was fetched by another run." in messages
    assert len(zenodo.asked) == 2


# --- unpacking ------------------------------------------------------------------------------


def inside(extra):
    """The archive of a task with one more member."""
    return archive_of(
        [(f"tasks/{ESC}/{name}", text) for name, text in task_files().items()] + [extra]
    )


def with_properties(**properties):
    """A member with properties of the POSIX format."""
    info = tarfile.TarInfo("tasks/x")
    info.pax_headers = properties
    return info, b"x"


def claiming(size, kind=tarfile.REGTYPE):
    """An archive whose one member says that it is so large; 50 MiB of zeros follow."""
    info = tarfile.TarInfo("tasks/x")
    info.size, info.type = size, kind
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(50 << 20), 1)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("folder", ["tasks", "hear-2021.0.6/tasks", "."])
def test_layouts_of_archives(zenodo, tmp_path, mode, folder):
    zenodo.files = {
        "hear2021-esc50-v2.0.0-full-48000.tar.gz": task_archive(folder=folder, mode=mode)
    }
    code, _, messages = run("all", "-o", tmp_path)
    assert code == 0, messages
    assert_whole(tmp_path / ESC)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("archive", "error"),
    [
        (lambda: inside(("../outside", b"x")), "leaves the folder"),
        (lambda: inside((f"tasks/{ESC}/48000/../../../../../outside", b"x")), "leaves the folder"),
        (lambda: inside(("/outside", b"x")), "leaves the folder"),
        (lambda: inside(link(f"tasks/{ESC}/link", "/etc/passwd")), "symbolic link"),
        (lambda: inside(link(f"tasks/{ESC}/link", "../../../outside", tarfile.LNKTYPE)), "outside"),
        (lambda: inside(link(f"tasks/{ESC}/pipe", "", tarfile.FIFOTYPE)), "special file"),
        (lambda: inside(("tasks/" + "d/" * 2000 + "x", b"x")), "'tasks/d/d/d"),
        (lambda: inside(("x" * 200_000, b"x")), "no path that a task can have"),
        (lambda: inside(with_properties(path="tasks/a\0b")), r"'tasks/a\x00b'"),
        (lambda: inside(with_properties(size="-512")), "its size of -512"),
        (lambda: inside(with_properties(mtime="inf")), "at its member 'tasks/x'"),
        (lambda: inside(with_properties(**{"GNU.sparse.map": "0,5"})), "sparse"),
        (lambda: claiming(1 << 40), "more than a task's archive"),
        (lambda: claiming(-1024), "the size -1024"),
        (lambda: claiming(1 << 33, tarfile.XHDTYPE), "the size 8589934592"),
        (lambda: claiming(1 << 29, tarfile.GNUTYPE_LONGNAME), "the size 536870912"),
        (lambda: inside(("tasks/other/task_metadata.json", b"{}")), "must hold one task"),
        (lambda: archive_of([("tasks/readme", b"x")]), "must hold one task"),
        (lambda: archive_of([(f"{ESC}/task_metadata.json", b"{}")]), "no audio at 48000 Hz"),
        (lambda: b"no archive at all", "cannot be unpacked"),
        (lambda: task_archive()[:-50_000], "cannot be unpacked"),
        (lambda: gzip.compress(b"no archive inside"), "cannot be unpacked"),
    ],
)
def test_archives_that_are_refused_leave_nothing(zenodo, tmp_path, archive, error):
    zenodo.files = {"hear2021-esc50-v2.0.0-full-48000.tar.gz": archive()}
    tasks = tmp_path / "below" / "tasks"
    code, _, messages = run("esc50", "-o", tasks)
    assert code == 1
    assert error in messages
    assert "Nothing of it was kept" in messages
    assert not os.listdir(tasks)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["below", "tasks"]


def test_more_members_than_a_task_has(zenodo, tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MOST_MEMBERS", 5)
    code, _, messages = run("esc50", "-o", tmp_path)
    assert code == 1
    assert "6 members" in messages
    assert not (tmp_path / ESC).exists()


def test_a_full_disk_keeps_the_archive(zenodo, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(unpacking.tarfile.TarFile, "extract", full)
        code, _, messages = run("esc50", "-o", tmp_path)
    assert code == 1
    assert "No space left on device. The archive is kept" in messages
    assert not (tmp_path / ESC).exists()
    assert run("esc50", "-o", tmp_path)[0] == 0
    assert len(zenodo.asked) == 1


@pytest.mark.parametrize(
    ("number", "kept", "words"),
    [
        (errno.EDQUOT, True, "kept: make room"),
        (errno.EACCES, True, "kept: see that its folder can be written"),
        (errno.ENAMETOOLONG, False, "Nothing of it was kept"),
        (errno.ENOTDIR, False, "Nothing of it was kept"),
    ],
)
def test_only_what_is_the_disks_fault_keeps_the_archive(
    zenodo, tmp_path, monkeypatch, number, kept, words
):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(unpacking.tarfile.TarFile, "extract", fail)
        code, _, messages = run("esc50", "-o", tmp_path)
    assert code == 1
    assert words in messages
    assert ("make room" in messages) == (number == errno.EDQUOT)
    run("esc50", "-o", tmp_path)
    assert len(zenodo.asked) == (1 if kept else 2)


@given(st.integers(0, 10**16))
def test_sizes_in_words(size):
    number, unit = record.in_words(size).split()
    scale = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert float(number) * scale == pytest.approx(size, abs=0.06 * scale)
    assert float(number) < 1000 or unit == "TB"
