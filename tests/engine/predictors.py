"""A program of several predictors, for runs with an adapter for each."""

from __future__ import annotations

import dspy


class _Noted(dspy.Module):
    """Writes a note, then the label; now and then it checks the label, and it never calls `idle`."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [dspy.Predict("review -> note")]
        self.label = dspy.Predict("note, review -> sentiment")
        self.check = dspy.Predict("sentiment, review -> opinion")
        self.idle = dspy.Predict("review -> nothing")

    async def aforward(self, review: str) -> dspy.Prediction:
        note = (await self.steps[0].acall(review=review)).note
        sentiment = (await self.label.acall(note=note, review=review)).sentiment
        if review.split()[1].endswith("7"):
            await self.check.acall(sentiment=sentiment, review=review)
        return dspy.Prediction(sentiment=sentiment)


def build() -> dspy.Module:
    """The program."""
    return _Noted()
