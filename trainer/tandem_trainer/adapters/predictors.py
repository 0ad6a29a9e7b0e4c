"""A folder with an adapter for each of several predictors: complete adapters in the subfolders 0, 1, ..., and the file
that says whose they are. Predictors' names, such as `hop[0].generate`, are no names of folders. No torch here.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from tandem_api.adapters import PREDICTORS, PredictorAdapters
from tandem_api.canonical import canonical_json
from tandem_api.contract import Endpoint, served_names
from tandem_api.errors import DataError
from tandem_api.store import ObjectStore
from tandem_api.store.s3 import folder_files
from tandem_api.v1alpha1.status import Artifact


def write_predictors(folder: Path, predictors: tuple[str, ...]) -> None:
    """Say in `folder` whose its subfolders are."""
    index = PredictorAdapters(predictors=predictors)
    (folder / PREDICTORS).write_text(canonical_json(index.model_dump(mode="json")) + "\n", encoding="utf-8")


def read_predictors(folder: Path) -> tuple[str, ...]:
    """The predictor of each subfolder; none if the folder is one adapter. Raises DataError for a damaged file."""
    path = folder / PREDICTORS
    return _parse(path.read_bytes(), str(path)) if path.is_file() else ()


def adapter_folders(folder: Path) -> tuple[Path, ...]:
    """The adapters in `folder`: the folder itself, or the subfolders of several predictors'."""
    return tuple(folder / str(number) for number, _ in enumerate(read_predictors(folder))) or (folder,)


def adapter_set(adapter: Artifact, predictors: tuple[str, ...]) -> Artifact:
    """The artifact of a folder with adapters of these predictors; without any it is one adapter."""
    return adapter.model_copy(update={"adapters": len(predictors) or None})


def fetch_predictors(store: ObjectStore, adapter: Artifact) -> tuple[str, ...]:
    """The same of a folder in the store, verified.

    Raises DataError when the folder is missing, damaged, or holds another number of adapters than its artifact says,
    and the store's errors.
    """
    sums = folder_files(store, adapter)
    uri = f"{adapter.uri}{PREDICTORS}"
    predictors = _parse(store.fetch(Artifact(uri=uri, sha256=sums[PREDICTORS])), uri) if PREDICTORS in sums else ()
    if len(predictors) != (adapter.adapters or 0):
        raise DataError(f"{adapter.uri} has adapters of {len(predictors)} predictors, not of {adapter.adapters or 0}")
    return predictors


def names_by_predictor(store: ObjectStore, endpoint: Endpoint) -> dict[str, str]:
    """The served name for each predictor that has an adapter of its own. Raises as `fetch_predictors`."""
    adapter = endpoint.adapter
    if adapter is None or adapter.adapters is None:
        return {}
    return dict(zip(fetch_predictors(store, adapter), served_names(endpoint.model, adapter), strict=True))


def _parse(content: bytes, where: str) -> tuple[str, ...]:
    try:
        return PredictorAdapters.model_validate_json(content).predictors
    except ValidationError as error:
        raise DataError(f"{where} does not tell whose the adapters are: {error.errors()[0]['msg']}") from error
