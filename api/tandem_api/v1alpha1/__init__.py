"""The resource `tandem.dev/v1alpha1`, kind `OptimizationRun`."""

from tandem_api.v1alpha1.infrastructure import S3, MLflow, Serving, Storage, Tracking, Training, Workers
from tandem_api.v1alpha1.prompt_optimizers import (
    BootstrapRandomSearch,
    DspyOptimizer,
    Gepa,
    Grounding,
    Mipro,
    Proposer,
    Racing,
    Teacher,
)
from tandem_api.v1alpha1.run import API_VERSION, KIND, Metadata, OptimizationRun
from tandem_api.v1alpha1.spec import Budget, Evaluation, LanguageModel, Sampling, Spec, Step, Stop
from tandem_api.v1alpha1.status import Status
from tandem_api.v1alpha1.task import Code, Data, Holdout, InlineProgram, Metric, Program, Split
from tandem_api.v1alpha1.weight_optimizers import Traces, WeightOptimizer

__all__ = [
    "API_VERSION",
    "KIND",
    "S3",
    "BootstrapRandomSearch",
    "Budget",
    "Code",
    "Data",
    "DspyOptimizer",
    "Evaluation",
    "Gepa",
    "Grounding",
    "Holdout",
    "InlineProgram",
    "LanguageModel",
    "MLflow",
    "Metadata",
    "Metric",
    "Mipro",
    "OptimizationRun",
    "Program",
    "Proposer",
    "Racing",
    "Sampling",
    "Serving",
    "Spec",
    "Split",
    "Status",
    "Step",
    "Stop",
    "Storage",
    "Teacher",
    "Traces",
    "Tracking",
    "Training",
    "WeightOptimizer",
    "Workers",
]
