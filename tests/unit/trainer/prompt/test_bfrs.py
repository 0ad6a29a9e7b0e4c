"""The candidates of BFRS: what they hold, that they differ, and what they depend on."""

from __future__ import annotations

from typing import Any

from tandem_api.records import PredictorCall, PredictorPrompt, PromptSet, ScoredExample
from tandem_api.v1alpha1.prompt_optimizers import BootstrapRandomSearch
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.prompt.bfrs import build_candidates, retry_prompts
from tandem_trainer.prompt.bootstrap import MIN_ROUND, round_size, wanted_examples
from tandem_trainer.prompt.demos import DemoPool, PredictorFields, build_pool, call_demo, without_own_demos

QA = PredictorFields(("question",), ("answer",))
COT = PredictorFields(("question",), ("reasoning", "answer"))
SEARCH = PredictorFields(("question",), ("query",))


def example(number: int, **more: Any) -> Example:
    return Example(f"train-{number}", {"question": f"q{number}", "answer": f"a{number}", **more})


def call(predictor: str, number: int, **outputs: Any) -> PredictorCall:
    return PredictorCall(
        predictor=predictor, inputs={"question": f"q{number}"}, messages=(), completion="x", outputs=outputs or None
    )


def run(number: int, *calls: PredictorCall, sample: int = 0) -> ScoredExample:
    return ScoredExample(
        key=f"{number}-{sample}", candidate="c", example=f"train-{number}", sample=sample, score=1.0, calls=calls
    )


def prompts(*names: str, demos: tuple[dict[str, Any], ...] = ()) -> PromptSet:
    return PromptSet(predictors={name: PredictorPrompt(instruction=f"Do {name}.", demos=demos) for name in names})


def settings(**values: Any) -> BootstrapRandomSearch:
    return BootstrapRandomSearch.model_validate(values)


EXAMPLES = [example(number) for number in range(20)]
START = prompts("answer")


def qa_pool(passing: int = 20) -> DemoPool:
    runs = [run(number, call("answer", number, answer=f"said{number}")) for number in range(passing)]
    return build_pool({"answer": QA}, EXAMPLES, runs)


def demos_of(prompt_set: PromptSet, predictor: str = "answer") -> tuple[dict[str, Any], ...]:
    return prompt_set.predictors[predictor].demos


def test_zero_shot_labeled_and_the_first_traces_come_before_random_draws() -> None:
    candidates = build_candidates(START, qa_pool(), settings(candidates=8), seed=0, step=1)
    kinds = [candidate.kind for candidate in candidates]
    assert kinds == ["zero-shot", "labeled", "bootstrapped"] + ["random"] * 5
    zero_shot, labeled, first, *random = candidates
    assert zero_shot.prompts == START
    assert [demo["answer"][0] for demo in demos_of(labeled.prompts)] == ["a", "a", "a"]
    assert [demo["answer"] for demo in demos_of(first.prompts)] == ["said0", "said1", "said2"]
    for candidate in random:
        said = [demo["answer"].startswith("said") for demo in demos_of(candidate.prompts)]
        assert len(said) == 3 and said[0] and said == sorted(said, reverse=True), "traces first, then labelled ones"
    assert len({sum(d["answer"].startswith("said") for d in demos_of(c.prompts)) for c in random}) > 1


def test_candidates_depend_on_seed_and_step_and_on_nothing_else() -> None:
    def digests(seed: int, step: int, runs_reversed: bool = False) -> list[str]:
        runs = [run(number, call("answer", number, answer=f"said{number}")) for number in range(20)]
        pool = build_pool({"answer": QA}, EXAMPLES, reversed(runs) if runs_reversed else runs)
        return [c.prompts.sha256 for c in build_candidates(START, pool, settings(), seed=seed, step=step)]

    assert digests(0, 1) == digests(0, 1, runs_reversed=True)
    assert len({tuple(digests(*key)) for key in ((0, 1), (1, 1), (0, 3))}) == 3


def test_no_prompt_set_is_tried_twice_and_the_search_is_content_with_fewer() -> None:
    one = settings(candidates=12, maxBootstrappedDemos=2, maxLabeledDemos=0)
    candidates = build_candidates(START, qa_pool(passing=2), one, seed=0, step=1)
    digests = [candidate.prompts.sha256 for candidate in candidates]
    assert len(digests) == len(set(digests)) == 5, "none, each alone, and both in either order"


def test_without_a_passing_trace_only_zero_shot_and_labeled_are_left() -> None:
    candidates = build_candidates(START, qa_pool(passing=0), settings(), seed=0, step=1)
    assert [candidate.kind for candidate in candidates] == ["zero-shot", "labeled"]
    nothing = build_candidates(START, qa_pool(passing=0), settings(maxLabeledDemos=0), seed=0, step=1)
    assert [candidate.kind for candidate in nothing] == ["zero-shot"]
    off = build_candidates(START, qa_pool(), settings(maxBootstrappedDemos=0), seed=0, step=1)
    assert [candidate.kind for candidate in off] == ["zero-shot", "labeled"]


def test_starting_prompts_with_demos_are_a_candidate_of_their_own() -> None:
    start = prompts("answer", demos=({"question": "old", "answer": "old"},))
    candidates = build_candidates(start, qa_pool(), settings(candidates=4), seed=0, step=1)
    assert [candidate.kind for candidate in candidates] == ["starting", "zero-shot", "labeled", "bootstrapped"]
    assert candidates[0].prompts == start and demos_of(candidates[1].prompts) == ()


def test_the_number_of_candidates_is_a_limit_on_all_kinds() -> None:
    for count in (1, 2, 3):
        assert len(build_candidates(START, qa_pool(), settings(candidates=count), seed=0, step=1)) == count


def test_predictors_draw_independently_and_one_that_was_never_called_has_no_demos() -> None:
    fields = {"search": SEARCH, "answer": QA, "idle": SEARCH}
    runs = [run(n, call("search", n, query=f"s{n}"), call("answer", n, answer=f"said{n}")) for n in range(20)]
    pool = build_pool(fields, EXAMPLES, runs)
    start = prompts("search", "answer", "idle")
    candidates = build_candidates(start, pool, settings(maxLabeledDemos=0), seed=0, step=1)
    random = [c.prompts for c in candidates if c.kind == "random"]
    pairs = [([d["question"] for d in demos_of(p, "search")], [d["question"] for d in demos_of(p)]) for p in random]
    assert all(len(searched) == len(answered) for searched, answered in pairs), "one count for all predictors"
    assert any(searched != answered for searched, answered in pairs)
    assert all(demos_of(p, "idle") == () for p in random)


def test_labeled_demos_go_only_to_predictors_whose_fields_the_examples_hold() -> None:
    fields = {"search": SEARCH, "answer": QA}
    pool = build_pool(fields, EXAMPLES, [run(0, call("search", 0, query="s0"))])
    labeled = next(
        c
        for c in build_candidates(prompts("search", "answer"), pool, settings(), seed=0, step=1)
        if c.kind == "labeled"
    )
    assert demos_of(labeled.prompts, "search") == () and len(demos_of(labeled.prompts)) == 3


def test_a_predictor_called_several_times_gives_one_of_its_calls_chosen_by_the_seed() -> None:
    runs = [run(n, *(call("search", n, query=f"{n}-{hop}") for hop in range(3))) for n in range(20)]
    pool = build_pool({"search": SEARCH}, EXAMPLES, runs)
    hops = set()
    for seed in range(6):
        for candidate in build_candidates(prompts("search"), pool, settings(maxLabeledDemos=0), seed=seed, step=1):
            chosen = [demo["query"].split("-") for demo in demos_of(candidate.prompts, "search")]
            assert len({number for number, _ in chosen}) == len(chosen), "one call of an example"
            hops |= {hop for _, hop in chosen}
    assert hops == {"0", "1", "2"}


def test_labeled_demos_of_a_chain_of_thought_stand_alone_only() -> None:
    runs = [run(n, call("answer", n, reasoning="so", answer=f"said{n}")) for n in range(2)]
    pool = build_pool({"answer": COT}, EXAMPLES, runs)
    candidates = build_candidates(START, pool, settings(), seed=0, step=1)
    labeled = next(c for c in candidates if c.kind == "labeled")
    assert [sorted(demo) for demo in demos_of(labeled.prompts)] == [["answer", "question"]] * 3
    for candidate in candidates:
        if candidate.kind in ("bootstrapped", "random"):
            assert all("reasoning" in demo for demo in demos_of(candidate.prompts))


def test_a_data_set_with_reasoning_fills_up_a_chain_of_thought() -> None:
    examples = [example(number, reasoning="known") for number in range(20)]
    pool = build_pool({"answer": COT}, examples, [run(0, call("answer", 0, reasoning="so", answer="said0"))])
    first = next(c for c in build_candidates(START, pool, settings(), seed=0, step=1) if c.kind == "bootstrapped")
    assert [demo["reasoning"] for demo in demos_of(first.prompts)] == ["so", "known", "known"]


def test_labeled_demos_without_reasoning_stand_beside_others_only_if_that_is_asked_for() -> None:
    runs = [run(0, call("answer", 0, reasoning="so", answer="said0"))]
    pool = build_pool({"answer": COT}, EXAMPLES, runs)
    asked = build_candidates(START, pool, settings(mixLabeled=True), seed=0, step=1)
    first = next(c for c in asked if c.kind == "bootstrapped")
    assert [sorted(demo) for demo in demos_of(first.prompts)] == [
        ["answer", "question", "reasoning"],
        *[["answer", "question"]] * 2,
    ]


def test_labeled_demos_with_reasoning_stand_apart_from_those_without() -> None:
    examples = [example(number, **({"reasoning": "known"} if number < 5 else {})) for number in range(20)]
    pool = build_pool({"answer": COT}, examples, [])
    for mix, with_reasoning in ((False, {True}), (True, {True, False})):
        seen = set()
        for seed in range(5):
            candidates = build_candidates(START, pool, settings(mixLabeled=mix), seed=seed, step=1)
            labeled = next(c for c in candidates if c.kind == "labeled")
            seen |= {"reasoning" in demo for demo in demos_of(labeled.prompts)}
        assert seen == with_reasoning


def test_every_different_passing_trace_of_an_example_may_be_drawn() -> None:
    said = ["one", "two", "two", "three"]
    runs = [
        run(number, call("answer", number, answer=f"{text}{number}"), sample=nth)
        for number in range(4)
        for nth, text in enumerate(said)
    ]
    pool = build_pool({"answer": QA}, EXAMPLES, reversed(runs))
    (first, *_) = pool["answer"].bootstrapped
    assert [demo["answer"] for demo in first.demos] == ["one0", "two0", "three0"]
    drawn = set()
    for seed in range(6):
        for candidate in build_candidates(START, pool, settings(maxLabeledDemos=0), seed=seed, step=1):
            demos = demos_of(candidate.prompts)
            assert len({demo["question"] for demo in demos}) == len(demos), "one trace of an example"
            drawn |= {demo["answer"].rstrip("0123") for demo in demos}
    assert drawn == {"one", "two", "three"}


def test_a_call_that_could_not_be_parsed_or_lacks_a_field_is_no_demo() -> None:
    assert call_demo(call("answer", 0), COT) is None
    assert call_demo(call("answer", 0, answer="a"), COT) is None
    extra = call("answer", 0, reasoning="r", answer="a", more="m")
    assert call_demo(extra, COT) == {"question": "q0", "reasoning": "r", "answer": "a"}


def test_rows_that_occur_twice_give_one_demo() -> None:
    twice = [*EXAMPLES[:2], Example("again", EXAMPLES[0].fields)]
    pool = build_pool({"answer": QA}, twice, [])
    assert len(pool["answer"].labeled) == 2


def test_a_retry_shows_labeled_demos_but_never_the_example_itself() -> None:
    pool = qa_pool(passing=0)
    shown = set()
    for own in EXAMPLES:
        prompt_set = retry_prompts(START, pool, settings(), own, ("question",), seed=0, step=1)
        assert prompt_set is not None and len(demos_of(prompt_set)) == 3
        assert own.fields["question"] not in [demo["question"] for demo in demos_of(prompt_set)]
        shown.add(prompt_set.sha256)
    assert len(shown) <= 5, "all examples but those shown share one prompt"
    twin = Example("twin", EXAMPLES[0].fields)
    prompt_set = retry_prompts(START, pool, settings(maxLabeledDemos=20), twin, ("question",), seed=0, step=1)
    assert prompt_set is not None and len(demos_of(prompt_set)) == 19


def test_without_labeled_demos_there_is_no_retry() -> None:
    assert (
        retry_prompts(START, qa_pool(), settings(maxLabeledDemos=0), EXAMPLES[0], ("question",), seed=0, step=1) is None
    )


def test_bootstrapping_wants_one_passing_example_for_each_demo_and_each_candidate() -> None:
    assert wanted_examples(settings(candidates=6), 60) == 9
    assert wanted_examples(settings(candidates=6), 5) == 5
    assert wanted_examples(settings(passingExamples=2), 60) == 2
    assert wanted_examples(settings(passingExamples=2, exhaustive=True), 60) == 60


def test_rounds_of_bootstrapping_follow_the_rate_at_which_examples_pass() -> None:
    assert round_size(9, 0, 0) == 18
    assert round_size(9, 6, 18) == 9
    assert round_size(9, 8, 18) == MIN_ROUND
    assert round_size(9, 0, 18) == 180, "when none passes, many are run at once"


def test_a_training_example_never_sees_itself_among_the_current_demos() -> None:
    start = prompts("answer", demos=({"question": "q1", "answer": "a1"}, {"question": "q2", "answer": "a2"}))
    kept = without_own_demos(start, EXAMPLES[1], ("question",))
    assert [demo["question"] for demo in demos_of(kept)] == ["q2"]
    assert without_own_demos(start, EXAMPLES[5], ("question",)) is start
