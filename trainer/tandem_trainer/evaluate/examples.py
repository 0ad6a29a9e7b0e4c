"""The examples of a run: read, checked, sampled and split. Everything is a function of the files and the seeds.

`load_splits` reads each data set through `evaluate/files.py`, takes its seeded sample, cuts a stratified validation
set where none is given and counts what two splits share. Its digests let a later stage refuse data that has changed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, TypeVar

from tandem_api.canonical import canonical_json, digest, seed_from
from tandem_api.errors import ConfigurationError, DataError
from tandem_api.store import ObjectStore
from tandem_api.v1alpha1 import Spec
from tandem_api.v1alpha1.task import Split
from tandem_trainer.evaluate.files import read_rows

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One row of a data set."""

    id: str
    """Unique in its split: the row's `id` field, or `<split>-<row>`, rows counted from 1."""
    fields: Mapping[str, Any]
    """All fields, inputs and labels, as JSON holds them."""

    def inputs(self, names: Sequence[str]) -> dict[str, Any]:
        """What the program is given."""
        return {name: self.fields[name] for name in names}

    @cached_property
    def digest(self) -> str:
        """sha256 of id and fields: a result depends on the labels, too."""
        return digest([self.id, self.fields])


@dataclass(frozen=True)
class Splits:
    """The examples of a run."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    """Empty when the run has no test set, or when it was not asked for."""
    digests: Mapping[str, str]
    """sha256 by split name, of the examples in use: sampling and hold-out are part of it."""
    warnings: tuple[str, ...]
    """Short texts: what is odd in the data, but allowed."""


def load_splits(spec: Spec, store: ObjectStore, *, with_test: bool = True) -> Splits:
    """Read the run's data sets. With `with_test` False the test set is left unread.

    Raises DataError with everything that is wrong in all files, each with its file and line; ConfigurationError when
    `data` itself cannot work; StorageUnavailableError or StorageRefusedError when S3 or the Hub cannot be read.
    """
    wanted = {"train": spec.data.train, "validation": spec.data.validation, "test": spec.data.test}
    if not with_test:
        del wanted["test"]
    found: dict[str, tuple[Example, ...]] = {}
    problems: list[str] = []
    for name, split in wanted.items():
        if split is not None:
            try:
                found[name] = _load(name, split, spec, store)
            except DataError as error:
                problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    if "validation" not in found:
        found["train"], found["validation"] = hold_out(found["train"], spec)
    return Splits(
        train=found["train"],
        validation=found["validation"],
        test=found.get("test", ()),
        digests={name: digest([example.digest for example in found[name]]) for name in wanted if name in found},
        warnings=tuple(_repeats(found, spec.data.inputs)),
    )


def seeded_sample(examples: Sequence[T], size: int | None, *seed_parts: Any) -> tuple[T, ...]:
    """At most `size` of `examples` (None: all), in their order; which ones depends on `seed_parts` alone."""
    if size is None or size >= len(examples):
        return tuple(examples)
    chosen = random.Random(seed_from(*seed_parts)).sample(range(len(examples)), size)
    return tuple(examples[index] for index in sorted(chosen))


def hold_out(examples: tuple[Example, ...], spec: Spec) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Cut the validation set out of the training set: (rest, held out), both in file order.

    Chosen at random with the run's seed, in the proportions of the label (`data.holdout.stratify`, or the metric's
    field where its values repeat), rounded by largest remainder so that the size is exact.
    Raises ConfigurationError when one side would be empty.
    """
    size = round(len(examples) * float(spec.data.holdout.fraction))
    if not 0 < size < len(examples):
        raise ConfigurationError(
            f"data.holdout.fraction: {spec.data.holdout.fraction} of {len(examples)} training examples leaves "
            f"{size} for validation and {len(examples) - size} for training; both need at least 1: "
            "change the fraction, or give data.validation"
        )
    strata: dict[str, list[int]] = {}
    for index, label in enumerate(_labels(examples, spec)):
        strata.setdefault(label, []).append(index)
    chooser = random.Random(seed_from(spec.seed, "holdout"))
    exact = {label: len(members) * size / len(examples) for label, members in strata.items()}
    share = {label: int(quota) for label, quota in exact.items()}
    # Equal remainders are settled at random, not by the labels' names or their order in the file.
    order = sorted(strata)
    chooser.shuffle(order)
    order.sort(key=lambda label: share[label] - exact[label])
    for label in order[: size - sum(share.values())]:
        share[label] += 1
    held = {index for label in sorted(strata) for index in chooser.sample(strata[label], share[label])}
    rest = tuple(example for index, example in enumerate(examples) if index not in held)
    return rest, tuple(examples[index] for index in sorted(held))


def _labels(examples: tuple[Example, ...], spec: Spec) -> list[str]:
    """The stratum of each example; one for all where no label suits."""
    named = spec.data.holdout.stratify
    field = named or spec.metric.field
    if field is None:
        return [""] * len(examples)
    if named is not None and not all(named in example.fields for example in examples):
        fields = ", ".join(sorted({name for example in examples for name in example.fields}))
        raise ConfigurationError(
            f"data.holdout.stratify: not every training example has the field {named!r}; fields there: {fields}"
        )
    labels = [canonical_json(example.fields.get(field)) for example in examples]
    # Free answers hardly repeat: strata of one example would decide nothing.
    repeats = 2 * len(set(labels)) <= len(labels)
    return labels if named is not None or repeats else [""] * len(examples)


def _load(name: str, split: Split, spec: Spec, store: ObjectStore) -> tuple[Example, ...]:
    """One data set. Raises DataError with all its problems."""
    where = f"data.{name} ({split.uri})"
    rows = read_rows(split.uri, spec, store, where)
    if not rows:
        raise DataError(f"{where} holds no examples; at least one is needed")
    problems: list[str] = []
    examples: list[Example] = []
    seen: dict[str, int] = {}
    for position, (line, fields) in enumerate(rows, start=1):
        given = fields.get("id")
        if given is not None and (not isinstance(given, (str, int)) or isinstance(given, bool) or given == ""):
            problems.append(f"{where} line {line}: the id is {given!r}; an id is a text or a whole number")
            continue
        identity = f"{name}-{position}" if given is None else str(given)
        if identity in seen:
            problems.append(
                f"{where} line {line}: the id {identity!r} was already used in line {seen[identity]}; ids must differ"
            )
        seen.setdefault(identity, line)
        examples.append(Example(identity, fields))
    problems += _missing_inputs(where, rows, spec.data.inputs)
    if problems:
        raise DataError("\n".join(_shortened(problems, where)))
    return seeded_sample(examples, split.limit, "limit", split.seed)


def _missing_inputs(where: str, rows: Sequence[tuple[int, Mapping[str, Any]]], inputs: Sequence[str]) -> list[str]:
    problems = []
    for field in inputs:
        lines = [line for line, fields in rows if field not in fields]
        if lines:
            there = ", ".join(sorted({name for _, fields in rows for name in fields}))
            problems.append(
                f"{where}: {len(lines)} of {len(rows)} examples lack the input field {field!r} (first: line {lines[0]})"
                f"; fields there: {there}; correct data.inputs or the data"
            )
    return problems


def _shortened(problems: list[str], where: str, most: int = 10) -> list[str]:
    if len(problems) <= most:
        return problems
    return [*problems[:most], f"{where}: {len(problems) - most} more problems"]


def _repeats(splits: Mapping[str, Sequence[Example]], inputs: Sequence[str]) -> list[str]:
    """Warnings about examples with equal inputs, between splits and within one."""
    keys = {name: [canonical_json(example.inputs(inputs)) for example in examples] for name, examples in splits.items()}
    warnings = []
    for earlier, later in combinations(keys, 2):
        known = set(keys[earlier])
        shared = sum(key in known for key in keys[later])
        if shared:
            warnings.append(
                f"{shared} of {len(keys[later])} {later} examples have the same inputs as {earlier} examples: "
                f"{later} scores may be too high"
            )
    for name, those in keys.items():
        again = len(those) - len(Counter(those))
        if again:
            warnings.append(f"{again} of {len(those)} {name} examples repeat the inputs of another {name} example")
    return warnings
