from __future__ import annotations

from typing import Any

import pytest
from tests.unit.trainer.lora.tiny import INSTRUCTION, trace

from tandem_api.errors import ConfigurationError, DataError
from tandem_api.records import PredictorCall, TraceRow
from tandem_trainer.lora.dataset import Encoder, Pair, build_training_set, hold_out, select_pairs
from tandem_trainer.lora.train import _token_row


def plain(text: str, completion: str, example: str = "e") -> Pair:
    return Pair(example, "classify", ({"role": "user", "content": text},), completion)


def test_rows_carry_the_vanilla_prompt_or_the_one_that_made_the_trace() -> None:
    vanilla = select_pairs([trace(1)], "vanilla")[0].messages[0]["content"]
    optimized = select_pairs([trace(1)], "optimized")[0].messages[0]["content"]
    assert vanilla.startswith(INSTRUCTION)
    assert optimized.startswith("Look closely.")


def test_there_is_one_row_per_call_and_each_keeps_its_own_prompt_and_completion() -> None:
    # The same predictor twice and another in between: a selection by position would mix them up.
    calls = tuple(
        PredictorCall(
            predictor=name, inputs={}, messages=({"role": "user", "content": f"used {n}"},), completion=f" out {n}"
        )
        for n, name in enumerate(["query", "answer", "query"])
    )
    vanilla = tuple(({"role": "user", "content": f"vanilla {n}"},) for n in range(3))
    row = TraceRow(example="e", sample=0, score=1.0, calls=calls, vanilla=vanilla)
    pairs = select_pairs([row], "vanilla")
    assert [(p.predictor, p.messages[0]["content"], p.completion) for p in pairs] == [
        ("query", "vanilla 0", " out 0"),
        ("answer", "vanilla 1", " out 1"),
        ("query", "vanilla 2", " out 2"),
    ]


def test_a_trace_without_its_vanilla_prompts_is_refused_only_where_they_are_needed() -> None:
    broken = trace(1).model_copy(update={"vanilla": ()})
    with pytest.raises(DataError, match=r"'train-1', sample 0, has 1 calls but 0 vanilla prompts"):
        select_pairs([broken], "vanilla")
    assert len(select_pairs([broken], "optimized")) == 1


def test_a_plain_row_is_prompt_then_completion_then_end_as_the_server_sees_them(tokenizer: Any) -> None:
    row = Encoder(tokenizer, "completions").encode(plain("Review: good\nSentiment:", " positive"))
    prompt = tokenizer("Review: good\nSentiment:")["input_ids"]
    assert list(row.input_ids[: row.prompt_tokens]) == prompt
    assert tokenizer.decode(row.input_ids) == "Review: good\nSentiment: positive<|im_end|>"


def test_the_prompts_tokens_never_merge_with_the_completion(tokenizer: Any) -> None:
    # "Sentiment: posi" + "tive" would be tokenized as "Sentiment: positive", which the server never does.
    text = "Sentiment: posi"
    prompt = tokenizer(text)["input_ids"]
    assert tokenizer(text + "tive")["input_ids"][: len(prompt)] != prompt
    row = Encoder(tokenizer, "completions").encode(plain(text, "tive"))
    assert list(row.input_ids[: row.prompt_tokens]) == prompt
    assert tokenizer.decode(row.input_ids) == "Sentiment: positive<|im_end|>"


def test_a_chat_row_ends_with_the_templates_end_of_turn_and_nothing_after_it(tokenizer: Any) -> None:
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Good?"})
    row = Encoder(tokenizer, "chat").encode(Pair("e", "p", messages, "yes"))
    assert tokenizer.decode(row.input_ids[row.prompt_tokens :]) == "yes<|im_end|>"
    assert tokenizer.decode(row.input_ids[: row.prompt_tokens]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGood?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_answers_of_demos_inside_a_prompt_are_not_learnt(tokenizer: Any) -> None:
    messages = tuple(
        {"role": role, "content": text}
        for role, text in (("user", "Good?"), ("assistant", "a demo's answer"), ("user", "Bad?"))
    )
    row = Encoder(tokenizer, "chat").encode(Pair("e", "p", messages, "no"))
    learnt = [label for label in _token_row(row)["labels"] if label != -100]
    assert tokenizer.decode(learnt) == "no<|im_end|>"
    assert "a demo's answer" in tokenizer.decode(row.input_ids[: row.prompt_tokens])


def test_a_template_that_refuses_the_messages_is_the_users_to_change(model_dir: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = "{{ raise_exception('no system role here') }}"
    with pytest.raises(ConfigurationError, match="no system role here"):
        Encoder(tokenizer, "chat").encode(plain("hi", "yes"))
    tokenizer.chat_template = None
    with pytest.raises(ConfigurationError, match="chat template"):
        Encoder(tokenizer, "chat")


def test_rows_that_are_too_long_are_dropped_whole_and_counted(tokenizer: Any) -> None:
    pairs = [plain("short", " positive", "a"), plain("long " * 30, " positive", "b"), plain("short", " no", "c")]
    data = build_training_set(pairs, Encoder(tokenizer, "completions"), max_length=40, validation_fraction="0", seed=0)
    assert (len(data.train), data.dropped) == (2, 1)
    assert data.longest <= 40


def test_no_row_that_is_short_enough_is_an_error_that_names_the_shortest(tokenizer: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"maxLength: all 1 training rows have more than 16 tokens.*has \d+"):
        build_training_set(
            [plain("long " * 30, " x")],
            Encoder(tokenizer, "completions"),
            max_length=16,
            validation_fraction="0",
            seed=0,
        )


def test_validation_examples_share_no_example_with_training(tokenizer: Any) -> None:
    pairs = [plain(f"text {n % 10}", f" answer {n}", f"e{n % 10}") for n in range(30)]
    data = build_training_set(
        pairs, Encoder(tokenizer, "completions"), max_length=64, validation_fraction="0.2", seed=1
    )
    held_out = {row.example for row in data.validation}
    assert len(held_out) == 2
    assert len(data.validation) == 6
    assert held_out.isdisjoint(row.example for row in data.train)


def test_the_hold_out_depends_on_ids_and_seed_alone() -> None:
    ids = [f"e{n}" for n in range(50)]
    assert hold_out(ids, "0.1", 3) == hold_out(reversed(ids * 2), "0.1", 3)
    assert hold_out(ids, "0.1", 3) != hold_out(ids, "0.1", 4)


@pytest.mark.parametrize(
    ("examples", "fraction", "held_out"), [(3, "0.1", 1), (3, "1", 2), (1, "0.5", 0), (3, "0", 0), (20, "0.25", 5)]
)
def test_a_hold_out_is_never_empty_by_rounding_and_never_everything(
    examples: int, fraction: str, held_out: int
) -> None:
    assert len(hold_out([f"e{n}" for n in range(examples)], fraction, 0)) == held_out


def test_the_training_sets_digest_changes_with_any_token(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, "completions")

    def digest_of(completion: str) -> str:
        pairs = [plain("text", completion)]
        return build_training_set(pairs, encoder, max_length=64, validation_fraction="0", seed=0).sha256

    assert digest_of(" positive") == digest_of(" positive")
    assert digest_of(" positive") != digest_of(" positive.")
