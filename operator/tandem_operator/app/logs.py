"""Logging of the operator: one line for each record, as JSON or as text, on the standard error."""

from __future__ import annotations

import logging
import sys
import time
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

_FIELDS = "{asctime} {levelname} {name} {threadName} {message}"
_TIME = "%Y-%m-%dT%H:%M:%S"


class _OneLine(logging.Formatter):
    """A traceback, or a message of several lines, on one line too: collectors make a record of each line."""

    def format(self, record: logging.LogRecord) -> str:
        return " \\n ".join(super().format(record).splitlines())


def configure(log_format: Literal["json", "text"]) -> None:
    """Send everything from INFO on to the standard error. What is logged never holds a Secret: we read none."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(log_format))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # What these say at INFO and WARNING is either said by us or of no use to anybody.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("botocore").setLevel(logging.WARNING)
    logging.captureWarnings(True)


def formatter(log_format: Literal["json", "text"]) -> logging.Formatter:
    """How a record becomes its line. Times are UTC."""
    found: logging.Formatter
    if log_format == "json":
        names = {"asctime": "time", "levelname": "level", "name": "logger", "threadName": "thread"}
        found = JsonFormatter(_FIELDS, _TIME + "Z", style="{", rename_fields=names)
    else:
        found = _OneLine("{asctime}Z {levelname:7} {name}: {message}", _TIME, style="{")
    found.converter = time.gmtime
    return found
