"""Writes data/{train,validation,test}.jsonl: scikit-learn's copy of Fisher's iris data, 50 flowers each.

    python examples/iris/make_data.py

The sizes are BetterTogether's (arXiv 2407.10930); the split is seeded and stratified by species. Needs scikit-learn;
the files it writes are in the repository, so that a run does not.
"""

from __future__ import annotations

import json
from pathlib import Path

from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split

#: With 0, the two flowers that have the same four lengths would lie in two splits.
SEED = 1
FOLDER = Path(__file__).parent / "data"


def main() -> None:
    iris = load_iris()
    # "petal length (cm)" -> "petal_length": the unit is in the program's instruction.
    names = [name.removesuffix(" (cm)").replace(" ", "_") for name in iris.feature_names]
    rows = [
        {name: float(value) for name, value in sorted(zip(names, flower, strict=True))}
        | {"answer": str(iris.target_names[species])}
        for flower, species in zip(iris.data, iris.target, strict=True)
    ]
    train, rest = train_test_split(rows, train_size=50, random_state=SEED, stratify=[row["answer"] for row in rows])
    validation, test = train_test_split(
        rest, train_size=50, random_state=SEED, stratify=[row["answer"] for row in rest]
    )
    FOLDER.mkdir(exist_ok=True)
    for split, flowers in (("train", train), ("validation", validation), ("test", test)):
        lines = [json.dumps({"id": f"{split}-{number:02d}", **row}) for number, row in enumerate(flowers, start=1)]
        (FOLDER / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
