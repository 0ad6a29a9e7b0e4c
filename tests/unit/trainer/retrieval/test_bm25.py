from __future__ import annotations

import copy
import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest

from tandem_api.contract import ENV_CACHE
from tandem_api.errors import DataError
from tandem_trainer.retrieval import BM25, Passage, bm25

RIVERS: list[dict[str, Any]] = [
    {"title": "Sarn", "text": "The Sarn is a long river in the north."},
    {"title": "Velmwick", "text": ["Velmwick lies on the Sarn.", "It is known for glass."]},
    {"title": "Glass", "text": "Glass is made from sand."},
    {"title": "Bell", "text": "Same words here."},
    {"title": "Bell", "text": "Same words here."},
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(ENV_CACHE, str(folder))
    return folder


def corpus(folder: Path, rows: list[dict[str, Any]] | None = None) -> str:
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (RIVERS if rows is None else rows)), encoding="utf-8")
    return path.as_uri()


def indexes(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "bm25").iterdir() if not path.name.startswith("."))


def test_the_best_passage_comes_first_and_reads_as_title_and_text(tmp_path: Path) -> None:
    found = BM25.open(corpus(tmp_path)).search("town known for glass", 2)
    assert [passage.title for passage in found] == ["Velmwick", "Glass"]
    assert str(found[0]) == "Velmwick | Velmwick lies on the Sarn. It is known for glass."


def test_equal_passages_come_in_the_order_of_the_corpus(tmp_path: Path) -> None:
    rows = [{"title": f"{n:02d}", "text": "one same sentence"} for n in range(40)]
    index = BM25.open(corpus(tmp_path, rows))
    assert [passage.title for passage in index.search("sentence", 5)] == ["00", "01", "02", "03", "04"]
    assert len(index.search("sentence", 100)) == 40


def test_scores_are_those_of_the_formula(tmp_path: Path) -> None:
    """A passage in which the word stands alone beats one that is longer; the rarer word weighs more."""
    rows = [{"text": "oak beech"}, {"text": "oak beech elm ash yew fir"}, {"text": "oak"}, {"text": "yew"}]
    index = BM25.open(corpus(tmp_path, rows))
    assert [passage.text for passage in index.search("oak", 3)] == ["oak", "oak beech", "oak beech elm ash yew fir"]
    assert index.search("oak yew", 2)[0].text == "yew"


@pytest.mark.parametrize("query", ["", "  ", "the of and", "zzz", "!?"])
def test_a_query_without_a_known_word_finds_nothing(tmp_path: Path, query: str) -> None:
    assert BM25.open(corpus(tmp_path)).search(query, 3) == ()


def test_passages_that_share_no_word_are_not_filled_in(tmp_path: Path) -> None:
    assert [passage.title for passage in BM25.open(corpus(tmp_path)).search("sand", 5)] == ["Glass"]


def test_asking_for_no_passage_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="k: found 0; at least 1"):
        BM25.open(corpus(tmp_path)).search("glass", 0)


def test_the_index_is_built_once_and_found_again(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BM25.open(corpus(tmp_path))
    built = indexes(cache)
    monkeypatch.setattr(bm25, "_build", None)
    assert len(BM25.open(corpus(tmp_path))) == 5
    assert indexes(cache) == built


def test_another_corpus_under_the_same_name_gets_an_index_of_its_own(tmp_path: Path, cache: Path) -> None:
    BM25.open(corpus(tmp_path))
    found = BM25.open(corpus(tmp_path, [*RIVERS, {"title": "New", "text": "Entirely fresh."}])).search("fresh", 1)
    assert found == (Passage("New", "Entirely fresh."),)
    assert len(indexes(cache)) == 2


def test_a_search_gives_the_same_from_many_threads(tmp_path: Path) -> None:
    rows = [{"title": f"Title {n}", "text": f"word{n} common {'x' * (n % 50)}"} for n in range(300)]
    index = BM25.open(corpus(tmp_path, rows))
    expected = [index.search(f"common word{n}", 3) for n in range(300)]
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(lambda n: index.search(f"common word{n}", 3), range(300))) == expected


def test_copies_of_a_program_share_the_index(tmp_path: Path) -> None:
    class Program(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.retriever = BM25.open(corpus(tmp_path))
            self.answer = dspy.Predict("question -> answer")

    program = Program()
    assert program.deepcopy().retriever is program.retriever
    assert copy.deepcopy(program.retriever) is program.retriever


def open_slowly(uri: str, started: Any) -> None:
    write = bm25._build

    def slow(path: Path, folder: Path, where: str) -> None:
        write(path, folder, where)
        started.set()
        time.sleep(60)

    bm25._build = slow
    BM25.open(uri)


def open_and_count(uri: str, builds: Any) -> None:
    write = bm25._build

    def counted(path: Path, folder: Path, where: str) -> None:
        with builds.get_lock():
            builds.value += 1
        time.sleep(0.2)
        write(path, folder, where)

    bm25._build = counted
    assert BM25.open(uri).search("sand", 1)[0].title == "Glass"


def test_a_worker_that_is_killed_while_it_builds_leaves_nothing_behind_that_is_used(
    tmp_path: Path, cache: Path
) -> None:
    uri, context = corpus(tmp_path), multiprocessing.get_context("fork")
    started = context.Event()
    worker = context.Process(target=open_slowly, args=(uri, started))
    worker.start()
    assert started.wait(30)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert indexes(cache) == []
    assert BM25.open(uri).search("sand", 1)[0].title == "Glass"


def test_two_workers_at_once_build_one_index(tmp_path: Path, cache: Path) -> None:
    uri, context = corpus(tmp_path), multiprocessing.get_context("fork")
    builds = context.Value("i", 0)
    workers = [context.Process(target=open_and_count, args=(uri, builds)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert builds.value == 1
    assert len(indexes(cache)) == 1


def test_every_bad_line_of_a_corpus_is_named(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(
        '{"text": "good"}\n\nnot json\n["a"]\n{"title": "A"}\n{"title": 3, "text": "b"}\n', encoding="utf-8"
    )
    with pytest.raises(DataError) as raised:
        BM25.open(path.as_uri())
    lines = str(raised.value).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(f"program.arguments.corpus ({path.as_uri()}) line 3: not JSON")
    assert "line 4: found a list; each line is a JSON object" in lines[1]
    assert "line 5: found the fields title; `text` is a text or a list of sentences" in lines[2]
    assert "line 6" in lines[3]
    assert indexes(cache) == []


def test_no_more_than_ten_bad_lines_are_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("x\n" * 50, encoding="utf-8")
    with pytest.raises(DataError) as raised:
        BM25.open(path.as_uri())
    assert len(str(raised.value).splitlines()) == 10


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "holds no passages"), ([{"text": "!!!"}, {"text": ""}], "no passage holds a word")],
)
def test_a_corpus_in_which_nothing_can_be_searched_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        BM25.open(corpus(tmp_path, rows))


def test_letters_of_all_scripts_are_words(tmp_path: Path) -> None:
    rows = [{"title": "Łódź", "text": "Miasto nad rzeką."}, {"title": "東京", "text": "首都"}, {"text": "Other"}]
    index = BM25.open(corpus(tmp_path, rows))
    assert index.search("ŁÓDŹ", 1)[0].title == "Łódź"
    assert str(index.search("東京", 1)[0]) == "東京 | 首都"
