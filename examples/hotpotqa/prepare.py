"""Turns HotPotQA's own files into what a run reads, with BetterTogether's splits (arXiv 2407.10930).

    python examples/hotpotqa/prepare.py --train hotpot_train_v1.1.json --test hotpot_dev_fullwiki_v1.json --out DIR
    python examples/hotpotqa/prepare.py --abstracts enwiki-20171001-pages-meta-current-withlinks-abstracts.tar.bz2 \\
        --out DIR

The first writes train, validation and test.jsonl: 1000 and 500 hard questions of the training set and 1500 of the
development set, drawn by the seed. The second writes corpus.jsonl, every paragraph of the abstracts with its title.
"""

from __future__ import annotations

import argparse
import bz2
import json
import random
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TRAIN, VALIDATION, TEST = 1000, 500, 1500
_TAG = re.compile(r"<[^>]*>")


def read_questions(path: Path, *, hard_only: bool = True) -> list[dict[str, str]]:
    """The questions of one of HotPotQA's JSON files, in its order. Raises ValueError that says what is wrong."""
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}; is the download complete?") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: found no list; HotPotQA's files are lists of questions")
    found = []
    for number, row in enumerate(rows, start=1):
        missing = {"_id", "question", "answer"} - (row.keys() if isinstance(row, dict) else set())
        if missing:
            raise ValueError(
                f"{path} item {number}: lacks {', '.join(sorted(missing))}; is it one of HotPotQA's files?"
            )
        if not hard_only or row.get("level", "hard") == "hard":
            found.append({"id": row["_id"], "question": row["question"].strip(), "answer": row["answer"].strip()})
    return found


def make_splits(train: list[Any], test: list[Any], seed: int, sizes: tuple[int, int, int]) -> dict[str, list[Any]]:
    """The splits by name: the first two are disjoint parts of `train`. Raises ValueError where there are too few."""
    chooser = random.Random(seed)
    if len(train) < sizes[0] + sizes[1] or len(test) < sizes[2]:
        raise ValueError(
            f"found {len(train)} questions for training and validation and {len(test)} for the test; "
            f"{sizes[0]} + {sizes[1]} and {sizes[2]} are needed (--sizes takes fewer, --all-levels uses easy ones too)"
        )
    ours = chooser.sample(train, sizes[0] + sizes[1])
    return {"train": ours[: sizes[0]], "validation": ours[sizes[0] :], "test": chooser.sample(test, sizes[2])}


def read_abstracts(path: Path) -> Iterator[dict[str, Any]]:
    """Title and sentences of every page of the abstracts' archive (a tar of bz2 files with one JSON object a line).

    Raises ValueError that says what is wrong.
    """
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name.endswith(".bz2") else None
                if file is None:
                    continue
                for line in bz2.decompress(file.read()).splitlines():
                    page = json.loads(line)
                    sentences = [_TAG.sub("", sentence).strip() for sentence in page["text"]]
                    if any(sentences):
                        yield {"title": page["title"], "text": [sentence for sentence in sentences if sentence]}
    except (tarfile.TarError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: cannot be read as HotPotQA's abstracts: {type(error).__name__}: {error}; is it complete?"
        ) from error


def write(path: Path, rows: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> int:
    """Write JSON Lines; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, row in enumerate(rows, start=1):  # noqa: B007 - the last number is the answer
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="HotPotQA's files, as a run reads them.")
    parser.add_argument("--train", type=Path, help="hotpot_train_v1.1.json")
    parser.add_argument("--test", type=Path, help="hotpot_dev_fullwiki_v1.json (or hotpot_dev_distractor_v1.json)")
    parser.add_argument("--abstracts", type=Path, help="the archive of Wikipedia's abstracts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=int, nargs=3, default=(TRAIN, VALIDATION, TEST))
    parser.add_argument("--all-levels", action="store_true", help="easy and medium questions, too")
    given = parser.parse_args(arguments)
    if (given.train is None) != (given.test is None) or (given.train is None and given.abstracts is None):
        parser.error("give --train and --test, or --abstracts, or all three")
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        if given.train is not None:
            train, test = (read_questions(path, hard_only=not given.all_levels) for path in (given.train, given.test))
            for name, rows in make_splits(train, test, given.seed, tuple(given.sizes)).items():
                print(f"{given.out / name}.jsonl: {write(given.out / f'{name}.jsonl', rows)} questions")
        if given.abstracts is not None:
            count = write(given.out / "corpus.jsonl", read_abstracts(given.abstracts))
            print(f"{given.out / 'corpus.jsonl'}: {count} passages")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
