"""Programs as values: what is loaded, what is refused and why, and how prompts are rendered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.trainer.program.conftest import ProgramMaker, build_spec

from tandem_api.errors import ConfigurationError, DataError
from tandem_api.records import PredictorPrompt, PromptSet
from tandem_trainer.program.loading import load_program

TWO_PREDICTORS = """
    class Hop(dspy.Module):
        def __init__(self):
            super().__init__()
            self.query = dspy.Predict(dspy.Signature("question -> search_query", "Write a query."))
            self.answer = dspy.ChainOfThought(dspy.Signature("context, question -> answer", "Answer."))
            self.frozen = dspy.ChainOfThought("question -> language")
            self.frozen._compiled = True

        def forward(self, question):
            return self.answer(context=self.query(question=question).search_query, question=question)

    def build(demos=()):
        program = Hop()
        program.query.demos = list(demos)
        return program
"""


def test_an_inline_program_has_one_predictor_and_its_instruction(inline: ProgramMaker) -> None:
    program = inline("review -> sentiment", instructions="Judge the review.")

    assert program.predictors == ("self",)
    assert program.vanilla == PromptSet(predictors={"self": PredictorPrompt(instruction="Judge the review.")})
    assert (program.mode, program.stop) == ("completions", ("\n\n",))


def test_chain_of_thought_reasons_first(inline: ProgramMaker) -> None:
    program = inline(module="chain-of-thought")

    assert list(program.signature("predict").output_fields) == ["reasoning", "answer"]


@pytest.mark.parametrize("adapter", ["chat", "json"])
def test_chat_formats_use_the_chat_api(inline: ProgramMaker, adapter: str) -> None:
    program = inline(adapter=adapter)

    assert (program.mode, program.stop) == ("chat", ())
    messages = program.render("self", program.vanilla.predictors["self"], {"question": "Why?"})
    assert [message["role"] for message in messages] == ["system", "user"]
    assert "Why?" in messages[1]["content"]


def test_frozen_sub_modules_are_not_optimized(entrypoint: ProgramMaker) -> None:
    program = entrypoint(TWO_PREDICTORS)

    assert program.predictors == ("query", "answer.predict")
    assert program.vanilla.predictors["query"].instruction == "Write a query."


def test_the_programs_own_demos_are_part_of_its_original_prompts(entrypoint: ProgramMaker) -> None:
    program = entrypoint(TWO_PREDICTORS, arguments={"demos": [{"question": "q", "search_query": "s"}]})

    assert program.vanilla.predictors["query"].demos == ({"question": "q", "search_query": "s"},)


def test_prompts_are_set_on_a_copy(entrypoint: ProgramMaker) -> None:
    program = entrypoint(TWO_PREDICTORS)
    demo = {"question": "q", "search_query": "s"}
    better = PredictorPrompt(instruction="Better.", demos=(demo,))
    prompts = PromptSet(predictors={**program.vanilla.predictors, "query": better})

    module = program.with_prompts(prompts)

    assert (module.query.signature.instructions, module.query.demos) == ("Better.", [demo])
    assert (program.module.query.signature.instructions, program.module.query.demos) == ("Write a query.", [])


def test_a_prompt_set_of_another_program_is_refused(inline: ProgramMaker, entrypoint: ProgramMaker) -> None:
    with pytest.raises(DataError, match=r"\['self'\].*\['answer.predict', 'query'\]"):
        entrypoint(TWO_PREDICTORS).with_prompts(inline().vanilla)


def test_rendering_uses_the_given_prompt_and_not_the_programs(inline: ProgramMaker) -> None:
    program = inline(instructions="Original.")
    prompt = PredictorPrompt(instruction="Optimized.", demos=({"question": "1+1?", "answer": "2"},))

    (optimized,) = program.render("self", prompt, {"question": "2+2?"})
    (vanilla,) = program.render("self", program.vanilla.predictors["self"], {"question": "2+2?"})

    assert optimized["content"] == "Optimized.\n\nQuestion: 1+1?\nAnswer: 2\n\nQuestion: 2+2?\nAnswer:"
    assert vanilla["content"] == "Original.\n\nQuestion: 2+2?\nAnswer:"


def test_the_digest_changes_with_what_the_program_is(inline: ProgramMaker) -> None:
    digests = {
        inline().sha256,
        inline(instructions="Another.").sha256,
        inline("question -> answer: int").sha256,
        inline(adapter="chat").sha256,
        inline(module="chain-of-thought").sha256,
    }
    assert len(digests) == 5
    assert inline().sha256 in digests


def test_the_digest_changes_with_the_code_beside_it(entrypoint: ProgramMaker, code: Callable[..., Path]) -> None:
    before = entrypoint(TWO_PREDICTORS).sha256
    assert entrypoint(TWO_PREDICTORS).sha256 == before
    code("TEMPLATE = 1", "helper.py")
    assert entrypoint(TWO_PREDICTORS).sha256 != before


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (
            "import missing_package",
            "build",
            "program.entrypoint: 'user_program' cannot be imported: ModuleNotFoundError: .*'missing_package'",
        ),
        ("def build(:", "build", "SyntaxError"),
        ("raise SystemExit(3)", "build", "SystemExit: 3"),
        ("def other(): ...", "build", "has no 'build'; it has: .*other"),
        ("build = 3", "build", "is of type int; it must be a function or class"),
        ("def build(): return 3", "build", "returned a 'int'; it must return a dspy.Module"),
        ("def build(): return 1 / 0", "build", "failed: ZeroDivisionError"),
        ("def build(size): ...", "build", "cannot be called with program.arguments .*size"),
        ("class Empty(dspy.Module): ...", "Empty", "Empty has neither forward nor aforward"),
        ("class Empty(dspy.Module):\n    def forward(self): ...", "Empty", "Empty has no predictors"),
        ("class Late(dspy.Module):\n    async def forward(self): ...", "Late", "DSPy calls that aforward"),
        (
            "def build(): return dspy.Predict('q -> a', logprobs=True)",
            "build",
            "'self' is made with .*: found the LM parameter 'logprobs'; allowed: max_tokens",
        ),
        ("def build(): return dspy.Predict('a_b, aB, A_b -> c')", "build", "are both 'A b:' in the plain format"),
    ],
    ids=lambda value: None if isinstance(value, str) and len(value) > 30 else value,
)
def test_a_wrong_entry_point_is_the_users_to_mend(entrypoint: ProgramMaker, text: str, name: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        entrypoint(text, name=name)


def test_a_module_whose_name_is_taken_is_named(code: Callable[..., Path]) -> None:
    folder = code("def build(): ...", "json.py")
    with pytest.raises(ConfigurationError, match="'json' is the name of another module"):
        load_program(build_spec({"entrypoint": "json:build"}), code_path=folder)


def test_missing_code_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"found no folder .*nowhere"):
        load_program(build_spec({"entrypoint": "user_program:build"}), code_path=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("signature", "inputs", "field", "message"),
    [
        ("question -> ", ("question",), "answer", "program.inline.signature: found 'question -> '"),
        ("question -> answer: Wrong", ("question",), "answer", "does not parse.*Wrong"),
        ("question -> answer", ("questoin",), "answer", "data.inputs: found questoin, but the inputs .* are question"),
        ("question, context -> answer", ("question",), "answer", "are question, context"),
        ("question -> answer", ("question",), "label", "metric.field: found 'label'; allowed.*: answer"),
    ],
)
def test_a_wrong_inline_program_is_the_users_to_mend(
    signature: str, inputs: tuple[str, ...], field: str, message: str
) -> None:
    spec: dict[str, Any] = {"inline": {"signature": signature, "adapter": "plain"}}
    with pytest.raises(ConfigurationError, match=message):
        load_program(build_spec(spec, inputs, field))
