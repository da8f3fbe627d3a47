"""Fetching a file with a URL, from a server on this machine."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dagflow import UserError, WeightFile, locate, weights

CONTENT = bytes(range(256)) * 9000  # more than one piece


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightFile]:
    """A published file on a server, with an empty cache."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "model.pt").write_bytes(CONTENT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DAGFLOW_WEIGHTS", raising=False)
    handler = partial(Quiet, directory=str(tmp_path / "served"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield WeightFile(
        "somebody/model",
        "model.pt",
        "1",
        size=len(CONTENT),
        licence="MIT",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        url=f"http://127.0.0.1:{server.server_port}/model.pt",
    )
    server.shutdown()
    server.server_close()


def test_a_file_is_fetched_once_and_checked(file: WeightFile, tmp_path: Path) -> None:
    pieces: list[int] = []
    assert weights.find(file) is None
    path = weights.pull(file, pieces.append)
    assert path.read_bytes() == CONTENT
    assert sum(pieces) == len(CONTENT)
    (tmp_path / "served" / "model.pt").unlink()
    assert locate(file) == path


def test_a_wrong_file_is_not_kept(file: WeightFile, tmp_path: Path) -> None:
    (tmp_path / "served" / "model.pt").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=r"returned something other than somebody/model/model\.pt"):
        locate(file)
    assert weights.find(file) is None
    left = [path.name for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert left == [".lock"]


def test_a_failed_fetch_says_why_and_what_to_do(file: WeightFile, tmp_path: Path) -> None:
    (tmp_path / "served" / "model.pt").unlink()
    with pytest.raises(UserError, match=r"404 .*`dagflow weights pull somebody/model/model\.pt`"):
        locate(file)


def test_the_users_folder_comes_first(
    file: WeightFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights.pull(file)
    own = tmp_path / "own" / file.name
    own.parent.mkdir(parents=True)
    own.write_bytes(b"damaged")
    monkeypatch.setenv("DAGFLOW_WEIGHTS", str(tmp_path / "own"))
    with pytest.raises(UserError, match=r"is not the published model\.pt"):
        locate(file)
    monkeypatch.setenv("DAGFLOW_WEIGHTS", str(tmp_path / "onw"))
    with pytest.raises(UserError, match="there is no such folder"):
        locate(file)


def test_a_large_file_of_the_hub_is_held_against_its_name_there(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / hashlib.sha256(CONTENT).hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(CONTENT)
    link = tmp_path / "model.pt"
    link.symlink_to(blob)
    unpinned = WeightFile("somebody/model", "model.pt", "1", size=1, licence="MIT")
    assert weights.check(unpinned, link) == blob.name
    blob.write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"Delete {blob.resolve()} and run `dagflow weights pull"):
        weights.check(unpinned, link)
    loose = tmp_path / "loose.pt"
    loose.write_bytes(CONTENT)
    assert weights.check(unpinned, loose) == ""
