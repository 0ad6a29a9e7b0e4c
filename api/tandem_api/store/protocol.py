"""What Tandem needs of an object store. Keys are relative to the store's bucket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tandem_api.v1alpha1.status import Artifact


@dataclass(frozen=True, order=True)
class ObjectInfo:
    """What a listing tells of an object."""

    key: str
    size: int
    """In bytes."""
    etag: str
    """Changes with the content; no digest that could be computed here."""


class ObjectStore(Protocol):
    """A flat, strongly consistent store of objects; every put replaces the whole object at once.

    Every method raises StorageRefusedError where no retry can help (rights, no bucket, no space) and
    StorageUnavailableError where one may.
    """

    def uri(self, key: str) -> str:
        """`s3://bucket/key`."""

    def get(self, key: str) -> bytes | None:
        """The object, or None when there is none. Raises DataError when it is not what `put` wrote."""

    def put(self, key: str, data: bytes) -> Artifact:
        """Write an object; idempotent. Returns its URI and sha256."""

    def put_file(self, key: str, path: Path) -> Artifact:
        """Upload one file, in parts if it is large."""

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that start with `prefix`, in lexical order."""

    def describe(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose keys start with `prefix`, in lexical order of their keys."""

    def download(self, key: str, path: Path) -> None:
        """Write the object into the file `path`, whose folder exists. Raises DataError when there is no such object."""

    def delete(self, prefix: str) -> int:
        """Remove every object whose key starts with `prefix`. Returns how many there were."""

    def fetch(self, artifact: Artifact) -> bytes:
        """The object at an artifact's URI. Raises DataError when it is missing or its sha256 differs."""

    def put_folder(self, prefix: str, folder: Path) -> Artifact:
        """Upload a folder, its manifest (`sha256sums.json`) last. The artifact's sha256 is the manifest's digest."""

    def fetch_folder(self, artifact: Artifact, target: Path) -> None:
        """Download a folder that `put_folder` wrote. `target` appears whole or not at all, every file verified.

        Raises DataError when a file is missing or its sha256 differs.
        """
