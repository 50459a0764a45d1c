"""Shards and models come from the hub by its real client, from a server on loopback; without network, clear errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hubserver import COMMIT, serving
from layouts import samples, segments, write_shard

import vqcomp
from vqcomp.data import hub
from vqcomp.data.hub import Address, parse_address, parse_shards
from vqcomp.runtime.errors import InputError

pytest.importorskip("huggingface_hub")


@pytest.fixture
def server(tmp_path):
    with serving() as server:
        for i in range(3):
            path = write_shard(tmp_path / "published" / f"data-{i:04d}.tar.gz", samples(segments(2, first=2 * i)))
            for revision in (hub.COMMAVQ_REVISION, "main"):
                server.files["datasets", hub.COMMAVQ, revision, path.name] = path.read_bytes()
        yield server


PRELUDE = """
import sys, time
import huggingface_hub.constants
from vqcomp.cli import run
# Patience costs time, and pieces of 10 MiB are more than these files have.
time.sleep = lambda seconds: None
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 512
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture
def command(tmp_path, server):
    """Runs `vqcomp ...` in a process of its own, whose client asks the server."""

    def run(*arguments, **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"}
        return subprocess.run(
            [sys.executable, "-c", PRELUDE, *map(str, arguments)], capture_output=True, text=True, check=False,
            env={**clean, **own, **environment}, cwd=Path(__file__).parent.parent,
        )  # fmt: skip

    return run


def test_the_challenges_shards_are_fetched_at_the_pinned_revision_and_their_paths_printed(command, server, tmp_path):
    done = command("fetch", "commavq")
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [p.name for p in paths] == ["data-0000.tar.gz", "data-0001.tar.gz"]
    assert all(str(p).startswith(str(tmp_path / "cache")) for p in paths), "HF_HOME says where the cache is"
    assert server.count("GET") == 2
    assert all(f"/resolve/{hub.COMMAVQ_REVISION}/" in path for _, path, _ in server.requests if "/resolve/" in path)
    found = vqcomp.data.sources.find_segments(paths)
    expected = segments(4)
    assert {s.name for s in found.segments} == set(expected)
    for segment in found.segments:
        np.testing.assert_array_equal(segment.array(), expected[segment.name])


def test_what_is_in_the_cache_is_not_fetched_again_and_is_there_without_a_network(command, server):
    first = command("fetch", "commavq", "--shards", "1")
    fetched = server.count("GET")
    assert fetched == 1
    again = command("fetch", "commavq", "--shards", "1")
    offline = command("fetch", "commavq", "--shards", "1", HF_HUB_OFFLINE="1")
    away = command("fetch", "commavq", "--shards", "1", HF_ENDPOINT="http://127.0.0.1:9")
    assert first.stdout == again.stdout == offline.stdout == away.stdout
    assert server.count("GET") == fetched


def test_revision_shards_and_folder_can_be_chosen(command, server, tmp_path):
    done = command("fetch", "commavq", "--shards", "0,2", "--revision", "main", "-o", tmp_path / "here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "here" / f"data-000{i}.tar.gz") for i in (0, 2)]
    for i in (0, 2):
        name = f"data-000{i}.tar.gz"
        assert (tmp_path / "here" / name).read_bytes() == server.files["datasets", hub.COMMAVQ, "main", name]


def test_a_download_that_broke_off_goes_on_where_it_did(command, server, tmp_path):
    data = server.files["datasets", hub.COMMAVQ, hub.COMMAVQ_REVISION, "data-0000.tar.gz"]
    server.break_after = 1024
    # Whether the client goes on by itself or the next command does, no byte that has come is asked for again.
    for _ in range(len(data) // 1024 + 1):
        done = command("fetch", "commavq", "--shards", "0")
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == data
    gets = [h.get("range") for method, path, h in server.requests if method == "GET" and "/resolve/" in path]
    assert gets == [None] + [f"bytes={at}-" for at in range(1024, len(data), 1024)]


def test_without_a_network_it_says_so(command, tmp_path):
    done = command("fetch", "commavq", HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "data-0000.tar.gz: not in the cache, and HF_HUB_OFFLINE forbids to fetch it" in done.stderr
    done = command("fetch", "commavq", HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "data-0000.tar.gz: not in the cache, and http://127.0.0.1:9 cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    done = command("compress", "hf://datasets/a/b/c.tar.gz", tmp_path / "o.zip", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert not (tmp_path / "o.zip").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["fetch", "commavq", "--shards", "5"], r"data-0005.tar.gz: the repository has no such file"),
    (["fetch", "commavq", "--revision", "none"], "the repository has no such revision"),
    (["compress", "hf://datasets/nobody/nothing/a.npy", "out.zip"], "there is no such repository, or it is private"),
    (["fetch", "commavq", "--shards", "40"], "shards: expected numbers from 0 to 39"),
    (["compress", "hf://a.npy", "out.zip"], r"hf://a.npy: expected hf://"),
])  # fmt: skip
def test_what_is_not_there_is_named(command, arguments, message):
    done = command(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token_opens_gated_repositories(command, server):
    server.gated.add(hub.COMMAVQ)
    done = command("fetch", "commavq", "--shards", "0")
    assert done.returncode == 1
    assert "access must be granted" in done.stderr
    done = command("fetch", "commavq", "--shards", "0", HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert all(h.get("authorization") == "Bearer hf_secret" for _, _, h in server.requests[-2:])


def test_data_and_models_are_taken_from_addresses_on_the_hub(command, server, tmp_path, tiny_model):
    server.files["models", "someone/models", "v2", "sub/tiny.vqm"] = tiny_model.read_bytes()
    with open(tmp_path / "a.npy", "wb") as handle:
        np.save(handle, np.zeros((3, 3, 4), np.int16))
    server.files["datasets", "someone/data", "main", "a.npy"] = (tmp_path / "a.npy").read_bytes()
    done = command(
        "compress", "hf://datasets/someone/data/a.npy", tmp_path / "out.zip",
        "--model", "hf://someone/models@v2/sub/tiny.vqm", "--device", "numpy", "-v",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "model: tiny" in done.stderr
    with vqcomp.open(tmp_path / "out.zip") as archive:
        assert archive["a.npy"].shape == (3, 3, 4)
    assert COMMIT not in {revision for _, _, revision, _ in server.files}, "branches were resolved by the server"


def test_addresses():
    assert parse_address("hf://a/b/c.vqm", "model") == Address("model", "a/b", None, "c.vqm")
    assert parse_address("hf://a/b@v1/c/d.vqm", "model") == Address("model", "a/b", "v1", "c/d.vqm")
    assert parse_address("hf://datasets/a/b@v1/c.npy", "model") == Address("dataset", "a/b", "v1", "c.npy")
    assert parse_address("hf://models/a/b/c.npy", "dataset") == Address("model", "a/b", None, "c.npy")
    for text in ("hf://a/b", "hf://a", "hf://", "hf://a/b/", "hf://a@x/b/c", "hf://a/b@/c", "hf://datasets/a/b"):
        with pytest.raises(InputError):
            parse_address(text, "model")


def test_shard_numbers():
    assert parse_shards("0-1") == [0, 1]
    assert parse_shards("3, 0,7-9,8") == [0, 3, 7, 8, 9]
    for text in ("", "a", "1-", "-1", "2-1", "40", "0-40", "1,,2"):
        with pytest.raises(InputError):
            parse_shards(text)
