"""The page `report.html`: one self-contained file that tells what a run did and what it came to."""

from __future__ import annotations

from functools import cache
from importlib import resources

from jinja2 import Environment, StrictUndefined, Template

from tandem_trainer.report.facts import Facts


def render_report(facts: Facts) -> str:
    """The page, complete and escaped."""
    return _template().render(facts=facts)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)
