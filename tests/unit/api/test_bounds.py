"""How large a manifest and what is said about it may be. Each bound stands for something that went wrong without it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tests.unit.api.manifests import document

from tandem_api.strategy import MAX_TEXT, parse_strategy
from tandem_api.v1alpha1.bounds import MAX_BYTES, MAX_DEPTH, bounds_problem
from tandem_api.v1alpha1.run import MAX_PROBLEM, MAX_PROBLEMS, ManifestError, Problem, parse_run


def refusals(**spec: Any) -> list[Problem]:
    with pytest.raises(ManifestError) as caught:
        parse_run(document(**spec))
    return caught.value.problems


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_a_spec_as_deep_as_the_api_server_takes_it_is_refused_and_not_walked_into():
    """JSON of a thousand lists in each other made each pass end in a RecursionError, for ever and without a word in
    the status: hashing the spec walks into it."""
    (problem,) = refusals(program={"entrypoint": "a:b", "arguments": {"x": nested(10_000)}})
    assert problem.path == "spec.program.arguments"
    assert problem.message == "objects and lists are nested more than 64 deep; allowed: 64; make it flatter"


def test_the_deepest_spec_that_is_allowed_is_read_and_written_again():
    # The spec, program, arguments, and what is in them.
    arguments = {"x": nested(MAX_DEPTH - 3)}
    run = parse_run(document(program={"entrypoint": "a:b", "arguments": arguments}))
    assert run.spec.to_json()["program"]["arguments"] == arguments
    assert refusals(program={"entrypoint": "a:b", "arguments": {"x": nested(MAX_DEPTH - 2)}})


def test_a_spec_that_no_configmap_could_hold_is_refused_with_its_largest_part():
    """The accepted spec is kept in a ConfigMap. One of more than 1 MiB was refused by the API server in each pass, and
    the run never got a condition."""
    (problem,) = refusals(program={"entrypoint": "a:b", "arguments": {"text": "☃" * (MAX_BYTES // 3)}})
    assert problem.path == "spec.program"
    assert f"bytes as JSON; allowed: {MAX_BYTES}; keep data in a ConfigMap or in S3" in problem.message
    assert bounds_problem({"text": "x" * (MAX_BYTES - len('{"text": ""}'))}) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"], ids=repr)
def test_what_json_has_not_is_refused(value: Any):
    """YAML has NaN and halves of characters; hashing the spec raised an error that said nothing of the manifest."""
    (problem,) = refusals(program={"entrypoint": "a:b", "arguments": {"x": [value]}})
    assert problem.path == "spec.program.arguments"
    assert "JSON has not" in problem.message


def test_a_very_long_strategy_is_refused_at_once():
    """Its reading takes time that grows with the square of its length: a text of 1 MB, which the API server takes, held
    the operator for many minutes."""
    began = time.process_time()
    with pytest.raises(ValueError, match=f"has 1000000 characters; allowed: at most {MAX_TEXT}"):
        parse_strategy("p -> " * 200_000)
    assert time.process_time() - began < 1
    assert len(parse_strategy(" -> ".join(["p"] * 32))) == 32


def test_very_many_problems_are_told_in_part():
    """A step with thousands of unknown fields made a message of megabytes, and put each of them into words."""
    problems = refusals(strategy=[{"kind": "p", **{f"unknown{n}": 1 for n in range(5000)}}])
    assert len(problems) == MAX_PROBLEMS + 1
    assert str(problems[-1]) == "(more): 4980 more problems"


@pytest.mark.parametrize(
    "spec",
    [
        {"strategy": [{"kind": "p", "x" * 10_000: 1}]},
        {"model": {"uri": "x" * 10_000}},
        {"weightOptimizer": {"targetModules": "x" * 10_000}},
        {"weightOptimizer": {"targetModules": ["x" * 10_000]}},
        {"serving": {"podTemplate": {str(n): n for n in range(3000)}}},
        {"serving": {"extraArgs": ["x" * 10_000]}},
        {"workers": {"podTemplate": {"x" * 10_000: 1}}},
        {"training": {"resources": {"limits": {"x" * 10_000: 1}}}},
        {"storage": {"s3": {"bucket": "runs", "prefix": "../" * 5_000}}},
    ],
    ids=lambda spec: next(iter(spec)),
)
def test_a_long_value_is_told_in_part_and_what_is_allowed_whole(spec: dict[str, Any]):
    """The first 4,096 characters of a refusal go into the status: a long value left no room for what to do about it."""
    for problem in refusals(**spec):
        assert len(problem.message) <= MAX_PROBLEM
        assert len(problem.path) < 200


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"limits": ["nvidia.com/gpu"]}, "limits: found a list; allowed: an object"),
        ({"limits": "1"}, "limits: found '1'; allowed: an object"),
        ({"limits": {"nvidia.com/gpu": "many"}}, "found 'many'; allowed: a quantity"),
        ({"limits": {"nvidia.com/gpu": "1.5"}}, "found '1.5' nvidia.com/gpu in limits; allowed: a whole number"),
        ({"limits": {"nvidia.com/gpu": -1}}, "found -1; allowed: a quantity"),
        ({"requests": {"nvidia.com/gpu": 1}}, "requests has nvidia.com/gpu alone; give it in limits"),
        (
            {"requests": {"nvidia.com/gpu": 1}, "limits": {"nvidia.com/gpu": 2}},
            "requests and limits differ in nvidia.com/gpu; give it in limits alone",
        ),
        ({"limits": {"gpu": 1}}, "no resource has this name; allowed: cpu, memory, ephemeral-storage, or one"),
        ({"requests": {"memory": "16 GB"}}, "requests.memory: found '16 GB'; allowed: a quantity"),
        ({"limit": {"cpu": 1}}, "limit: unknown field; did you mean limits? allowed: limits, requests"),
        ({"claims": []}, "claims: not allowed: pods make no resource claims"),
    ],
)
@pytest.mark.parametrize("part", ["serving", "training", "workers"])
def test_resources_of_a_wrong_form_are_refused(part: str, resources: Any, message: str):
    """The schema leaves them free. A list of limits made each pass over the run end in an AttributeError."""
    (problem,) = refusals(**{part: {"resources": resources}})
    assert problem.path == f"spec.{part}.resources"
    assert message in problem.message


@pytest.mark.parametrize(
    "resources",
    [
        {},
        {"limits": {"nvidia.com/gpu": 1}, "requests": {"nvidia.com/gpu": "1", "cpu": 2}},
        {"requests": {"cpu": "500m", "memory": "16Gi", "ephemeral-storage": "1e9", "hugepages-2Mi": "4Mi"}},
        {"limits": {"amd.com/gpu": 0, "example.com/Device_1": "2"}},
    ],
)
def test_resources_of_the_right_form_are_kept_as_they_are(resources: Any):
    run = parse_run(document(serving={"resources": resources}))
    assert run.spec.serving.resources == resources


def test_a_decimal_that_no_number_holds_is_refused():
    """ "1e400" has the form of a decimal, and was read as infinite where it was used."""
    (problem,) = refusals(model={"uri": "hf://a/b", "sampling": {"temperature": "1e400"}})
    assert str(problem) == (
        "spec.model.sampling.temperature: found '1e400', which is too large for a number; write a smaller one"
    )


def test_a_list_where_no_list_may_be_is_told_in_the_words_of_yaml():
    (problem,) = refusals(serving={"extraArgs": "--seed=1"})
    assert str(problem) == "spec.serving.extraArgs: found '--seed=1'; allowed: a list"
