"""The error tree of Tandem. Every error knows whether a retry can help and which exit code a worker ends with.

Exit codes are part of the stage contract (docs/concepts.md): 0 done, 42 bad configuration, 43 permanent data or
storage error, 143 preempted after a checkpoint, anything else is retried and counted.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_RETRYABLE = 1
EXIT_CONFIGURATION = 42
EXIT_PERMANENT = 43
EXIT_PREEMPTED = 143

#: Exit codes that no retry can change.
PERMANENT_EXIT_CODES = frozenset({EXIT_CONFIGURATION, EXIT_PERMANENT})


class TandemError(Exception):
    """Root of our errors. `code` is a CamelCase reason fit for a Kubernetes condition."""

    code = "InternalError"
    exit_code = EXIT_RETRYABLE


class ConfigurationError(TandemError):
    """The spec, the program or the metric is wrong: the user must change it, no retry helps."""

    code = "BadConfiguration"
    exit_code = EXIT_CONFIGURATION


class DataError(TandemError):
    """An input (data set, trace file, adapter) is missing, malformed or has changed since the run began."""

    code = "BadData"
    exit_code = EXIT_PERMANENT


class StorageRefusedError(TandemError):
    """The object store refuses for good: wrong key, no permission, no such bucket, no space left."""

    code = "StorageRefused"
    exit_code = EXIT_PERMANENT


class KeyRefusedError(StorageRefusedError):
    """The object store does not know the key, or no longer."""


class StorageUnavailableError(TandemError):
    """The object store does not answer, or answers with a passing fault. A later attempt may succeed."""

    code = "StorageUnavailable"


class ServingError(TandemError):
    """The model server is dead, overloaded beyond patience, or does not serve the wanted model or adapter.

    Never a score: a stage that meets it fails its attempt and is retried.
    """

    code = "ServingUnavailable"


class AdapterMissingError(ServingError):
    """The server answers, but not under the wanted adapter's name."""

    code = "AdapterMissing"


class WrongAdapterError(ServingError):
    """The server answers under the adapter's name, but with other weights."""

    code = "WrongAdapter"


class ErrorRateError(TandemError):
    """More examples failed than `evaluation.maxErrorRate` allows."""

    code = "TooManyErrors"
    exit_code = EXIT_CONFIGURATION


class PreemptedError(TandemError):
    """The worker was asked to stop (SIGTERM) and has kept what it had."""

    code = "Preempted"
    exit_code = EXIT_PREEMPTED
