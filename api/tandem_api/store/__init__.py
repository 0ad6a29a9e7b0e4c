"""Object storage: the only I/O in `tandem_api`."""

from tandem_api.store.protocol import ObjectStore
from tandem_api.store.s3 import S3Store

__all__ = ["ObjectStore", "S3Store"]
