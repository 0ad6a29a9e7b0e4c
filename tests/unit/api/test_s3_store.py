"""The S3 store: which faults a retry can help, what is told, and that no half artifact is taken for whole."""

from __future__ import annotations

import hashlib
import io
import json
from base64 import b64decode
from collections.abc import Iterator

import boto3
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import EndpointConnectionError
from botocore.response import StreamingBody
from botocore.stub import ANY, Stubber

from tandem_api.canonical import canonical_json, sha256_hex
from tandem_api.errors import (
    ConfigurationError,
    DataError,
    KeyRefusedError,
    StorageRefusedError,
    StorageUnavailableError,
)
from tandem_api.store import ObjectInfo
from tandem_api.store.s3 import BRIEFLY, DELETE_BATCH, MANIFEST, PATIENTLY, S3Store
from tandem_api.v1alpha1.status import Artifact

BUCKET = "runs"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> S3Store:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return S3Store(BUCKET, "http://s3.test")


@pytest.fixture
def s3(store: S3Store) -> Iterator[Stubber]:
    """The server's scripted answers. botocore itself parses the errors."""
    with Stubber(store._client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


def body(data: bytes) -> dict[str, object]:
    return {"Body": StreamingBody(io.BytesIO(data), len(data)), "ContentLength": len(data), "ETag": '"e"'}


class Raw:
    """The body of an answer, before botocore parses it."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    def stream(self) -> Iterator[bytes]:
        return iter([self.data])


def test_a_missing_object_is_none_and_not_an_error(store, s3):
    s3.add_client_error("get_object", "NoSuchKey", http_status_code=404)
    assert store.get("a/b") is None


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("AccessDenied", 403, "AccessDenied: the key has no right to this"),
        ("403", 403, "403: the key has no right to this"),
        ("InvalidAccessKeyId", 403, "the access key is unknown to the server"),
        ("SignatureDoesNotMatch", 403, "the secret key is wrong"),
        ("NoSuchBucket", 404, "there is no such bucket"),
        ("QuotaExceeded", 403, "the bucket is full"),
        ("XMinioStorageFull", 507, "the server's disk is full"),
        ("InsufficientStorage", 507, "the server's disk is full"),
        ("InvalidRequest", 400, "InvalidRequest: An error occurred"),
    ],
)
def test_what_no_retry_helps_is_refused_with_its_cause(store, s3, code, status, told):
    s3.add_client_error("put_object", code, http_status_code=status)
    with pytest.raises(StorageRefusedError) as caught:
        store.put("a/b", b"x")
    assert str(caught.value).startswith("cannot write s3://runs/a/b at http://s3.test: ")
    assert told in str(caught.value)


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"])
def test_a_key_that_is_not_known_is_told_from_one_without_a_right(store, s3, code):
    s3.add_client_error("get_object", code, http_status_code=403)
    with pytest.raises(KeyRefusedError):
        store.get("a/b")


def test_a_key_that_was_valid_and_is_no_longer_was_rotated_so_that_the_next_attempt_may_succeed(store, s3):
    """Keys that were rotated in the middle of a stage once failed the whole run for good."""
    s3.add_client_error("get_object", "NoSuchKey", http_status_code=404)
    assert store.get("a/b") is None
    s3.add_client_error("put_object", "InvalidAccessKeyId", http_status_code=403)
    with pytest.raises(StorageUnavailableError, match="was valid before and is no longer"):
        store.put("a/b", b"x")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("InternalError", 500),
        ("ServiceUnavailable", 503),
        ("SlowDown", 503),
        ("RequestTimeout", 408),
        ("OperationAborted", 409),
        ("TooManyRequests", 429),
    ],
)
def test_a_passing_fault_may_be_retried(store, s3, code, status):
    s3.add_client_error("get_object", code, http_status_code=status)
    with pytest.raises(StorageUnavailableError, match="cannot read s3://runs/a/b at http://s3.test: " + code):
        store.get("a/b")


def test_a_server_that_is_not_there_is_unavailable(store, monkeypatch):
    def unreachable(**arguments: object) -> None:
        raise EndpointConnectionError(endpoint_url="http://s3.test")

    monkeypatch.setattr(store._client, "get_object", unreachable)
    with pytest.raises(StorageUnavailableError, match="Could not connect to the endpoint URL"):
        store.get("a/b")


@pytest.mark.parametrize("answer", [None, 503, 429])
def test_a_worker_that_is_to_stop_does_not_wait_for_a_server_that_is_down(store, monkeypatch, answer):
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    sent = []

    def send(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        sent.append(request)
        if answer is None:
            raise EndpointConnectionError(endpoint_url="http://s3.test")
        return AWSResponse(request.url, answer, {}, Raw())

    waiting = S3Store(BUCKET, "http://s3.test", attempts=PATIENTLY, is_hurried=lambda: len(sent) >= 7)
    waiting._client.meta.events.register("before-send.s3", send)
    with pytest.raises(StorageUnavailableError, match="cannot write s3://runs/a/b at"):
        waiting.put("a/b", b"x")
    assert len(sent) == 7


def test_a_worker_that_is_to_stop_still_keeps_what_it_has(store, monkeypatch):
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    sent = []

    def send(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        sent.append(request)
        return AWSResponse(request.url, 200 if len(sent) == BRIEFLY else 503, {}, Raw())

    hurried = S3Store(BUCKET, "http://s3.test", attempts=PATIENTLY, is_hurried=lambda: True)
    hurried._client.meta.events.register("before-send.s3", send)
    assert hurried.put("a/b", b"x").uri == "s3://runs/a/b"


def test_missing_credentials_are_named_with_the_variables_to_set(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the credentials that it has found
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StorageRefusedError, match="no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        S3Store(BUCKET, "http://127.0.0.1:9").get("a")


@pytest.mark.parametrize(
    ("profile", "endpoint", "told"),
    [
        ("typo", None, r"cannot use the bucket runs at AWS: .*\(typo\).*; correct"),
        (None, "s3.test", "s3.test; correct"),
    ],
)
def test_what_the_client_is_built_of_may_be_wrong_and_is_told(monkeypatch, profile, endpoint, told):
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    if profile is not None:
        monkeypatch.setenv("AWS_PROFILE", profile)
    with pytest.raises(ConfigurationError, match=told):
        S3Store(BUCKET, endpoint)


def test_a_refused_upload_of_a_file_is_refused_too(store, s3, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    s3.add_client_error("put_object", "QuotaExceeded", http_status_code=403)
    with pytest.raises(StorageRefusedError, match=r"cannot write s3://runs/k at .*: QuotaExceeded: the bucket is full"):
        store.put_file("k", path)


def test_a_file_that_is_not_there_is_no_fault_of_the_store(store, tmp_path):
    with pytest.raises(FileNotFoundError):
        store.put_file("k", tmp_path / "missing")


def test_a_put_names_the_object_by_its_content(store, s3):
    written = {"Bucket": BUCKET, "Key": "a/b", "Body": b"data", "Metadata": {"sha256": sha256_hex(b"data")}}
    s3.add_response("put_object", {}, written)
    assert store.put("a/b", b"data") == Artifact(uri="s3://runs/a/b", sha256=sha256_hex(b"data"))


def test_an_object_that_comes_back_otherwise_than_it_was_written_is_not_believed(store, s3):
    """A digit that flipped within a result or a journal was once taken for what had been measured."""
    metadata = {"Metadata": {"sha256": sha256_hex(b'{"score": 0.5}')}}
    s3.add_response("get_object", {**body(b'{"score": 0.5}'), **metadata})
    assert store.get("a/b") == b'{"score": 0.5}'
    s3.add_response("get_object", {**body(b'{"score": 0.7}'), **metadata})
    with pytest.raises(DataError, match="s3://runs/a/b is damaged: its sha256 is not"):
        store.get("a/b")


def test_what_others_wrote_is_read_without_a_digest(store, s3):
    s3.add_response("get_object", {**body(b"data"), "Metadata": {"owner": "somebody"}})
    assert store.get("a/b") == b"data"


def test_keys_are_listed_over_all_pages_in_lexical_order(store, s3):
    first = {"Contents": [{"Key": "p/b"}], "IsTruncated": True, "NextContinuationToken": "t"}
    s3.add_response("list_objects_v2", first, {"Bucket": BUCKET, "Prefix": "p/"})
    s3.add_response(
        "list_objects_v2", {"Contents": [{"Key": "p/a"}]}, {"Bucket": BUCKET, "Prefix": "p/", "ContinuationToken": "t"}
    )
    assert list(store.list("p/")) == ["p/a", "p/b"]


def test_a_listing_tells_what_changes_with_an_objects_content(store, s3):
    s3.add_response("list_objects_v2", {"Contents": [{"Key": "p/a", "Size": 3, "ETag": '"e1"'}]})
    assert list(store.describe("p/")) == [ObjectInfo("p/a", 3, '"e1"')]


def test_a_download_of_a_missing_object_is_bad_data(store, s3, tmp_path):
    s3.add_response("get_object", body(b"1"))
    store.download("p/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"1"
    s3.add_client_error("get_object", "NoSuchKey", http_status_code=404)
    with pytest.raises(DataError, match="s3://runs/p/b is missing"):
        store.download("p/b", tmp_path / "b")


def test_objects_are_deleted_in_batches_and_counted(store, s3):
    keys = [f"p/{number:04}" for number in range(DELETE_BATCH + 1)]
    s3.add_response("list_objects_v2", {"Contents": [{"Key": key} for key in keys]})
    for batch in (keys[:DELETE_BATCH], keys[DELETE_BATCH:]):
        wanted = {"Bucket": BUCKET, "Delete": {"Objects": [{"Key": key} for key in batch], "Quiet": True}}
        s3.add_response("delete_objects", {}, wanted)
    assert store.delete("p/") == DELETE_BATCH + 1
    s3.add_response("list_objects_v2", {})
    assert store.delete("p/") == 0


@pytest.mark.parametrize(
    ("code", "error"), [("AccessDenied", StorageRefusedError), ("InternalError", StorageUnavailableError)]
)
def test_a_batch_that_is_deleted_in_part_is_a_failure(store, s3, code, error):
    s3.add_response("list_objects_v2", {"Contents": [{"Key": "p/a"}, {"Key": "p/b"}]})
    s3.add_response("delete_objects", {"Errors": [{"Key": "p/b", "Code": code, "Message": "no"}]})
    with pytest.raises(error, match=f"cannot delete s3://runs/p/b at http://s3.test: {code}"):
        store.delete("p/")


def test_a_batch_carries_the_checksum_that_every_server_knows(store, monkeypatch):
    sent: list[AWSPreparedRequest] = []

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        sent.append(request)
        return AWSResponse(request.url, 200, {}, Raw(b"<DeleteResult/>"))

    store._client.meta.events.register("before-send.s3.DeleteObjects", answer)
    monkeypatch.setattr(store, "list", lambda prefix: iter(["p/a"]))
    assert store.delete("p/") == 1
    wanted = hashlib.md5(sent[0].body).digest()
    assert b64decode(sent[0].headers["Content-MD5"]) == wanted


def test_a_bucket_is_made_only_where_there_is_none(store, s3):
    s3.add_response("head_bucket", {})
    store.ensure_bucket()
    s3.add_client_error("head_bucket", "404", http_status_code=404)
    s3.add_response("create_bucket", {}, {"Bucket": BUCKET})
    store.ensure_bucket()
    s3.add_client_error("head_bucket", "403", http_status_code=403)
    with pytest.raises(StorageRefusedError, match="cannot create the bucket"):
        store.ensure_bucket()


def test_a_fetched_object_is_checked_against_its_digest(store, s3):
    artifact = Artifact(uri="s3://runs/k", sha256=sha256_hex(b"good"))
    s3.add_response("get_object", body(b"good"))
    assert store.fetch(artifact) == b"good"
    s3.add_response("get_object", body(b"bad"))
    with pytest.raises(DataError, match=r"s3://runs/k has sha256 .*, but .* was written"):
        store.fetch(artifact)
    s3.add_client_error("get_object", "NoSuchKey", http_status_code=404)
    with pytest.raises(DataError, match="s3://runs/k is missing"):
        store.fetch(artifact)


def test_an_artifact_of_another_bucket_is_refused(store):
    with pytest.raises(DataError, match="s3://other/k is not in the bucket runs"):
        store.fetch(Artifact(uri="s3://other/k", sha256="0" * 64))


def test_a_folder_is_uploaded_with_its_manifest_last(store, s3, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"2")
    (tmp_path / "a").write_bytes(b"1")
    manifest = canonical_json({"a": sha256_hex(b"1"), "sub/b": sha256_hex(b"2")}).encode()
    for key in ("f/a", "f/sub/b"):
        s3.add_response("put_object", {}, {"Bucket": BUCKET, "Key": key, "Body": ANY})
    metadata = {"sha256": sha256_hex(manifest)}
    s3.add_response(
        "put_object", {}, {"Bucket": BUCKET, "Key": f"f/{MANIFEST}", "Body": manifest, "Metadata": metadata}
    )
    assert store.put_folder("f/", tmp_path) == Artifact(uri="s3://runs/f/", sha256=sha256_hex(manifest), count=2)


def folder(files: dict[str, bytes]) -> tuple[bytes, Artifact]:
    manifest = json.dumps({name: sha256_hex(data) for name, data in files.items()}).encode()
    return manifest, Artifact(uri="s3://runs/f/", sha256=sha256_hex(manifest))


def test_a_folder_without_its_manifest_is_not_there(store, s3, tmp_path):
    _, artifact = folder({})
    s3.add_client_error("get_object", "NoSuchKey", http_status_code=404)
    with pytest.raises(DataError, match=f"s3://runs/f/{MANIFEST} is missing"):
        store.fetch_folder(artifact, tmp_path / "target")
    s3.add_response("get_object", body(b"{}x"))
    with pytest.raises(DataError, match="is not the one that was written"):
        store.fetch_folder(artifact, tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_or_not_at_all(store, s3, tmp_path):
    manifest, artifact = folder({"a": b"1", "b": b"2"})
    target = tmp_path / "deep" / "target"
    s3.add_response("get_object", body(manifest))
    for data in (b"1", b"damaged"):
        s3.add_response("get_object", body(data))
    with pytest.raises(DataError, match="s3://runs/f/b is damaged"):
        store.fetch_folder(artifact, target)
    assert list(target.parent.iterdir()) == []
    s3.add_response("get_object", body(manifest))
    for data in (b"1", b"2"):
        s3.add_response("get_object", body(data))
    store.fetch_folder(artifact, target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"a": b"1", "b": b"2"}


def test_a_folder_with_a_missing_file_is_bad_data(store, s3, tmp_path):
    manifest, artifact = folder({"a": b"1"})
    s3.add_response("get_object", body(manifest))
    s3.add_client_error("get_object", "NoSuchKey", http_status_code=404)
    with pytest.raises(DataError, match="s3://runs/f/a is missing"):
        store.fetch_folder(artifact, tmp_path / "target")
