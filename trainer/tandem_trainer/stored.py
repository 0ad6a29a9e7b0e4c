"""Values that lie in the object store as JSON."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tandem_api.errors import DataError
from tandem_api.store import ObjectStore

M = TypeVar("M", bound=BaseModel)


def stored(store: ObjectStore, key: str, kind: type[M], what: str, fix: str) -> M | None:
    """The object as a value; None where there is none.

    Raises DataError for one that is damaged, or of another version: that it is not `what`, and `fix`.
    """
    data = store.get(key)
    if data is None:
        return None
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise DataError(f"{store.uri(key)} is not {what} ({error.error_count()} problems); {fix}") from error
