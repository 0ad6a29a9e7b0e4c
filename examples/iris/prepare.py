"""Writes the iris flowers as a run reads them: 50 each for training, validation and test, as in BetterTogether.

    python examples/iris/prepare.py                                    # scikit-learn's copy, into data/
    python examples/iris/prepare.py --source iris.data --out DIR       # the file of the UCI repository

The split is seeded and stratified by species (arXiv 2407.10930 has the sizes). Needs scikit-learn; what it writes from
its copy is in the repository, so that a run does not.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split

#: With 0, the two flowers that have the same four lengths would lie in two splits.
SEED = 1
SIZE = 50
SPECIES = ("setosa", "versicolor", "virginica")
#: The columns of the UCI file, before the species.
COLUMNS = ("sepal_length", "sepal_width", "petal_length", "petal_width")


def installed_flowers() -> list[dict[str, Any]]:
    """Scikit-learn's copy of Fisher's data."""
    iris = load_iris()
    return [
        _flower(lengths, str(iris.target_names[species]))
        for lengths, species in zip(iris.data, iris.target, strict=True)
    ]


def read_flowers(path: Path) -> list[dict[str, Any]]:
    """The flowers of the UCI file: four lengths and `Iris-SPECIES` a line, no header. Raises ValueError."""
    flowers = []
    with path.open(encoding="utf-8", newline="") as file:
        for cells in filter(None, reader := csv.reader(file)):
            where = f"{path} line {reader.line_num}"
            species = cells[-1].strip().removeprefix("Iris-")
            if len(cells) != 5 or species not in SPECIES:
                raise ValueError(f"{where}: found {','.join(cells)!r}; four lengths and Iris-setosa, -versicolor, ...")
            try:
                flowers.append(_flower(cells[:4], species))
            except ValueError as error:
                raise ValueError(f"{where}: found {','.join(cells)!r}; a length is a number") from error
    if len(flowers) != 3 * SIZE:
        raise ValueError(f"{path}: found {len(flowers)} flowers; the data set has {3 * SIZE}")
    return flowers


def _flower(lengths: Any, species: str) -> dict[str, Any]:
    measured = {name: float(length) for name, length in zip(COLUMNS, lengths, strict=True)}
    return {**dict(sorted(measured.items())), "answer": species}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The iris flowers, as a run reads them.")
    parser.add_argument("--source", type=Path, help="iris.data of the UCI repository; default: scikit-learn's copy")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    given = parser.parse_args(arguments)
    try:
        rows = installed_flowers() if given.source is None else read_flowers(given.source)
        train, rest = train_test_split(rows, train_size=SIZE, random_state=SEED, stratify=[r["answer"] for r in rows])
        validation, test = train_test_split(
            rest, train_size=SIZE, random_state=SEED, stratify=[row["answer"] for row in rest]
        )
        given.out.mkdir(parents=True, exist_ok=True)
        for split, flowers in (("train", train), ("validation", validation), ("test", test)):
            lines = [json.dumps({"id": f"{split}-{number:02d}", **row}) for number, row in enumerate(flowers, start=1)]
            (given.out / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
