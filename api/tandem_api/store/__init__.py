"""Object storage: the only I/O in `tandem_api`."""

from tandem_api.store.protocol import ObjectInfo, ObjectStore
from tandem_api.store.s3 import S3Store

__all__ = ["ObjectInfo", "ObjectStore", "S3Store"]
