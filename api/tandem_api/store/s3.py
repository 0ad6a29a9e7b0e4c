"""The object store over S3, through boto3. Retries of passing faults are boto3's (standard mode)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlparse

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from tandem_api.canonical import canonical_json, sha256_hex
from tandem_api.errors import (
    ConfigurationError,
    DataError,
    KeyRefusedError,
    StorageRefusedError,
    StorageUnavailableError,
    TandemError,
)
from tandem_api.store.protocol import ObjectInfo, ObjectStore
from tandem_api.v1alpha1.status import Artifact

if TYPE_CHECKING:
    from botocore.awsrequest import AWSResponse
    from mypy_boto3_s3 import S3Client

#: Lists a folder's files and digests; written last, so a folder without it is not there.
MANIFEST = "sha256sums.json"
#: As many keys as S3 deletes in one request.
DELETE_BATCH = 1000
#: Requests that are sent for one call while the server cannot be had: for about 8 s, or for about five minutes.
BRIEFLY, PATIENTLY = 5, 21
#: Metadata of what `put` writes. What others wrote, such as the user's data, has none.
_SHA256 = "sha256"

_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_NO_RIGHT = "the key has no right to this; grant it to read, write, list and delete under the bucket's prefix"
_FIX_KEY = "correct it where the credentials come from (on a cluster: spec.storage.s3.credentialsSecret)"
_REFUSED = {
    "AccessDenied": _NO_RIGHT,
    "403": _NO_RIGHT,
    "InvalidAccessKeyId": f"the access key is unknown to the server; {_FIX_KEY}",
    "SignatureDoesNotMatch": f"the secret key is wrong; {_FIX_KEY}",
    "NoSuchBucket": "there is no such bucket",
    "QuotaExceeded": "the bucket is full",
    "XMinioStorageFull": "the server's disk is full",
    "InsufficientStorage": "the server's disk is full",
}
#: What a key is refused with that is not, or no longer, valid.
_INVALID_KEY = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})
T = TypeVar("T")


class S3Store:
    """An `ObjectStore` in one bucket.

    `attempts`: how often a request is sent until the server that cannot be had is given up. `is_hurried`: asked before
    a request is sent once more; while it is true, `BRIEFLY` is the most.
    """

    def __init__(
        self,
        bucket: str,
        endpoint: str | None = None,
        region: str | None = None,
        *,
        attempts: int = BRIEFLY,
        is_hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        self._bucket = bucket
        self._is_hurried = is_hurried
        self._where = endpoint or "AWS"
        self._was_let_in = False
        # Checksums only where S3 demands them: other servers reject the trailers that boto3 adds by default.
        config = Config(
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=16,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if endpoint else {},
        )
        region = region or os.environ.get("AWS_REGION", "us-east-1")
        try:
            # A session of its own: boto3's default one remembers the first account that this process had.
            self._client: S3Client = boto3.Session().client(
                "s3", endpoint_url=endpoint, region_name=region, config=config
            )
        except (BotoCoreError, ValueError) as error:  # an unknown AWS_PROFILE, an endpoint that is no address
            raise ConfigurationError(
                f"cannot use the bucket {bucket} at {self._where}: {error}; correct AWS_PROFILE, ~/.aws or the endpoint"
            ) from error
        self._client.meta.events.register("before-call.s3.DeleteObjects", _add_content_md5)
        self._client.meta.events.register_first("needs-retry.s3", self._give_up)

    def uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def ensure_bucket(self) -> None:
        """Create the bucket if it is not there (the embedded server starts empty)."""

        def create() -> None:
            try:
                self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if _code(error) not in _MISSING | {"NoSuchBucket"}:
                    raise
                self._client.create_bucket(Bucket=self._bucket)

        self._call("create the bucket", self._bucket, create)

    def get(self, key: str) -> bytes | None:
        def read() -> bytes | None:
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key)
                data, sha256 = answer["Body"].read(), answer.get("Metadata", {}).get(_SHA256)
            except ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise
            if sha256 not in (None, sha256_hex(data)):
                raise DataError(f"{self.uri(key)} is damaged: its sha256 is not {sha256}, with which it was written")
            return data

        return self._call("read", key, read)

    def put(self, key: str, data: bytes) -> Artifact:
        sha256 = sha256_hex(data)
        metadata = {_SHA256: sha256}
        write = partial(self._client.put_object, Bucket=self._bucket, Key=key, Body=data, Metadata=metadata)
        self._call("write", key, write)
        return Artifact(uri=self.uri(key), sha256=sha256)

    def put_file(self, key: str, path: Path) -> Artifact:
        sha256 = file_sha256(path)
        self._call("write", key, lambda: self._client.upload_file(str(path), self._bucket, key))
        return Artifact(uri=self.uri(key), sha256=sha256)

    def list(self, prefix: str) -> Iterator[str]:
        yield from (found.key for found in self.describe(prefix))

    def describe(self, prefix: str) -> Iterator[ObjectInfo]:
        def read() -> list[ObjectInfo]:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            return [
                ObjectInfo(item["Key"], item.get("Size", 0), item.get("ETag", ""))
                for page in pages
                for item in page.get("Contents", [])
            ]

        yield from sorted(self._call("list", prefix, read))

    def delete(self, prefix: str) -> int:
        keys = list(self.list(prefix))
        for start in range(0, len(keys), DELETE_BATCH):
            batch = keys[start : start + DELETE_BATCH]
            self._call("delete", batch[0], partial(self._delete, batch))
        return len(keys)

    def fetch(self, artifact: Artifact) -> bytes:
        data = self.get(self._key(artifact.uri))
        if data is None:
            raise DataError(f"{artifact.uri} is missing")
        if sha256_hex(data) != artifact.sha256:
            raise DataError(f"{artifact.uri} has sha256 {sha256_hex(data)}, but {artifact.sha256} was written")
        return data

    def put_folder(self, prefix: str, folder: Path) -> Artifact:
        sums: dict[str, str] = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            sums[name] = self.put_file(f"{prefix}{name}", path).sha256
        manifest = canonical_json(sums).encode()
        self.put(f"{prefix}{MANIFEST}", manifest)
        return Artifact(uri=self.uri(prefix), sha256=sha256_hex(manifest), count=len(sums))

    def fetch_folder(self, artifact: Artifact, target: Path) -> None:
        prefix = self._key(artifact.uri)
        manifest = self.get(f"{prefix}{MANIFEST}")
        if manifest is None or sha256_hex(manifest) != artifact.sha256:
            state = "missing" if manifest is None else "not the one that was written"
            raise DataError(f"{artifact.uri}{MANIFEST} is {state}; expected sha256 {artifact.sha256}")
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            for name, sha256 in _listed(manifest, artifact.uri).items():
                path = staging / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self.download(f"{prefix}{name}", path)
                if file_sha256(path) != sha256:
                    raise DataError(f"{artifact.uri}{name} is damaged: its sha256 is not {sha256}")
            if target.exists():
                shutil.rmtree(target)
            staging.replace(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def download(self, key: str, path: Path) -> None:
        def read() -> None:
            try:
                self._client.download_file(self._bucket, key, str(path))
            except ClientError as error:
                if _code(error) in _MISSING:
                    raise DataError(f"{self.uri(key)} is missing") from error
                raise

        self._call("read", key, read)

    def _delete(self, keys: Sequence[str]) -> None:
        """Delete at most `DELETE_BATCH` objects in one request, which may succeed for some of them only."""
        answer = self._client.delete_objects(
            Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
        )
        for error in answer.get("Errors", []):
            told = ClientError(
                {"Error": {"Code": error.get("Code", ""), "Message": error.get("Message", "")}}, "DeleteObjects"
            )
            raise self._error("delete", error.get("Key", keys[0]), told)

    def _give_up(
        self,
        attempts: int,
        response: tuple[AWSResponse, object] | None = None,
        caught_exception: Exception | None = None,
        **_: object,
    ) -> None:
        """Called after each request that was sent: a handler cannot tell boto3 not to try again, but may raise."""
        if attempts < BRIEFLY or not self._is_hurried():
            return
        if caught_exception is not None:
            raise caught_exception
        if response is not None and (response[0].status_code == 429 or response[0].status_code >= 500):
            raise ConnectionError(f"the server answered with {response[0].status_code}, {attempts} times")

    def _key(self, uri: str) -> str:
        parsed = urlparse(uri)
        if parsed.scheme != "s3" or parsed.netloc != self._bucket:
            raise DataError(f"{uri} is not in the bucket {self._bucket}")
        return parsed.path.lstrip("/")

    def _call(self, verb: str, key: str, call: Callable[[], T]) -> T:
        try:
            result = call()
            self._was_let_in = True
            return result
        except TandemError:
            raise
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise StorageRefusedError(
                f"cannot {verb} s3://{self._bucket}/{key}: no credentials; "
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except ClientError as error:
            raise self._error(verb, key, error) from error
        except (BotoCoreError, boto3.exceptions.Boto3Error, OSError) as error:
            cause = error.__cause__ or error.__context__
            if isinstance(cause, ClientError):
                raise self._error(verb, key, cause) from error
            raise StorageUnavailableError(
                f"cannot {verb} s3://{self._bucket}/{key} at {self._where}: {str(error)[:256]}"
            ) from error

    def _error(self, verb: str, key: str, error: ClientError) -> TandemError:
        code = _code(error)
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        text = f"cannot {verb} s3://{self._bucket}/{key} at {self._where}: {code}"
        if code in _INVALID_KEY:
            if self._was_let_in:
                # It was rotated meanwhile; whoever starts next gets the new one.
                return StorageUnavailableError(f"{text}: the key was valid before and is no longer")
            return KeyRefusedError(f"{text}: {_REFUSED.get(code) or str(error)[:256]}")
        if code in _REFUSED:
            return StorageRefusedError(f"{text}: {_REFUSED[code]}")
        if 400 <= status < 500 and status not in (408, 409, 429):
            return StorageRefusedError(f"{text}: {str(error)[:256]}")
        return StorageUnavailableError(f"{text}: {str(error)[:256]}")


def file_sha256(path: Path) -> str:
    """The sha256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """The digest that `put_folder` gives a folder with these files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    return sha256_hex(canonical_json(sums).encode())


def folder_files(store: ObjectStore, folder: Artifact) -> dict[str, str]:
    """The files of a folder that was put into `store`, and their digests; verified.

    Raises DataError when the list is missing or damaged, and the store's errors.
    """
    return _listed(store.fetch(Artifact(uri=f"{folder.uri}{MANIFEST}", sha256=folder.sha256)), folder.uri)


def _listed(manifest: bytes, uri: str) -> dict[str, str]:
    """The files of a folder and their digests. Raises DataError for one that would lie elsewhere: whoever may write to
    the bucket must not choose where on this machine a file is written."""
    try:
        found = json.loads(manifest)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(sha256, str) for sha256 in found.values()):
        raise DataError(f"{uri}{MANIFEST} is no list of files and their digests")
    for name in found:
        path = PurePosixPath(name)
        is_inside = not path.is_absolute() and ".." not in path.parts and path.as_posix() == name != "."
        if not is_inside or not name.isprintable():
            raise DataError(f"{uri}{MANIFEST} names {name!r}, which is no file of the folder; nothing is fetched")
    return found


def _add_content_md5(params: dict[str, Any], **_: object) -> None:
    """S3 demands a checksum of this one request; servers that do not know boto3's CRC32 want the older MD5."""
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = b64encode(digest).decode()


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
