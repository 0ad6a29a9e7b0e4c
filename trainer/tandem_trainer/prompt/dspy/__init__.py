"""Any optimizer of DSPy as a `p` step."""

from tandem_trainer.prompt.dspy.optimizer import check as check
from tandem_trainer.prompt.dspy.step import optimize as optimize
