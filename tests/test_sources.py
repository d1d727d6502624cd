"""Clips from Parquet files, tars and URLs; the cache of shards; the order in which they come."""

import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.registry import known_implementations
from huggingface_hub import HfFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import encoded, write_tar

from gram_hear.audio import archives, shards, sources
from gram_hear.audio.parquet import read_footer
from gram_hear.audio.shards import ShardCache, ShardReader
from gram_hear.audio.sources import Shard, expand_braces, find_sources, hide_secrets
from gram_hear.errors import AudioError, OptionError, SceneError
from gram_hear.pretrain.clips import RecordedClips, open_clips

AUDIO = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
RATE = 32000


def sound(seed, samples=1600):
    noise = np.random.default_rng(seed).standard_normal(samples)
    return encoded((0.1 * noise).astype(np.float32))


def write_parquet(path, sounds, name="audio", paths=None, **columns):
    """Write a file as datasets writes it."""
    paths = paths or [f"{i}.flac" for i in range(len(sounds))]
    rows = [{"bytes": data, "path": p} for data, p in zip(sounds, paths, strict=True)]
    arrays = {name: pyarrow.array(rows, AUDIO), "label": pyarrow.array([0] * len(rows))}
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(arrays | columns), path, row_group_size=3)
    return path


def make_shards(folder):
    """Write four tars and four Parquet files of the same sounds, 4 to 7 each, with labels."""
    for k in range(4):
        sounds = [sound(10 * k + i) for i in range(4 + k)]
        beside = {f"{i}.json": b"{}" for i in range(len(sounds))}
        members = {f"{i}.flac": data for i, data in enumerate(sounds)}
        write_tar(folder / f"t-{k:03d}.tar", members | beside)
        write_parquet(folder / f"p-{k}.parquet", sounds)
    return folder


def all_clips(clips):
    return [clips.read(i, 900, RATE, [0, i]) for i in range(len(clips))]


def equal(first, second):
    assert len(first) == len(second)
    for mine, theirs in zip(all_clips(first), all_clips(second), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.fixture
def folder(tmp_path):
    return make_shards(tmp_path / "data")


@pytest.fixture
def cache(tmp_path):
    return ShardCache(tmp_path / "cache", 1.0)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    HfFileSystem.clear_instance_cache()  # which knows the token and the address of the Hub
    monkeypatch.setattr(sources, "PAUSES", (0.01, 0.01))


class Web:
    """A server of a folder, which sends parts of files where it is asked for them.

    ``fault`` is called with the request before it is answered, and answers itself where it returns
    True.
    """

    def __init__(self, folder):
        self.requests = []
        self.fault = lambda request: False
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                web.requests.append((self.command, self.path))
                if web.fault(self):
                    return
                path = folder / self.path.partition("?")[0].lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                first, last = (int(span[1]), int(span[2])) if span else (0, len(data) - 1)
                self.send_response(206 if span else 200)
                if span:
                    self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
                part = data[first : last + 1]
                self.send_header("Content-Length", str(len(part)))
                self.send_header("ETag", f'"{len(data)}"')
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(part)

            do_HEAD = do_GET

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def taken(self, name):
        """Count the downloads of a file: requests for its start."""
        return self.requests.count(("GET", f"/{name}"))


@pytest.fixture
def web(folder):
    server = Web(folder)
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def memory(folder):
    """The same shards in fsspec's memory."""
    system = fsspec.filesystem("memory")
    for path in folder.iterdir():
        system.pipe(f"/data/{path.name}", path.read_bytes())
    yield "memory://data"
    system.rm("/data", recursive=True)


# --- what paths stand for -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{x,y}-{1..2}", ["x-1", "x-2", "y-1", "y-2"]),
        ("{x}{", ["{x}{"]),
        ("{x}y,{z}", ["{x}y,{z}"]),
    ],
)
def test_braces_stand_for_names(text, names):
    assert expand_braces(text) == names


def test_braces_of_too_many_names_are_refused():
    for text in ("{0..999999999}", "{0..999}{0..999}"):
        with pytest.raises(OptionError, match="more than 100,000 names"):
            expand_braces(text)


def test_a_local_file_with_braces_in_its_name_is_itself(tmp_path):
    write_tar(tmp_path / "{1,2}.tar", {"a.flac": sound(0)})
    assert len(open_clips(tmp_path / "{1,2}.tar")) == 1


def test_patterns_of_local_files(folder):
    assert len(open_clips(folder / "t-{000..003}.tar")) == 22
    assert len(open_clips(folder / "t-00[12].tar")) == 11
    with pytest.raises(SceneError, match="No file or folder is called"):
        open_clips(folder / "x-*.tar")
    with pytest.raises(SceneError, match=r"There is no folder or file .*t-004"):
        open_clips(folder / "t-{000..004}.tar")


@pytest.mark.parametrize(
    "text",
    [
        "https://a.b/c.tar?X-Amz-Signature=SECRET&b=1 failed",
        "s3://SECRET:SECRET@host/c.tar",
        "Authorization: Bearer SECRET",
        "hf_SECRET is no token",
    ],
)
def test_secrets_are_hidden(text):
    assert "SECRET" not in hide_secrets(text)


def test_urls_that_cannot_be_read_here(monkeypatch):
    with pytest.raises(OptionError, match=r"fsspec knows no protocol 'httpx'.*Did you mean"):
        open_clips("httpx://host/a.tar")
    with pytest.raises(OptionError, match="neither is read") as caught:
        open_clips("https://user:SECRET@host/a.tar")
    assert "SECRET" not in str(caught.value)
    with pytest.raises(OptionError, match="neither is read"):
        open_clips("zip://a.tar::https://host/a.zip")
    monkeypatch.setitem(  # as it is where no package of that name is installed
        known_implementations,
        "absent",
        {"class": "absent_package.System", "err": "Install absent_package to read absent://"},
    )
    with pytest.raises(OptionError, match=r"needs a package .* Install absent_package"):
        open_clips("absent://bucket/a.tar")


# --- the same clips wherever they lie -------------------------------------------------------


def test_parquet_has_the_clips_of_a_tar(folder, cache):
    here = open_clips(folder / "t-*.tar")
    equal(here, open_clips(folder / "p-*.parquet", cache=cache))
    both = open_clips(folder, cache=cache)  # the tars, and then the shards
    assert len(both) == 44
    np.testing.assert_array_equal(both.read(30, 900, RATE, [7]), here.read(30 - 22, 900, RATE, [7]))


@pytest.mark.parametrize("pattern", ["t-{000..003}.tar", "p-{0..3}.parquet"])
def test_a_web_server_has_the_clips_of_local_files(folder, web, cache, pattern):
    equal(open_clips(folder / "t-*.tar"), open_clips(f"{web.url}/{pattern}", cache=cache))


@pytest.mark.parametrize("pattern", ["/t-*.tar", "/p-?.parquet*", "/t-00{1,1}.tar"])
def test_memory_has_the_clips_of_local_files(folder, memory, cache, pattern):
    here = [folder / "t-001.tar"] * 2 if "{" in pattern else folder / "t-*.tar"
    equal(open_clips(here), open_clips(memory + pattern, cache=cache))


def test_a_remote_folder_is_searched(folder, memory, cache):
    fsspec.filesystem("memory").pipe("/data/readme.txt", b"")
    with pytest.warns(UserWarning, match=r"\.txt 1\) left out"):
        clips = open_clips(memory, cache=cache)
    assert len(clips) == 44
    with pytest.raises(SceneError, match=r"no \.tar or \.parquet file"):
        open_clips(f"{memory}/readme.txt", cache=cache)


def test_clips_are_called_by_where_they_come_from(web, cache):
    clips = open_clips(f"{web.url}/t-{{000..001}}.tar?token=SECRET", cache=cache)
    assert clips.name(5) == f"{web.url}/t-001.tar?...: clip 1"


def test_the_hub_has_the_clips_of_local_files(folder, hub, cache):
    hub.repositories["owner/sounds"] = {
        f"data/{path.name}": path.read_bytes() for path in folder.iterdir()
    }
    url = "hf://datasets/owner/sounds/data"
    here = open_clips(folder / "t-*.tar")
    equal(here, open_clips(f"{url}/*.parquet", cache=cache))
    equal(here, open_clips(f"{url}/t-{{000..003}}.tar", cache=cache))
    assert len(open_clips(url, cache=cache)) == 44


def test_data_sets_of_the_hub_that_are_private(folder, hub, cache, monkeypatch):
    hub.repositories["owner/closed"] = {"a.tar": (folder / "t-000.tar").read_bytes()}
    hub.private.add("owner/closed")
    url = "hf://datasets/owner/closed/a.tar"
    with pytest.raises(SceneError, match=r"owner/closed/a\.tar cannot be read"):
        open_clips(url, cache=cache)
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    HfFileSystem.clear_instance_cache()
    assert len(open_clips(url, cache=cache)) == 4


# --- Parquet --------------------------------------------------------------------------------


def test_names_in_cells_are_never_paths(tmp_path, cache):
    names = ["../../a.flac", "/etc/passwd", "x" * 300 + ".wav", None, "\0\n.ogg"]
    path = write_parquet(tmp_path / "a.parquet", [sound(i) for i in range(5)], paths=names)
    clips = open_clips(path, cache=cache)
    assert len(all_clips(clips)) == 5
    (tar,) = cache.place.glob("*.tar")
    with tarfile.open(tar) as file:
        members = file.getnames()
    assert members[:2] == ["00000000_a.flac", "00000001_passwd.flac"]
    assert all(re.fullmatch(r"\d{8}(_[\w-]{1,60})?\.\w+", name) for name in members)


def test_the_column_of_sound_is_found_or_named(tmp_path, cache):
    images = pyarrow.array([{"bytes": b"", "path": "a.png"}] * 2, AUDIO)
    path = write_parquet(tmp_path / "a.parquet", [sound(0), sound(1)], image=images)
    with pytest.raises(SceneError, match=r"2 columns of bytes and path \(audio, image\)"):
        open_clips(path, cache=cache)
    named = ShardCache(cache.folder, 1.0, "audio")
    assert len(all_clips(open_clips(path, cache=named))) == 2
    with pytest.raises(SceneError, match="has no column 'sound'; it has audio, label, image"):
        open_clips(path, cache=ShardCache(cache.folder, 1.0, "sound"))
    with pytest.raises(SceneError, match=r"'label' of .* is int64"):
        open_clips(path, cache=ShardCache(cache.folder, 1.0, "label"))
    plain = pyarrow.table({"flac": pyarrow.array([sound(0)], pyarrow.binary())})
    pyarrow.parquet.write_table(plain, tmp_path / "b.parquet")
    with pytest.raises(SceneError, match=r"0 columns of bytes and path \(flac\)"):
        open_clips(tmp_path / "b.parquet", cache=cache)
    assert len(open_clips(tmp_path / "b.parquet", cache=ShardCache(cache.folder, 1, "flac"))) == 1


def test_columns_with_dots_or_of_one_name(tmp_path, cache, folder):
    sounds = [sound(i) for i in range(4)]
    names = pyarrow.array(["a", "b", "c", "d"])  # of a column that begins with the other's name
    dotted = write_parquet(tmp_path / "dots.parquet", sounds, name="my.audio")
    beside = write_parquet(tmp_path / "beside.parquet", sounds, **{"audio.name": names})
    for path in (dotted, beside):
        equal(open_clips(folder / "t-000.tar"), open_clips(path, cache=cache))
        with open(path, "rb") as file:
            assert read_footer(file, "", None).tar_bytes > sum(map(len, sounds))
    twice = pyarrow.Table.from_arrays([pyarrow.array(sounds)] * 2, names=["audio", "audio"])
    pyarrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(SceneError, match="2 columns 'audio'"):
        open_clips(tmp_path / "twice.parquet", cache=ShardCache(cache.folder, 1.0, "audio"))


def test_rows_with_a_path_alone_are_an_error(tmp_path, cache):
    path = write_parquet(tmp_path / "a.parquet", [sound(0), None, None])
    with pytest.raises(SceneError, match="2 rows of 3 hold no bytes in the column 'audio'"):
        open_clips(path, cache=cache)


def test_files_that_are_no_parquet(tmp_path, cache, folder):
    whole = (folder / "p-0.parquet").read_bytes()
    path = tmp_path / "a.parquet"
    for data in (b"", b"PAR1", whole[:-100], whole[: len(whole) // 2] + whole[-4:]):
        path.write_bytes(data)
        with pytest.raises(SceneError, match="cannot be read as Parquet"):
            open_clips(path, cache=cache)


def test_a_damaged_page_makes_a_shard_unreadable(tmp_path, cache, folder):
    data = bytearray((folder / "p-0.parquet").read_bytes())
    data[4:400] = bytes(396)  # the first page, of which the footer knows nothing
    path = tmp_path / "a.parquet"
    path.write_bytes(bytes(data))
    clips = open_clips(path, cache=cache)
    with pytest.raises(AudioError, match=r"a\.parquet cannot be read as Parquet"):
        clips.read(0, 100, RATE, [0])
    assert not list(cache.place.glob("*.tar"))
    assert not list(cache.place.glob("*.partial"))


# --- the cache ------------------------------------------------------------------------------


def shard_of(path):
    (found,) = find_sources(path)
    assert isinstance(found, Shard)
    return found


def test_a_shard_is_downloaded_once(web, cache):
    for _ in range(2):
        all_clips(open_clips(f"{web.url}/p-0.parquet", cache=cache))
        all_clips(open_clips(f"{web.url}/t-000.tar", cache=cache))
    assert web.taken("t-000.tar") == 1
    # The second run knows the counts, and asks for no footer.
    assert web.taken("p-0.parquet") == 2


def test_a_changed_file_is_another_shard(web, cache, folder):
    url = f"{web.url}/t-000.tar"
    assert len(open_clips(url, cache=cache)) == 4
    write_tar(folder / "t-000.tar", {"a.flac": sound(1)})
    assert len(open_clips(url, cache=cache)) == 1


FETCH = """
import sys
from pathlib import Path
from gram_hear.audio.shards import ShardCache
from gram_hear.audio.sources import find_sources

[shard] = find_sources(sys.argv[2])
ShardCache(Path(sys.argv[1])).fetch(shard)
"""


def fetching(cache, url):
    """Fetch a shard in a process of its own."""
    return subprocess.Popen([sys.executable, "-c", FETCH, str(cache.folder), url])


@pytest.mark.slow
def test_processes_that_want_one_shard_download_it_once(web, cache):
    web.fault = lambda request: time.sleep(0.3)  # so that all want it at the same time
    processes = [fetching(cache, f"{web.url}/t-003.tar") for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert web.taken("t-003.tar") == 1


@pytest.mark.slow
def test_a_killed_download_leaves_nothing_that_counts(web, cache):
    began = threading.Event()

    def stall(request):
        if request.command == "HEAD":
            return False
        request.send_response(206)
        request.send_header("Content-Length", "10240")
        request.end_headers()
        request.wfile.write(bytes(5000))
        began.set()
        time.sleep(5)
        return True

    web.fault = stall
    url = f"{web.url}/t-000.tar"
    process = fetching(cache, url)
    assert began.wait(60)
    process.kill()
    process.wait()
    assert list(cache.place.glob("*.partial"))
    assert not list(cache.place.glob("*.tar"))
    web.fault = lambda request: False
    assert len(all_clips(open_clips(url, cache=cache))) == 4
    assert not list(cache.place.glob("*.partial"))


def test_requests_that_fail_are_made_again(web, cache):
    failing = iter([True, False, True, True, False])

    def fail(request):
        if request.path != "/t-000.tar" or not next(failing, False):
            return False
        request.send_error(503)
        return True

    web.fault = fail
    assert len(open_clips(f"{web.url}/t-000.tar", cache=cache)) == 4


def test_a_download_that_breaks_off_goes_on(folder, web, cache, monkeypatch):
    monkeypatch.setattr(sources, "PIECE", 4096)
    begun = []

    def break_off(request):
        if request.command == "GET" and request.path == "/t-003.tar":
            begun.append(request.headers["Range"])
            if len(begun) == 3:
                request.send_response(206)
                request.send_header("Content-Length", "4096")
                request.end_headers()
                request.wfile.write(bytes(10))
                request.close_connection = True
                return True
        return False

    web.fault = break_off
    equal(open_clips(folder / "t-003.tar"), open_clips(f"{web.url}/t-003.tar", cache=cache))
    assert begun.count("bytes=0-4095") == 1
    assert begun.count("bytes=8192-12287") == 2


@pytest.mark.parametrize("breaks", [False, True])
def test_a_server_that_sends_no_parts(folder, web, cache, monkeypatch, breaks):
    monkeypatch.setattr(sources, "PIECE", 4096)
    data = (folder / "t-003.tar").read_bytes()
    asked = []

    def send_all(request):
        if request.command != "GET" or request.path != "/t-003.tar":
            return False
        asked.append(request.headers.get("Range"))
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        # That of the third request is the first to be read to its end.
        request.wfile.write(data[:20_000] if breaks and len(asked) == 3 else data)
        request.close_connection = True
        return True

    web.fault = send_all
    equal(open_clips(folder / "t-003.tar"), open_clips(f"{web.url}/t-003.tar", cache=cache))
    assert asked == ["bytes=0-4095", "bytes=4096-8191", None, *[None] * breaks]


def test_a_server_that_sends_more_than_it_was_asked_for(folder, web, cache):
    def send_more(request):
        if request.command != "GET":
            return False
        request.send_response(206)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        request.wfile.write(bytes(1_000_000))
        return True

    shard = shard_of(f"{web.url}/t-000.tar")
    web.fault = send_more
    with pytest.raises(SceneError, match="sends more than it was asked for"):
        cache.fetch(shard)
    assert not [*cache.place.glob("*.tar"), *cache.place.glob("*.partial")]


def test_a_server_that_falls_silent_is_asked_again(web, cache, monkeypatch):
    monkeypatch.setattr(sources, "SILENCE", 0.2)
    url = f"{web.url}/t-000.tar"
    over, silent = threading.Event(), iter([True])

    def stall(request):
        if request.command != "GET" or request.path != "/t-000.tar" or not next(silent, False):
            return False
        request.send_response(206)
        request.send_header("Content-Length", "20480")
        request.end_headers()
        request.wfile.write(bytes(100))
        request.wfile.flush()
        over.wait(60)
        return True

    web.fault = stall
    assert len(open_clips(url, cache=cache)) == 4
    assert not next(silent, False)
    over.set()


def test_a_shard_that_cannot_be_fetched_is_unreadable_and_named(web, cache, monkeypatch):
    clips = open_clips(f"{web.url}/p-{{0..1}}.parquet?key=SECRET", cache=cache)
    web.fault = lambda request: request.path.startswith("/p-0") and not request.send_error(503)
    asked = len(web.requests)
    with pytest.raises(AudioError, match=r"/p-0\.parquet\?\.\.\. cannot be read: .*503") as caught:
        clips.read(0, 100, RATE, [0])
    assert "SECRET" not in str(caught.value)
    tried = len(web.requests) - asked
    with pytest.raises(AudioError):
        clips.read(1, 100, RATE, [0])
    assert len(web.requests) - asked == tried  # the next clips of it fail at once
    assert len(clips.read(4, 100, RATE, [0])) == 100


def test_a_file_shorter_than_stated_is_not_taken(memory, cache):
    shard = shard_of(f"{memory}/t-000.tar")
    longer = Shard(shard.address, shard.size + 1000, shard.stamp)
    with pytest.raises(SceneError, match="ended after"):
        cache.fetch(longer)
    assert not [*cache.place.glob("*.tar"), *cache.place.glob("*.partial")]


def test_a_file_that_is_no_tar_is_not_taken(memory, cache):
    fsspec.filesystem("memory").pipe("/data/bad.tar", b"no tar" * 1000)
    with pytest.raises(SceneError, match=r"memory://data/bad\.tar cannot be read as a tar"):
        open_clips(f"{memory}/bad.tar", cache=cache)
    assert not list(cache.place.glob("*.tar"))


def test_what_was_used_least_recently_is_evicted(memory, tmp_path):
    found = [shard_of(f"{memory}/t-00{k}.tar") for k in range(4)]
    size = max(shard.size for shard in found)
    cache = ShardCache(tmp_path / "cache", 3 * size / 1e9)
    for shard in (*found[:3], found[0], found[3]):
        cache.open(shard).close()
    there = [cache.path(shard).exists() for shard in found]
    assert there == [True, False, True, True]
    assert sum(path.stat().st_size for path in cache.place.glob("*.tar")) <= 3 * size
    assert len(list(cache.place.glob(".*.npz"))) == 3


def test_what_is_in_use_is_not_evicted(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROOM_SECONDS", 0.0)
    found = [shard_of(f"{memory}/t-00{k}.tar") for k in range(3)]
    cache = ShardCache(tmp_path / "cache", 2 * max(shard.size for shard in found) / 1e9)
    with cache.open(found[0]) as first:
        cache.open(found[1]).close()
        cache.open(found[2]).close()
        assert [cache.path(shard).exists() for shard in found] == [True, False, True]
        with cache.open(found[2]), pytest.raises(OptionError, match=r"is in use. Raise cache_size"):
            cache.open(found[1])
        assert first.members[0].read()
    cache.open(found[1]).close()


def test_files_that_others_are_writing_are_left_alone(memory, cache):
    cache.place.mkdir()
    (cache.place / ".0123456789ab.0.partial").write_text("of an index that is being written")
    (cache.place / "0123456789ab.partial").write_text("of a process that was killed")
    cache.open(shard_of(f"{memory}/t-000.tar")).close()
    assert [path.name for path in cache.place.glob("*.partial")] == [".0123456789ab.0.partial"]


def test_what_a_killed_process_left_of_a_shard_needs_no_room(memory, tmp_path):
    shard = shard_of(f"{memory}/t-000.tar")
    cache = ShardCache(tmp_path / "cache", 1.5 * shard.size / 1e9)
    cache.place.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    cache.path(shard).with_suffix(".partial").write_bytes(bytes(shard.size))
    cache.path(shard).with_suffix(".fetched.partial").symlink_to(elsewhere)
    cache.fetch(shard)
    assert cache.path(shard).is_file()
    assert elsewhere.read_text() == "kept"


def test_a_shard_that_was_just_taken_may_be_evicted_by_others(memory, cache, monkeypatch):
    shard = shard_of(f"{memory}/t-000.tar")
    moved, evicted = os.replace, []

    def replace(source, target):
        moved(source, target)
        if str(target).endswith(".tar") and not evicted:
            evicted.append(shards._evict(cache.path(shard)))

    monkeypatch.setattr(os, "replace", replace)
    with cache.open(shard) as opened:
        assert len(opened.members) == 4
    assert evicted == [True]


def test_caches_that_are_too_small(memory, tmp_path, monkeypatch):
    small = ShardCache(tmp_path / "cache", 1e-5)
    with pytest.raises(OptionError, match=r"the cache .* may have 1e-05 GB; raise cache_size"):
        open_clips(f"{memory}/t-*.tar", cache=small)
    with pytest.raises(OptionError, match="lower open_shards"):
        open_clips(f"{memory}/p-*.parquet", cache=small)
    with pytest.raises(OptionError, match="size is 0 GB"):
        ShardCache(None, 0)
    usage = shards.shutil.disk_usage
    free = lambda path: usage(path)._replace(free=100)  # noqa: E731
    monkeypatch.setattr(shards.shutil, "disk_usage", free)
    monkeypatch.setattr(shards, "ROOM_SECONDS", 0.0)
    with pytest.raises(OptionError, match=r"the disk has 0\.00 GB left"):
        open_clips(f"{memory}/t-*.tar", cache=ShardCache(tmp_path / "other", 1.0))


def test_a_shard_that_somebody_removed_is_fetched_again(memory, cache):
    clips = open_clips(f"{memory}/t-000.tar", cache=cache)
    first = clips.read(0, 100, RATE, [0])
    for path in cache.place.iterdir():
        path.unlink()
    np.testing.assert_array_equal(clips.read(0, 100, RATE, [0]), first)


# --- counting -------------------------------------------------------------------------------


def test_tars_are_read_once_to_be_counted_and_that_is_said(web, cache):
    told = []
    url = f"{web.url}/t-{{000..003}}.tar"
    assert len(open_clips(url, cache=cache, report=told.append)) == 22
    assert re.match(r"4 remote tars \(0\.0 GB\) must be read once", told[0])
    for path in cache.place.glob("*.tar"):
        path.unlink()
    assert len(open_clips(url, cache=cache, report=told.append)) == 22
    assert len(told) == 1
    assert web.taken("t-000.tar") == 1


def test_sizes_json_beside_tars_tells_their_clips(folder, web, cache):
    sizes = {f"t-00{k}.tar": 4 + k for k in range(3)} | {"t-003.tar": 8, "other": "x"}
    (folder / "sizes.json").write_text(json.dumps(sizes))
    told = []
    clips = open_clips(f"{web.url}/t-{{000..003}}.tar", cache=cache, report=told.append)
    assert (len(clips), told) == (23, [])
    assert web.taken("t-000.tar") == 0
    with pytest.raises(AudioError, match=r"t-003\.tar holds 7 sounds, fewer than were counted"):
        clips.read(22, 100, RATE, [0])
    assert len(clips.read(21, 100, RATE, [0])) == 100


def test_sizes_that_cannot_be_are_not_believed(folder, web, cache):
    (folder / "sizes.json").write_text(json.dumps({"t-000.tar": (1 << 31) - 1, "t-001.tar": True}))
    assert len(open_clips(f"{web.url}/t-{{000..001}}.tar", cache=cache)) == 4 + 5


def test_damaged_notes_are_made_anew(memory, cache):
    for content in ("", "[]", '{"clips": -1, "bytes": 1}', '{"clips": "9"}'):
        assert len(open_clips(f"{memory}/p-0.parquet", cache=cache)) == 4
        (note,) = cache.place.glob("*.json")
        note.write_text(content)


# --- order ----------------------------------------------------------------------------------


def plain_order(counts, local, most, generator):
    """What the documentation says, one clip after the other."""
    turn = generator.permutation(len(counts))
    starts = [local + sum(counts[:k]) for k in range(len(counts))]
    others = list(generator.permutation(local))
    total, seen, given, order, ends = sum(counts), 0, 0, [], []
    for first in range(0, len(counts), most):
        group = turn[first : first + most]
        clips = [starts[k] + i for k in group for i in range(counts[k])]
        seen += len(clips)
        share = seen * local // max(total, 1)
        clips += others[given:share] if first + most < len(counts) else others[given:]
        given = share
        order += [clips[i] for i in generator.permutation(len(clips))]
        ends.append(len(order))
    return order, ends


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=9),
    st.integers(0, 5),
    st.integers(1, 10),
    st.integers(0, 99),
)
def test_the_order_is_that_of_a_plain_reference(counts, local, most, seed):
    reader = ShardReader(ShardCache(), [Shard(f"s3://a/{k}.tar", 1, "") for k in counts], most)
    clips = RecordedClips([archives.Path(f"{i}.wav") for i in range(local)], reader, counts)
    order = clips.order(np.random.default_rng(seed))
    assert sorted(order.clips) == list(range(local + sum(counts)))
    if len(counts) <= most:
        expected = np.random.default_rng(seed).permutation(len(clips)).tolist()
        ends = [len(clips)]
    else:
        expected, ends = plain_order(counts, local, most, np.random.default_rng(seed))
    assert order.clips.tolist() == [int(i) for i in expected]
    assert order.ends.tolist() == ends


def test_only_a_few_shards_are_open_at_a_time(memory, cache):
    clips = open_clips(f"{memory}/t-*.tar", cache=cache, open_shards=2)
    order = clips.order(np.random.default_rng(0))
    fetched = []
    for i in order.clips:
        clips.read(int(i), 100, RATE, [0])
        fetched.append(int(np.searchsorted([4, 9, 15], i, side="right")))
    assert len(set(fetched[: order.ends[0]])) == len(set(fetched[order.ends[0] :])) == 2
    assert len(clips._shards._open) == 2


def test_the_next_group_is_fetched_ahead(memory, tmp_path):
    from test_pretrain_data import SMALL

    from gram_hear.pretrain.samples import SampleRecipe, SampleSet

    cache = ShardCache(tmp_path / "cache", 1.0)
    clips = open_clips(f"{memory}/p-*.parquet", cache=cache, open_shards=1)
    samples = SampleSet(clips, None, None, SampleRecipe(**SMALL, clean_fraction=1.0), "mono", 0)
    order = samples._order(0)
    assert len(list(cache.place.glob("*.tar"))) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordedClips, "fetch_ahead", lambda *given: pytest.fail("too early"))
        first = samples[0]
    samples[1]
    clips._shards._thread.join()
    following = int(order.clips[order.ends[0]])
    assert cache.path(clips._shards.shards[clips._place(following)[0]]).exists()
    assert len(list(cache.place.glob("*.tar"))) == 2
    other = SampleSet(  # what is cached changes no sample
        open_clips(f"{memory}/p-*.parquet", cache=cache, open_shards=1),
        *(None, None, SampleRecipe(**SMALL, clean_fraction=1.0), "mono", 0),
    )
    np.testing.assert_array_equal(other[0]["clip"], first["clip"])


def test_what_decides_the_order_has_a_key(memory, cache, folder):
    def key(pattern, **options):
        return open_clips(f"{memory}/{pattern}", cache=cache, **options).shards_key

    assert open_clips(folder / "t-*.tar").shards_key is None
    assert key("t-*.tar") == key("p-*.parquet")  # the same numbers of clips
    assert key("t-*.tar") != key("t-*.tar", open_shards=2)
    assert key("t-00{0,1}.tar") != key("t-00{1,0}.tar")


# --- indexes of local tars ------------------------------------------------------------------


def test_of_several_that_open_a_tar_one_indexes_it(folder, monkeypatch):
    made = []
    index = archives.index_tar

    def slow(*given):
        made.append(1)
        time.sleep(0.2)
        return index(*given)

    monkeypatch.setattr(archives, "index_tar", slow)
    path = folder / "t-003.tar"
    with ThreadPoolExecutor(3) as pool:
        given = [(path, (".flac",), True)] * 3
        found = list(pool.map(lambda each: archives.find_members(*each), given))
    assert made == [1]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 7


def test_an_index_beside_a_tar_that_cannot_be_written_goes_into_the_cache(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    path, lock = folder / "t-000.tar", archives.wait_for_lock

    def refuse(name):
        if name.parent == folder:
            raise PermissionError(13, "Permission denied")
        return lock(name)

    monkeypatch.setattr(archives, "wait_for_lock", refuse)
    first = archives.find_members(path, (".flac",), labels=True)
    assert not list(folder.glob(".*"))
    monkeypatch.setattr(archives, "index_tar", lambda *given: pytest.fail("indexed again"))
    assert archives.find_members(path, (".flac",), labels=True) == first
