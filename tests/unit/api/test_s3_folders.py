"""A folder in S3 is fetched into its own place and nowhere else, whatever its list of files says.

The list's digest does not help: who writes the list of a checkpoint writes its digest, too.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from botocore.response import StreamingBody
from botocore.stub import ANY, Stubber

from tandem_api.canonical import canonical_json, sha256_hex
from tandem_api.errors import DataError
from tandem_api.store.s3 import S3Store
from tandem_api.v1alpha1.status import Artifact

EMPTY = sha256_hex(b"")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> S3Store:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return S3Store("runs", "http://s3.test")


def fetch(store: S3Store, manifest: bytes, target: Path) -> None:
    """Fetch a folder with this list of files. A second request is no scripted one: it would fail the test."""
    with Stubber(store._client) as s3:
        body = {"Body": StreamingBody(io.BytesIO(manifest), len(manifest)), "ContentLength": len(manifest)}
        s3.add_response("get_object", body, {"Bucket": "runs", "Key": ANY})
        store.fetch_folder(Artifact(uri="s3://runs/checkpoint/", sha256=sha256_hex(manifest)), target)


@pytest.mark.parametrize(
    "name",
    [
        *("../outside", "a/../../outside", "..", ".", "", "/outside", "//outside", "./a", "a//b", "a/", "a/./b"),
        *("a\0b", "a\nb", "\x1b[31ma"),
    ],
)
def test_a_file_that_would_lie_elsewhere_is_refused_before_anything_is_fetched(store, tmp_path, name):
    target = tmp_path / "deep" / "folder"
    with pytest.raises(DataError, match="which is no file of the folder; nothing is fetched"):
        fetch(store, canonical_json({"good": EMPTY, name: EMPTY}).encode(), target)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not target.exists()


def test_an_absolute_name_does_not_overwrite_a_file_of_this_machine(store, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    with pytest.raises(DataError, match="no file of the folder"):
        fetch(store, canonical_json({str(precious): EMPTY}).encode(), tmp_path / "folder")
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("manifest", [b"[]", b"null", b"{", b'{"a": 1}', b'{"a": {"b": "c"}}', b"\xff"])
def test_a_list_that_is_none_is_told(store, tmp_path, manifest):
    with pytest.raises(DataError, match="is no list of files and their digests"):
        fetch(store, manifest, tmp_path / "folder")
