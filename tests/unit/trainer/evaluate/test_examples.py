"""Data sets: what is refused, with its place; how they are sampled and split; what is warned of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.memory_store import MemoryStore

from tandem_api.errors import ConfigurationError, DataError
from tandem_trainer.evaluate.examples import Splits, load_splits, seeded_sample

ROWS = [{"q": f"question {n}", "a": "yes" if n % 4 else "no"} for n in range(40)]


@pytest.fixture
def load(make_spec: Callable[..., Any], store: MemoryStore) -> Callable[..., Splits]:
    return lambda *args, **kwargs: load_splits(make_spec(*args, **kwargs), store)


def file_of(tmp_path: Path, name: str, content: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path.as_uri()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", '{"q": "one", "a": "1"}\n\n{"q": "two", "a": "2"}\n'),
        ("d.json", '[{"q": "one", "a": "1"}, {"q": "two", "a": "2"}]'),
        ("d.csv", "q,a\none,1\n\ntwo,2\n"),
        ("bom.csv", "\ufeffq,a\r\none,1\r\ntwo,2\r\n"),
        ("UPPER.JSONL", '{"q": "one", "a": "1"}\r\n{"q": "two", "a": "2"}'),
    ],
)
def test_formats_give_the_same_examples(load: Any, tmp_path: Path, name: str, content: str) -> None:
    uri = file_of(tmp_path, name, content)
    splits = load(uri, validation=uri)
    assert [(example.id, dict(example.fields)) for example in splits.train] == [
        ("train-1", {"q": "one", "a": "1"}),
        ("train-2", {"q": "two", "a": "2"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("d.jsonl", '{"q": "x"}\n{"q": \n', r"d\.jsonl\) line 2: not JSON: Expecting value at character 7"),
        ("d.jsonl", '["x"]\n', "line 1: found a list; each line is a JSON object"),
        ("d.jsonl", '{"q": NaN}\n', "line 1: not JSON: NaN is not a JSON value"),
        ("d.jsonl", "[" * 100_000, "line 1: not JSON: nested too deeply"),
        ("d.jsonl", "\n\n", "holds no examples"),
        ("d.jsonl", b'{"q": "x"}\n{"q": "\xff"}\n', "line 2: not UTF-8"),
        ("d.jsonl", '{"id": 1, "q": "x"}\n{"id": "1", "q": "y"}\n', "line 2: the id '1' was already used in line 1"),
        ("d.jsonl", '{"id": [], "q": "x"}\n', r"line 1: the id is \[\]"),
        (
            "d.jsonl",
            '{"q": "x", "a": 1}\n{"a": 2, "p": 1}\n',
            r"1 of 2 examples lack the input field 'q' \(first: line 2\)",
        ),
        ("d.json", '{"q": "x"}', "found an object; a .json data set is a list"),
        ("d.json", '[{"q": "x"}, 7]', "item 2: found the number 7"),
        ("d.json", '[{"q": "x"},\n nope]', "line 2: not JSON"),
        ("d.csv", "q,a\nx\n", "line 2: found 1 columns; the header has 2"),
        ("d.csv", "q,q\nx,y\n", "empty or repeated name"),
        ("d.csv", 'q,a\n"x,y\n', "line 2: not CSV"),
    ],
)
def test_bad_file_is_named_with_its_line(load: Any, tmp_path: Path, name: str, content: Any, wanted: str) -> None:
    with pytest.raises(DataError, match=wanted):
        load(file_of(tmp_path, name, content))


def test_all_bad_lines_of_all_files_are_told_at_once_and_counted_past_ten(load: Any, tmp_path: Path) -> None:
    train = file_of(tmp_path, "train.jsonl", "nope\n" * 25)
    with pytest.raises(DataError) as caught:
        load(train, validation=f"file://{tmp_path}/missing.jsonl", test=train)
    lines = str(caught.value).splitlines()
    assert len(lines) == 11 + 1 + 11
    assert "15 more bad lines" in lines[10]
    assert "data.validation" in lines[11]
    assert "does not exist" in lines[11]


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("file:data.parquet", r"data\.train .*ends in '.parquet'; allowed: .jsonl, .json, .csv"),
        ("hf://datasets/just-one/d.jsonl", "hf://datasets/OWNER/NAME"),
    ],
)
def test_unknown_place_or_ending_says_what_is_allowed(load: Any, uri: str, wanted: str) -> None:
    with pytest.raises(ConfigurationError, match=wanted):
        load(uri)


def test_data_in_the_runs_bucket_is_read_through_its_store(load: Any, store: MemoryStore) -> None:
    store.put("data/train.jsonl", b'{"q": "x"}\n{"q": "y"}\n')
    assert len(load("s3://bucket/data/train.jsonl", validation="s3://bucket/data/train.jsonl").train) == 2
    with pytest.raises(DataError, match="no such object"):
        load("s3://bucket/data/other.jsonl")


def test_limit_takes_a_seeded_sample_in_file_order(load: Any, write_jsonl: Any) -> None:
    uri = write_jsonl("d.jsonl", ROWS)
    first = load({"uri": uri, "limit": 10}, validation=uri).train
    again = load({"uri": uri, "limit": 10}, validation=uri).train
    other = load({"uri": uri, "limit": 10, "seed": 1}, validation=uri).train
    rows = [int(example.id.removeprefix("train-")) for example in first]
    assert first == again
    assert len(first) == len(other) == 10
    assert rows == sorted(rows) != list(range(1, 11))
    assert [e.id for e in first] != [e.id for e in other]


def test_seeded_sample_of_all_keeps_all() -> None:
    assert seeded_sample([3, 1, 2], None, 0) == seeded_sample([3, 1, 2], 5, 0) == (3, 1, 2)


def test_holdout_keeps_the_proportions_of_the_label_even_in_a_sorted_file(load: Any, write_jsonl: Any) -> None:
    splits = load(write_jsonl("d.jsonl", sorted(ROWS, key=lambda row: row["a"])), holdout={"fraction": "0.2"})
    assert Counter(example.fields["a"] for example in splits.validation) == {"yes": 6, "no": 2}
    assert len(splits.train) == 32
    assert not {example.id for example in splits.train} & {example.id for example in splits.validation}


def test_holdout_depends_on_the_runs_seed_alone(load: Any, write_jsonl: Any) -> None:
    uri = write_jsonl("d.jsonl", ROWS)
    one, again, other = (load(uri, seed=seed).validation for seed in (0, 0, 1))
    assert one == again
    assert {e.id for e in one} != {e.id for e in other}


@pytest.mark.parametrize("classes", [3, 7, 13])
def test_holdout_has_the_asked_size_whatever_the_strata(load: Any, write_jsonl: Any, classes: int) -> None:
    uri = write_jsonl("d.jsonl", ({"q": str(n), "a": str(n % classes)} for n in range(50)))
    assert len(load(uri, holdout={"fraction": "0.3"}).validation) == 15


def test_holdout_of_free_answers_is_cut_without_strata(load: Any, write_jsonl: Any) -> None:
    uri = write_jsonl("d.jsonl", ({"q": str(n), "a": f"answer {n}"} for n in range(50)))
    assert len(load(uri).validation) == 10


def test_holdout_that_leaves_nothing_is_refused(load: Any, write_jsonl: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.holdout\.fraction: 0\.2 of 2 training examples leaves 0"):
        load(write_jsonl("d.jsonl", ROWS[:2]))


def test_stratify_names_a_field_that_exists(load: Any, write_jsonl: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.holdout\.stratify.*'kind'; fields there: a, q"):
        load(write_jsonl("d.jsonl", ROWS), holdout={"stratify": "kind"})


def test_shared_and_repeated_inputs_are_counted_as_warnings(load: Any, write_jsonl: Any) -> None:
    train = write_jsonl("train.jsonl", [*ROWS[:10], ROWS[0]])
    # The same inputs with another label, and another order of fields, are the same inputs.
    test = write_jsonl("test.jsonl", [{"a": "other", "q": ROWS[0]["q"]}, ROWS[1], ROWS[20]])
    warnings = load(train, validation=write_jsonl("validation.jsonl", ROWS[30:]), test=test).warnings
    assert [text.split(":")[0] for text in warnings] == [
        "2 of 3 test examples have the same inputs as train examples",
        "1 of 11 train examples repeat the inputs of another train example",
    ]


def test_digests_follow_the_examples_in_use(load: Any, write_jsonl: Any) -> None:
    uri = write_jsonl("d.jsonl", ROWS)
    plain = load(uri, validation=uri)
    assert load(uri, validation=uri).digests == plain.digests
    assert load({"uri": uri, "limit": 5}, validation=uri).digests["train"] != plain.digests["train"]
    changed = write_jsonl("changed.jsonl", [*ROWS[:-1], {**ROWS[-1], "a": "changed"}])
    assert load(changed, validation=uri).digests["train"] != plain.digests["train"]
    assert set(load(uri).digests) == {"train", "validation"}


def test_test_set_is_left_unread_where_it_is_not_needed(make_spec: Any, store: MemoryStore, write_jsonl: Any) -> None:
    uri = write_jsonl("d.jsonl", ROWS)
    splits = load_splits(make_spec(uri, test="file:///missing.jsonl"), store, with_test=False)
    assert splits.test == ()
    assert "test" not in splits.digests


def test_unusual_separators_inside_a_text_do_not_end_a_line(load: Any, tmp_path: Path) -> None:
    uri = file_of(tmp_path, "d.jsonl", json.dumps({"q": "a\u2028b\x85c"}, ensure_ascii=False) + "\n")
    assert load(uri, validation=uri).train[0].fields["q"] == "a\u2028b\x85c"
