from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.unit.examples.loading import EXAMPLES, script

from tandem_trainer.evaluate.metrics import numeric

DATA = EXAMPLES / "gsm8k" / "data"
#: Numbers that a question says in words.
WORDS = {"twice": 2, "half": 2, "two": 2, "One": 1}
STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def problems() -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for split in ("train", "validation", "test")
        for line in (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def test_the_script_makes_exactly_the_data_that_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = script("gsm8k/make_data.py")
    monkeypatch.setattr(make, "FOLDER", tmp_path)
    make.main()
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in DATA.iterdir()}


def test_there_are_enough_problems_and_no_two_are_the_same() -> None:
    found = problems()
    assert len(found) == len({row["question"] for row in found}) == len({row["id"] for row in found}) >= 200
    shapes = {re.sub(r"\d+|[A-Z]\w+", "#", row["question"]) for row in found}
    assert len(shapes) > 50
    assert {len(row["steps"]) for row in found} == {1, 2, 3}


def test_every_answer_is_what_its_steps_come_to() -> None:
    for row in problems():
        known = {int(number) for number in re.findall(r"\d+", row["question"])}
        known |= {value for word, value in WORDS.items() if re.search(rf"\b{word}\b", row["question"])}
        results = []
        for step in row["steps"]:
            match = STEP.fullmatch(step)
            assert match is not None, step
            left, right, result = int(match[1]), int(match[3]), int(match[4])
            assert {left, right} <= known, row  # from the question, or from a step before
            computed = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[match[2]]
            assert computed == result >= 0, step
            known.add(result)
            results.append(result)
        assert row["answer"] == str(results[-1])
        assert [step in row["reasoning"] for step in row["steps"]] == [True] * len(row["steps"])
        assert numeric(row["answer"], f"The answer is {row['answer']}.") == 1


def test_every_number_of_a_question_is_used_in_its_steps() -> None:
    for row in problems():
        given = [int(number) for number in re.findall(r"\d+", row["question"])]
        used = [int(number) for step in row["steps"] for number in re.findall(r"\d+", step)]
        assert set(given) <= set(used), row


def write(path: Path, *answers: str) -> Path:
    lines = [json.dumps({"question": f"Problem {n}? ", "answer": answer}) for n, answer in enumerate(answers, start=1)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def prepare(train: Path, test: Path, out: Path, *more: str) -> int:
    return int(script("gsm8k/prepare.py").main(["--train", str(train), "--test", str(test), "--out", str(out), *more]))


def test_gsm8ks_files_become_disjoint_splits_with_the_number_as_answer(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", *(f"She pays {n}*2=<<{n}*2={2 * n}>>{2 * n}.\n#### {2 * n}" for n in range(20)))
    test = write(tmp_path / "b.jsonl", "x\n#### 1,234", "y\n#### -7")
    assert prepare(train, test, tmp_path / "out", "--sizes", "8", "4") == 0
    splits = {
        name: [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation", "test")
    }
    assert {name: len(found) for name, found in splits.items()} == {"train": 8, "validation": 4, "test": 2}
    assert len({row["id"] for found in splits.values() for row in found}) == 14
    assert [row["answer"] for row in splits["test"]] == ["1234", "-7"]
    row = splits["train"][0]
    assert row["solution"] == f"She pays {int(row['answer']) // 2}*2={row['answer']}."
    assert row["question"].endswith("?")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a", "answer": "no mark 12"}', "line 1: the answer ends in 'no mark 12'; it must end in"),
        ('{"question": "a", "answer": "#### twelve"}', "it must end in '#### NUMBER'"),
        ('{"question": "a"}', "each line is a JSON object with question and answer"),
        ("[1]", "each line is a JSON object with question and answer"),
        ("{broken", "line 1: found '{broken'"),
    ],
)
def test_a_line_that_is_not_gsm8ks_is_named(
    tmp_path: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(line, encoding="utf-8")
    assert prepare(tmp_path / "a.jsonl", write(tmp_path / "b.jsonl", "#### 1"), tmp_path / "out") == 1
    assert message in capsys.readouterr().err


def test_too_few_problems_and_a_missing_file_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = write(tmp_path / "a.jsonl", "#### 1", "#### 2")
    assert prepare(few, few, tmp_path / "out") == 1
    assert "found 2 problems; 1500 are needed" in capsys.readouterr().err
    assert prepare(tmp_path / "none.jsonl", few, tmp_path / "out") == 1
    assert "none.jsonl" in capsys.readouterr().err
