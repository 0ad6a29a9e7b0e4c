"""docs/cli.md is held against the command line: every command, every option, every exit code, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.unit.operator.cli.cluster_case import tandem

from tandem_operator.cli import errors
from tandem_operator.cli.cluster.doctor import checks
from tandem_operator.cli.main import app

TEXT = (Path(__file__).parents[4] / "docs/cli.md").read_text(encoding="utf-8")
#: The page's sections, by their titles.
SECTIONS = {
    part.partition("\n")[0].strip("` "): part.partition("\n")[2]
    for part in re.split(r"^##+ ", TEXT, flags=re.MULTILINE)
}
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def options_of(text: str) -> set[str]:
    """The options in the first column of a section's tables."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `-")]
    return {name for row in rows for name in re.findall(r"`(--?[A-Za-z-]+)`", row)}


COMMON = options_of(SECTIONS["For all commands"])


def test_every_command_is_in_the_table_and_has_a_section() -> None:
    told = re.findall(r"^\| \[`tandem ([a-z]+)`\]\(#tandem-([a-z]+)\)", TEXT, flags=re.MULTILINE)
    assert {name for name, _ in told} == {anchor for _, anchor in told} == set(COMMANDS)
    assert {title.removeprefix("tandem ") for title in SECTIONS if title.startswith("tandem ")} == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_of_a_command_is_told_and_no_other(name: str) -> None:
    section = SECTIONS[f"tandem {name}"]
    real = {option for parameter in COMMANDS[name].params for option in parameter.opts if option.startswith("-")}
    assert options_of(section) == real - COMMON
    assert f"$ tandem {name}" in section


def test_the_common_options_are_those_of_commands_on_a_cluster() -> None:
    real = {option for parameter in COMMANDS["watch"].params for option in parameter.opts if option.startswith("-")}
    assert COMMON - {"--help"} == real - {"--help"}


def test_every_exit_code_is_told() -> None:
    codes = {str(value) for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert set(re.findall(r"^\| (\d+) \|", SECTIONS["Exit codes"], flags=re.MULTILINE)) == codes


def test_every_check_of_the_doctor_is_told() -> None:
    source = Path(checks.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r'\b(?:ok|warn|fail)\(\s*"([a-z]+)"', source)) | {"storage", "data"}
    assert len(names) > 10
    assert {name for name in names if f"`{name}`" not in SECTIONS["tandem doctor"]} == set()


def test_every_command_explains_itself_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COMMANDS:
        said = tandem(name, "--help").stdout
        assert "Usage: " in said
        assert max(map(len, said.splitlines())) <= 80
