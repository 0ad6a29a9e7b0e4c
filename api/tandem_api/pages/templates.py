"""How templates of pages are read: what is missing is an error, and numbers are written by `formats`."""

from __future__ import annotations

from jinja2 import BaseLoader, Environment, StrictUndefined

from tandem_api.pages import formats

_FILTERS = ("percent", "interval", "points", "count", "counted", "duration", "measure", "text")


def environment(loader: BaseLoader | None = None) -> Environment:
    """An environment with the filters of `formats`. `loader`: where templates that others name come from."""
    made = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: formats.ABSENT if value is None else value,
    )
    made.filters |= {name: getattr(formats, name) for name in _FILTERS}
    return made
