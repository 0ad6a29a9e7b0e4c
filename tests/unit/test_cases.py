"""The table of faults: it counts what was survived, and cannot hide what was not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

def test_ten_of_ten(record_cases):
    record_cases("kills", 10, 10)

@pytest.mark.parametrize("number", [1, 2])
def test_two_halves(record_cases, number):
    record_cases("views", 3, 3 - number)
    assert number == 0

def test_counted_as_survived_and_failed_then(record_cases):
    record_cases("kills", 5, 5)
    assert False

@pytest.mark.case("serving")
def test_one_case(): pass

@pytest.mark.case("serving")
def test_another_that_is_lost():
    assert False

@pytest.fixture
def broken():
    raise OSError

@pytest.mark.case("store")
def test_that_never_began(broken): pass

@pytest.fixture
def untidy():
    yield
    raise OSError

def test_that_leaves_something(record_cases, untidy):
    record_cases("scale", 1, 1)

def test_without_cases(): pass
"""


@pytest.mark.parametrize("parallel", [(), ("-n", "2")], ids=["alone", "side by side"])
def test_the_table_counts_each_case_once_and_a_failure_as_lost(tmp_path: Path, parallel: tuple[str, ...]) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.cases", "--rootdir", str(tmp_path), *parallel]
    done = subprocess.run(
        [*command, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    table = done.stdout.partition(" faults ")[2].splitlines()
    found = {line.split()[0]: [int(word) for word in line.split()[1:]] for line in table[2:8]}
    assert found == {
        "kills": [16, 15, 1],
        "views": [6, 3, 3],
        "serving": [2, 1, 1],
        "store": [1, 0, 1],
        "scale": [2, 1, 1],
        "all": [27, 20, 7],
    }, done.stdout
