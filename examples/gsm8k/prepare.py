"""Turns GSM8K's own files into what a run reads, with BetterTogether's splits (arXiv 2407.10930).

    python examples/gsm8k/prepare.py --train train.jsonl --test test.jsonl --out DIR

writes train, validation and test.jsonl: 1000 and 500 problems of the training set, drawn by the seed, and all 1319 of
the test set. An answer is the number after `####`; what stands before it is kept as `solution`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from pathlib import Path

TRAIN, VALIDATION = 1000, 500
_CALCULATION = re.compile(r"<<[^>]*>>")
_NUMBER = re.compile(r"-?\d[\d,]*(\.\d+)?")


def read_problems(path: Path, name: str) -> list[dict[str, str]]:
    """The problems of one of GSM8K's files, in its order. Raises ValueError that says what is wrong, and where."""
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, text = row["question"], row["answer"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} line {number}: found {line[:60]!r}; each line is a JSON object with question and answer"
            ) from error
        solution, mark, answer = text.rpartition("####")
        if not mark or not _NUMBER.fullmatch(answer.strip()):
            raise ValueError(f"{path} line {number}: the answer ends in {text[-40:]!r}; it must end in '#### NUMBER'")
        problems.append(
            {
                "id": f"{name}-{number}",
                "question": question.strip(),
                "answer": answer.strip().replace(",", ""),
                "solution": _CALCULATION.sub("", solution).strip(),
            }
        )
    return problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="GSM8K's files, as a run reads them.")
    parser.add_argument("--train", type=Path, required=True, help="train.jsonl of GSM8K")
    parser.add_argument("--test", type=Path, required=True, help="test.jsonl of GSM8K")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=int, nargs=2, default=(TRAIN, VALIDATION), help="training, validation")
    given = parser.parse_args(arguments)
    size = sum(given.sizes)
    try:
        train, test = read_problems(given.train, "train"), read_problems(given.test, "test")
        if len(train) < size:
            raise ValueError(f"{given.train}: found {len(train)} problems; {size} are needed (--sizes takes fewer)")
        chosen = random.Random(given.seed).sample(train, size)
        splits = {"train": chosen[: given.sizes[0]], "validation": chosen[given.sizes[0] :], "test": test}
        given.out.mkdir(parents=True, exist_ok=True)
        for name, rows in splits.items():
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            (given.out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"{given.out / name}.jsonl: {len(rows)} problems")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
