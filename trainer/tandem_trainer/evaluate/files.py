"""Where data sets lie and how their files are read: file:, s3://, configmap:// and hf://; JSON Lines, JSON and CSV by
ending."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from tandem_api.contract import ENV_CONFIGMAPS
from tandem_api.errors import ConfigurationError, DataError, StorageUnavailableError
from tandem_api.store import ObjectStore, S3Store
from tandem_api.v1alpha1 import Spec

#: A line number (from 1; for .json the position in the list) and the row's fields.
Row = tuple[int, dict[str, Any]]
#: More bad lines than this of one file are counted, not listed.
MAX_PROBLEMS = 10

_CONFIGMAP = re.compile(r"configmap://(?P<name>[a-z0-9][a-z0-9.-]*)/(?P<key>(?!\.\.)[\w.-]+)")
_HF = re.compile(r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w.-]+))?/(?P<path>.+)")


def read_rows(uri: str, spec: Spec, store: ObjectStore, where: str) -> list[Row]:
    """The rows of the data set at `uri`. `where` names it in errors: the field and the URI.

    Raises ConfigurationError for a URI or ending that is not known, DataError for a file that is missing or malformed
    (every bad line, up to `MAX_PROBLEMS`), StorageUnavailableError when its server cannot be read now.
    """
    parse = _parser(uri, where)
    data = _read_bytes(uri, spec, store, where)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{where} line {line}: not UTF-8 text; save the file as UTF-8") from error
    return parse(text, where)


def _parser(uri: str, where: str) -> Callable[[str, str], list[Row]]:
    parsers = {".jsonl": _parse_jsonl, ".json": _parse_json, ".csv": _parse_csv}
    ending = Path(urlsplit(uri).path or uri).suffix.lower()
    if ending not in parsers:
        found = f"ends in {ending!r}" if ending else "has no ending"
        raise ConfigurationError(f"{where}: the file {found}; allowed: {', '.join(parsers)}")
    return parsers[ending]


def _read_bytes(uri: str, spec: Spec, store: ObjectStore, where: str) -> bytes:
    scheme = uri.partition(":")[0]
    if scheme == "file":
        return _read_file(uri, where)
    if scheme == "s3":
        return read_s3(uri, spec, store, where)
    if scheme == "configmap":
        return _read_path(configmap_file(uri, where), where)
    if scheme == "hf":
        return _read_path(hub_file(uri, where), where)
    raise ConfigurationError(
        f"{where}: {scheme}: cannot be read here; allowed: file:path, s3://bucket/key, configmap://name/key, "
        "hf://datasets/owner/name/path"
    )


def _read_file(uri: str, where: str) -> bytes:
    return _read_path(Path(unquote(urlsplit(uri).path)), where)


def _read_path(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{where}: {path.absolute()} does not exist; correct the uri or create the file") from error
    except OSError as error:
        raise DataError(f"{where}: {path.absolute()} cannot be read: {error.strerror}") from error


def configmap_file(uri: str, where: str) -> Path:
    """The file of `configmap://NAME/KEY`, where the ConfigMap is mounted. Raises what `configmap_folder` raises, and
    DataError when it has no such key."""
    match = _CONFIGMAP.fullmatch(uri)
    if match is None:
        raise ConfigurationError(f"{where}: allowed: configmap://NAME/KEY")
    folder = configmap_folder(match["name"], where)
    path = folder / match["key"]
    if not path.exists():
        keys = ", ".join(configmap_keys(folder)) or "none"
        raise DataError(f"{where}: the ConfigMap has no key {match['key']!r}; its keys: {keys}")
    return path


def configmap_folder(name: str, where: str) -> Path:
    """The folder that the ConfigMap is mounted on: one file a key.

    Raises ConfigurationError on one machine, which has no ConfigMaps, DataError when this one is not mounted.
    """
    mounts = os.environ.get(ENV_CONFIGMAPS)
    if not mounts:
        raise ConfigurationError(f"{where}: only a cluster has ConfigMaps; write file:PATH")
    folder = Path(mounts, name)
    if not folder.is_dir():
        found = ", ".join(sorted(path.name for path in Path(mounts).glob("*"))) or "none"
        raise DataError(f"{where}: the ConfigMap {name!r} is not mounted at {folder}; mounted there: {found}")
    return folder


def configmap_keys(folder: Path) -> list[str]:
    """The keys in a mounted ConfigMap's folder. Each is a link into the hidden folder of one version of them all."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".."))


def read_s3(uri: str, spec: Spec, store: ObjectStore, where: str) -> bytes:
    """An object of the run's own bucket, through its store, or of another one at the same server, with the same keys.

    Raises DataError when there is none.
    """
    parts = urlsplit(uri)
    key = parts.path.lstrip("/")
    if store.uri(key) != uri:
        s3 = spec.storage.s3 if spec.storage else None
        store = S3Store(parts.netloc, s3.endpoint if s3 else None, s3.region if s3 else None)
    data = store.get(key)
    if data is None:
        raise DataError(f"{where}: there is no such object; correct the uri or upload it")
    return data


def hub_file(uri: str, where: str) -> Path:
    """One file of a data set on the Hugging Face Hub, in its local cache; downloaded if it is not there.

    Raises DataError where there is no such file, StorageUnavailableError when the Hub does not answer.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    match = _HF.fullmatch(uri)
    if match is None:
        raise ConfigurationError(f"{where}: allowed: hf://datasets/OWNER/NAME[@REVISION]/PATH")
    try:
        path = hf_hub_download(match["repo"], match["path"], repo_type="dataset", revision=match["revision"])
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        raise DataError(f"{where}: the Hub has no such file, or hides it; check the name, set HF_TOKEN") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        if constants.HF_HUB_OFFLINE:
            raise DataError(
                f"{where}: not in the Hub's cache, and HF_HUB_OFFLINE forbids a download; unset it or use file:"
            ) from error
        raise StorageUnavailableError(f"{where}: the Hub cannot be read: {str(error)[:256]}") from error
    return Path(path)


def _parse_jsonl(text: str, where: str) -> list[Row]:
    rows: list[Row] = []
    problems: list[str] = []
    # Split at newlines only: other separators that str.splitlines knows may stand inside a JSON text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            problems.append(f"{where} line {number}: not JSON: {_json_error(error)}; found {line.strip()[:60]!r}")
            continue
        if isinstance(value, dict):
            rows.append((number, value))
        else:
            problems.append(f"{where} line {number}: found {_kind(value)}; each line is a JSON object: {{...}}")
    _raise_all(problems, where)
    return rows


def _parse_json(text: str, where: str) -> list[Row]:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} line {error.lineno}: not JSON: {error.msg} at character {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {_json_error(error)}") from error
    if not isinstance(value, list):
        raise DataError(f"{where}: found {_kind(value)}; a .json data set is a list of objects (or use .jsonl)")
    problems = [
        f"{where} item {number}: found {_kind(item)}; each item is a JSON object"
        for number, item in enumerate(value, start=1)
        if not isinstance(item, dict)
    ]
    _raise_all(problems, where)
    return list(enumerate(value, start=1))


def _parse_csv(text: str, where: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    problems: list[str] = []
    header: list[str] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = _checked_header(cells, where)
            elif len(cells) != len(header):
                problems.append(
                    f"{where} line {reader.line_num}: found {len(cells)} columns; the header has {len(header)}"
                )
            else:
                rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        problems.append(f"{where} line {reader.line_num}: not CSV: {error}")
    _raise_all(problems, where)
    return rows


def _checked_header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if "" in names or len(set(names)) != len(names):
        raise DataError(f"{where} line 1: the header {names} has an empty or repeated name; name each column once")
    return names


def _raise_all(problems: list[str], where: str) -> None:
    if problems:
        rest = len(problems) - MAX_PROBLEMS
        more = [f"{where}: {rest} more bad lines"] if rest > 0 else []
        raise DataError("\n".join(problems[:MAX_PROBLEMS] + more))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value; use null or leave the field out")


def _json_error(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value}")
