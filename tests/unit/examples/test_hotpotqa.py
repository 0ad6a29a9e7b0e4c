from __future__ import annotations

import bz2
import io
import json
import re
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils import DummyLM
from tests.unit.examples.loading import EXAMPLES, script

from tandem_api.v1alpha1.run import parse_run
from tandem_trainer.program.loading import load_program
from tandem_trainer.retrieval import BM25

FOLDER = EXAMPLES / "hotpotqa"
DATA = FOLDER / "data"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def questions() -> list[dict[str, Any]]:
    return [row for split in ("train", "validation", "test") for row in rows(split)]


@pytest.fixture(scope="module")
def world() -> dict[str, str]:
    return {row["title"]: row["text"] for row in rows("corpus")}


def test_the_script_makes_exactly_the_data_that_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = script("hotpotqa/make_data.py")
    monkeypatch.setattr(make, "FOLDER", tmp_path)
    make.main()
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in DATA.iterdir()}
    assert sum(map(len, made.values())) < 400_000


def test_there_are_enough_paragraphs_and_questions(questions: list[Any], world: dict[str, str]) -> None:
    assert len(rows("corpus")) == len(world) >= 300
    assert len(questions) >= 150
    assert len({" ".join(sentences) for sentences in world.values()}) == len(world)


def test_the_splits_share_no_question_and_no_first_paragraph(questions: list[Any]) -> None:
    assert len({row["question"] for row in questions}) == len(questions)
    assert len({row["supporting_facts"][0][0] for row in questions}) == len(questions)
    assert len({row["id"] for row in questions}) == len(questions)


def test_each_answer_follows_from_two_paragraphs_and_from_neither_alone(
    questions: list[Any], world: dict[str, Any]
) -> None:
    for row in questions:
        (first, one), (second, two) = row["supporting_facts"]
        assert first in row["question"]
        assert second not in row["question"]  # which one it is stands in the first paragraph
        assert second in world[first][one]
        answer = re.compile(rf"\b{re.escape(row['answer'])}\b")
        assert answer.search(world[second][two])
        assert not answer.search(" ".join(world[first]))
        assert not answer.search(row["question"])


def test_the_world_states_each_fact_once(world: dict[str, Any]) -> None:
    """So that an answer cannot be contradicted: nobody is born twice, and nothing is founded in two years."""
    make = script("hotpotqa/make_data.py")
    entries = make.make_world(make.random.Random(make.SEED))
    assert {title: entry.sentences for title, entry in entries.items()} == world
    for entry in entries.values():
        stated = Counter(sentence for sentence, value in entry.facts.values())
        for relation, (sentence, value) in entry.facts.items():
            assert value in entry.sentences[sentence], (entry.title, relation)
            elsewhere = [text for position, text in enumerate(entry.sentences) if position != sentence]
            assert value not in " ".join(elsewhere), (entry.title, relation)
        assert max(stated.values()) <= 2
        for link in ("author", "founder", "designer", "birthplace", "university", "seat", "town", "river"):
            if link in entry.facts:
                assert entry.facts[link][1] in entries


def test_people_are_grown_up_when_they_write_found_and_build(world: dict[str, Any]) -> None:
    make = script("hotpotqa/make_data.py")
    entries = make.make_world(make.random.Random(make.SEED))
    deeds = {"book": ("author", "published"), "company": ("founder", "started"), "bridge": ("designer", "opened")}
    checked = 0
    for entry in entries.values():
        if entry.kind in deeds:
            who, when = deeds[entry.kind]
            born = int(entries[entry.facts[who][1]].facts["born"][1])
            assert 24 <= int(entry.facts[when][1]) - born <= 60
            checked += 1
    assert checked == 45 + 40 + 25


@pytest.mark.usefixtures("cache")
def test_bm25_finds_both_paragraphs_with_the_oracles_queries(questions: list[Any]) -> None:
    retriever = BM25.open("file:data/corpus.jsonl", base=FOLDER)
    for row in questions:
        (first, _), (second, _) = row["supporting_facts"]
        found = [passage.title for passage in retriever.search(row["question"], 3)]
        assert first in found, row["question"]
        assert retriever.search(second, 3)[0].title == second, row["question"]


@pytest.mark.usefixtures("cache")
def test_the_program_searches_twice_and_gathers_passages_without_repeating_one() -> None:
    multihop = script("hotpotqa/multihop.py")
    program = multihop.MultiHop("file:data/corpus.jsonl")
    assert [name for name, _ in program.named_predictors()] == [
        "generate_query[0].predict",
        "generate_query[1].predict",
        "generate_answer.predict",
    ]
    row = rows("test")[0]
    (first, _), (second, _) = row["supporting_facts"]
    lm = DummyLM(
        [
            {"reasoning": "who", "query": first},
            {"reasoning": "where", "query": f"{first} {second}"},
            {"reasoning": "so", "answer": row["answer"]},
        ]
    )
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        prediction = program(question=row["question"])
    assert prediction.answer == row["answer"]
    titles = [passage.partition(" | ")[0] for passage in prediction.context]
    assert {first, second} <= set(titles)
    assert 3 <= len(titles) == len(set(titles)) <= 6
    prompts = [call["messages"][-1]["content"] for call in lm.history]
    assert (first in prompts[1], second in prompts[2]) == (True, True)
    assert f"{first} |" not in prompts[0]


@pytest.mark.usefixtures("cache")
def test_the_small_program_shows_every_predictor_a_whole_example() -> None:
    import yaml

    run = parse_run(yaml.safe_load((FOLDER / "run.yaml").read_text(encoding="utf-8")))
    program = load_program(run.spec, code_path=FOLDER)
    for name in program.predictors:
        (demo,) = program.vanilla.predictors[name].demos
        assert demo.keys() == program.signature(name).fields.keys()
        (message,) = program.render(name, program.vanilla.predictors[name], {"context": [], "question": "Who?"})
        assert message["content"].endswith("Context: []\nQuestion: Who?\nReasoning:")
        assert f"\nReasoning: {demo['reasoning']}\n" in message["content"]


@pytest.mark.usefixtures("cache")
def test_a_missing_corpus_is_named_with_its_field() -> None:
    multihop = script("hotpotqa/multihop.py")
    with pytest.raises(
        Exception, match=r"program.arguments.corpus \(file:nothing.jsonl\): .*nothing.jsonl does not ex"
    ):
        multihop.MultiHop("file:nothing.jsonl")


def question(number: int, level: str = "hard") -> dict[str, Any]:
    return {
        "_id": f"id{number}",
        "question": f"Question {number}? ",
        "answer": f"answer {number}",
        "type": "bridge",
        "level": level,
        "supporting_facts": [["A", 0]],
        "context": [["A", ["One.", "Two."]]],
    }


def prepare(tmp_path: Path, *more: str) -> int:
    module = script("hotpotqa/prepare.py")
    names = ["--train", str(tmp_path / "train.json"), "--test", str(tmp_path / "dev.json")]
    return int(module.main([*names, "--out", str(tmp_path / "out"), *more]))


def test_hotpotqas_files_become_disjoint_splits_of_hard_questions(tmp_path: Path) -> None:
    train = [question(number, "hard" if number % 2 else "easy") for number in range(40)]
    (tmp_path / "train.json").write_text(json.dumps(train), encoding="utf-8")
    (tmp_path / "dev.json").write_text(json.dumps([question(n) for n in range(100, 110)]), encoding="utf-8")
    assert prepare(tmp_path, "--sizes", "10", "5", "8") == 0
    splits = {
        name: [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation", "test")
    }
    assert {name: len(found) for name, found in splits.items()} == {"train": 10, "validation": 5, "test": 8}
    ids = [row["id"] for found in splits.values() for row in found]
    assert len(set(ids)) == 23
    assert all(int(identity[2:]) % 2 for identity in ids[:15])  # no easy ones
    number = splits["train"][0]["id"][2:]
    assert splits["train"][0] == {"id": f"id{number}", "question": f"Question {number}?", "answer": f"answer {number}"}
    before = {name: (tmp_path / "out" / f"{name}.jsonl").read_bytes() for name in splits}
    assert prepare(tmp_path, "--sizes", "10", "5", "8") == 0
    assert before == {name: (tmp_path / "out" / f"{name}.jsonl").read_bytes() for name in splits}


def test_too_few_questions_are_an_error_that_says_what_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.json").write_text(json.dumps([question(n, "easy") for n in range(20)]), encoding="utf-8")
    (tmp_path / "dev.json").write_text(json.dumps([question(1)]), encoding="utf-8")
    assert prepare(tmp_path, "--sizes", "10", "5", "1") == 1
    assert "found 0 questions for training and validation and 1 for the test; 10 + 5 and 1" in capsys.readouterr().err
    assert prepare(tmp_path, "--sizes", "10", "5", "1", "--all-levels") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"_id": "a", "que', "not JSON"),
        ('{"data": []}', "found no list"),
        ('[{"_id": "a", "question": "b"}]', "item 1: lacks answer"),
        ("[3]", "item 1: lacks _id, answer, question"),
    ],
)
def test_a_file_that_is_not_hotpotqas_is_told(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.json").write_text(text, encoding="utf-8")
    (tmp_path / "dev.json").write_text("[]", encoding="utf-8")
    assert prepare(tmp_path) == 1
    assert message in capsys.readouterr().err


def abstracts(path: Path, pages: list[dict[str, Any]]) -> Path:
    data = bz2.compress("\n".join(map(json.dumps, pages)).encode())
    with tarfile.open(path, "w:bz2") as archive:
        info = tarfile.TarInfo("enwiki/AA/wiki_00.bz2")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.usefixtures("cache")
def test_wikipedias_abstracts_become_a_corpus_that_can_be_searched(tmp_path: Path) -> None:
    pages = [
        {"id": "1", "title": "Oslo", "text": ["", '<a href="x">Oslo</a> is the capital', " of Norway."]},
        {"id": "2", "title": "Empty", "text": [""]},
        {"id": "3", "title": "Turin", "text": ["Turin lies on the Po."]},
    ]
    module = script("hotpotqa/prepare.py")
    source = abstracts(tmp_path / "abstracts.tar.bz2", pages)
    assert module.main(["--abstracts", str(source), "--out", str(tmp_path)]) == 0
    retriever = BM25.open((tmp_path / "corpus.jsonl").as_uri())
    assert len(retriever) == 2
    assert str(retriever.search("capital Norway", 1)[0]) == "Oslo | Oslo is the capital of Norway."


def test_an_archive_that_ends_early_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = abstracts(tmp_path / "abstracts.tar.bz2", [{"title": str(n), "text": ["x" * n]} for n in range(999)])
    source.write_bytes(source.read_bytes()[:-200])
    module = script("hotpotqa/prepare.py")
    assert module.main(["--abstracts", str(source), "--out", str(tmp_path)]) == 1
    assert "cannot be read as HotPotQA's abstracts" in capsys.readouterr().err
