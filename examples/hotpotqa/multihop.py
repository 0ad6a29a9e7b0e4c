"""The HotPotQA program of BetterTogether (arXiv 2407.10930): two searches, each after a thought, then the answer."""

from __future__ import annotations

from pathlib import Path

import dspy

from tandem_trainer.retrieval import BM25


class GenerateQuery(dspy.Signature):
    """Write a search query for what the context does not yet tell but the question needs."""

    context: list[str] = dspy.InputField(desc="passages that were found so far, which may be of use")
    question: str = dspy.InputField()
    query: str = dspy.OutputField(desc="a few words")


class GenerateAnswer(dspy.Signature):
    """Answer the question from the context, as briefly as possible."""

    context: list[str] = dspy.InputField(desc="passages that may hold the facts")
    question: str = dspy.InputField()
    answer: str = dspy.OutputField(desc="a name, a number or a few words")


class MultiHop(dspy.Module):
    """Three chains of thought: a query, another one that knows what the first has found, and the answer.

    `corpus` is the URI of the passages (`tandem_trainer.retrieval`); a relative `file:` path starts at this file.
    """

    def __init__(self, corpus: str, hops: int = 2, passages: int = 3) -> None:
        super().__init__()
        self.passages = passages
        self.retriever = BM25.open(corpus, base=Path(__file__).parent)
        self.generate_query = [dspy.ChainOfThought(GenerateQuery) for _ in range(hops)]
        self.generate_answer = dspy.ChainOfThought(GenerateAnswer)

    def forward(self, question: str) -> dspy.Prediction:
        context: list[str] = []
        for generate_query in self.generate_query:
            query = generate_query(context=context, question=question).query
            found = map(str, self.retriever.search(query, self.passages))
            context = list(dict.fromkeys([*context, *found]))
        answer = self.generate_answer(context=context, question=question).answer
        return dspy.Prediction(context=context, answer=answer)
