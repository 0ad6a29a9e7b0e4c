from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.unit.examples.loading import EXAMPLES, script

pytest.importorskip("sklearn")
DATA = EXAMPLES / "iris" / "data"


def splits(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.iterdir()}


def test_the_script_makes_exactly_the_data_that_is_here(tmp_path: Path) -> None:
    assert script("iris/prepare.py").main(["--out", str(tmp_path)]) == 0
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in DATA.iterdir()}


def test_the_splits_have_the_papers_sizes_and_every_species() -> None:
    for rows in splits(DATA).values():
        assert len(rows) == 50
        assert sorted(Counter(row["answer"] for row in rows).values()) in ([16, 17, 17], [16, 16, 18])


def uci(path: Path, flowers: int = 50) -> Path:
    lines = [
        f"{4 + n / 10},{3.0},{1 + k + n / 100},{0.2 + k},Iris-{species}"
        for k, species in enumerate(("setosa", "versicolor", "virginica"))
        for n in range(flowers)
    ]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


def test_the_uci_file_becomes_three_splits(tmp_path: Path) -> None:
    source = uci(tmp_path / "iris.data")
    assert script("iris/prepare.py").main(["--source", str(source), "--out", str(tmp_path / "out")]) == 0
    found = splits(tmp_path / "out")
    assert {name: len(rows) for name, rows in found.items()} == {"train": 50, "validation": 50, "test": 50}
    flowers = [tuple(row[name] for name in sorted(row) if name != "id") for rows in found.values() for row in rows]
    assert len(set(flowers)) == 150
    setosa = next(row for row in found["test"] if row["answer"] == "setosa")
    assert (setosa["sepal_width"], setosa["petal_width"], setosa["petal_length"] < 2) == (3.0, 0.2, True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5.1,3.5,1.4,Iris-setosa", "line 151: found '5.1,3.5,1.4,Iris-setosa'; four lengths and Iris-setosa"),
        ("5.1,3.5,1.4,0.2,Iris-rosa", "four lengths and Iris-setosa"),
        ("5.1,wide,1.4,0.2,Iris-setosa", "a length is a number"),
        ("5.1,3.5,1.4,0.2,Iris-setosa", "found 151 flowers; the data set has 150"),
    ],
)
def test_a_file_that_is_not_ucis_is_told(
    tmp_path: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = uci(tmp_path / "iris.data")
    source.write_text(source.read_text().rstrip() + f"\n{line}\n", encoding="utf-8")
    assert script("iris/prepare.py").main(["--source", str(source), "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
