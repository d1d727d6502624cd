"""Clips from S3, with the clients that users have, against a server of S3 on this machine.

The clients (s3fs, with moto as the server) need older versions of packages than the other tests
are pinned to, so this file runs in an environment of its own: make test-s3.
"""

import os

import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from test_sources import all_clips, make_shards

from gram_hear.audio import sources
from gram_hear.audio.shards import ShardCache
from gram_hear.errors import SceneError
from gram_hear.pretrain.clips import open_clips

SECRET = "SecretOfTheTests"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A folder of shards, and the URL of a bucket with the same."""
    folder = make_shards(tmp_path_factory.mktemp("shards"))
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        system = fsspec.filesystem("s3")
        system.mkdir("clips")
        for path in folder.iterdir():
            system.put(str(path), f"clips/data/{path.name}")
        yield folder, "s3://clips/data"
    server.stop()


@pytest.mark.parametrize("pattern", ["/t-{000..003}.tar", "/t-*.tar", "/p-*.parquet"])
def test_clips_equal_those_of_local_files(bucket, tmp_path, pattern):
    folder, url = bucket
    cache = ShardCache(tmp_path / "cache", 1.0)
    here = open_clips(f"{folder}{pattern}", cache=cache)
    there = open_clips(f"{url}{pattern}", cache=cache)
    assert all("s3://" in there.name(i) for i in range(len(there)))
    for mine, theirs in zip(all_clips(here), all_clips(there), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_what_is_not_there_is_named(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PAUSES", ())
    for url in ("s3://clips/data/missing.tar", "s3://nowhere/a.tar", "s3://clips/x/*.tar"):
        with pytest.raises(SceneError) as caught:
            open_clips(url, cache=ShardCache(tmp_path))
        assert url in str(caught.value)
        assert SECRET not in str(caught.value)


def test_loading_processes_read_in_their_own_connections(bucket, tmp_path):
    from torch.utils.data import DataLoader, Dataset

    folder, url = bucket
    clips = open_clips(f"{url}/t-*.tar", cache=ShardCache(tmp_path / "cache", 1.0))
    clips.read(0, 100, 32000, [0])  # the client's thread is at work before the processes begin
    clips.close()
    for path in (tmp_path / "cache").glob("*.tar"):
        os.unlink(path)

    class Reads(Dataset):
        def __len__(self):
            return len(clips)

        def __getitem__(self, i):
            return clips.read(i, 100, 32000, [i])

    found = list(DataLoader(Reads(), batch_size=None, num_workers=2))
    here = open_clips([str(path) for path in sorted(folder.glob("t-*.tar"))])
    assert len(found) == len(here)
    for i, audio in enumerate(found):
        np.testing.assert_array_equal(audio, here.read(i, 100, 32000, [i]))
