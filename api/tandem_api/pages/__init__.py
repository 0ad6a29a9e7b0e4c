"""How our pages look: the report, which the trainer writes, and the live page, which the command line serves. Needs
markupsafe, which is there where jinja2 is."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def style() -> str:
    """The style sheet of all pages: colours for light, dark and paper, text, tables, figures."""
    return resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
