"""One table of what the tests have survived: class, cases, survived, lost.

A test says how many cases it was with `record_cases(class_name, cases, survived)`; or it is one case of the class that
its mark names: `@pytest.mark.case("serving")`. A test that fails has lost one case at least. Works with pytest-xdist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

RecordCases = Callable[[str, int, int], None]
_PROPERTY: Final = "cases"


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", "case(class_name): the test is one case of that class in the table of faults")


@pytest.fixture
def record_cases(request: pytest.FixtureRequest) -> RecordCases:
    """`record_cases(class_name, cases, survived)`: to be added to that class's line."""

    def record(class_name: str, cases: int, survived: int) -> None:
        request.node.user_properties.append((_PROPERTY, (class_name, cases, survived)))

    return record


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """What a test did not count itself is one case; a failure counts as lost whatever the test has said."""
    report: pytest.TestReport = yield
    said = [value for name, value in report.user_properties if name == _PROPERTY]
    mark = item.get_closest_marker("case")
    if report.when != "call":  # what the call has said was counted with it
        report.user_properties = []
    elif report.passed and not said and mark is not None:
        report.user_properties.append((_PROPERTY, (mark.args[0], 1, 1)))
    counts = said or mark is not None or "faults" in item.path.parts
    if report.failed and counts and all(cases == survived for _, cases, survived in said):
        class_name = said[-1][0] if said else mark.args[0] if mark is not None else item.nodeid
        report.user_properties.append((_PROPERTY, (class_name, 1, 0)))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table."""
    table = tabulate([report for reports in terminalreporter.stats.values() for report in reports])
    if not table:
        return
    table["all"] = [sum(column) for column in zip(*table.values(), strict=True)]
    width = max(map(len, ["class", *table]))
    terminalreporter.write_sep("=", "faults")
    terminalreporter.write_line(f"{'class':{width}}  cases  survived  lost")
    for name, (cases, survived) in table.items():
        terminalreporter.write_line(f"{name:{width}}  {cases:5}  {survived:8}  {cases - survived:4}")


def tabulate(reports: list[Any]) -> dict[str, list[int]]:
    """Class -> [cases, survived], in the order in which they were heard of."""
    table: dict[str, list[int]] = {}
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == _PROPERTY:
                class_name, cases, survived = value
                line = table.setdefault(class_name, [0, 0])
                line[0] += cases
                line[1] += survived
    return table
