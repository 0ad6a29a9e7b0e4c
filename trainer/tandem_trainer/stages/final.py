"""The last stage: the best program meets the test set, once, and the result bundle is written.

The bundle is written last and whole (its manifest is its last object), so that a run with a bundle has a result. The
stage is the only one that reads the run's status: it is what the report tells.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tandem_api.contract import CandidateScore, StageRequest, StageResult
from tandem_api.errors import ConfigurationError
from tandem_api.records import PromptSet
from tandem_api.v1alpha1.status import Artifact, Status, Usage
from tandem_trainer.context import StageContext
from tandem_trainer.evaluate.evaluator import summarize
from tandem_trainer.program.loading import LoadedProgram, load_program
from tandem_trainer.report.bundle import write_bundle
from tandem_trainer.stages.code import locate_code
from tandem_trainer.stages.evaluate import score_prompts
from tandem_trainer.stages.session import open_session, read_prompt_set


def run(context: StageContext) -> StageResult:
    """Score `request.prompts` on the test set, if there is one, and write the bundle."""
    if context.request.endpoint is None:
        spec = context.request.spec
        program = load_program(spec, code_path=locate_code(spec, context.store, context.cache))
        return _finish(context, program, (), Usage())
    return context.run(_test_and_finish(context))


async def _test_and_finish(context: StageContext) -> StageResult:
    async with open_session(context, with_test=True) as session:
        if not session.splits.test:
            raise ConfigurationError("data.test is not given, so that there is no test set to score on")
        results, _ = await score_prompts(session, session.splits.test)
    scores = tuple(summarize(records, prompts.artifact) for prompts, records in results)
    return _finish(context, session.program, scores, session.usage)


def _finish(
    context: StageContext, program: LoadedProgram, scores: tuple[CandidateScore, ...], usage: Usage
) -> StageResult:
    request = context.request
    with tempfile.TemporaryDirectory(prefix="tandem-bundle-") as name:
        write_bundle(context, program, _best_prompts(context, program), _status(request), scores, usage, Path(name))
        bundle = context.store.put_folder(request.layout.result, Path(name))
    return StageResult(scores=scores, bundle=bundle, usage=usage, facts={"files": bundle.count or 0})


def _best_prompts(context: StageContext, program: LoadedProgram) -> PromptSet:
    artifact: Artifact | None = context.request.prompts[0].artifact
    return program.vanilla if artifact is None else read_prompt_set(context, artifact)


def _status(request: StageRequest) -> Status:
    if request.status is None or request.status.best is None:
        raise ConfigurationError(
            "the final stage needs the run's status with a best candidate; operator and trainer "
            "must be of the same release"
        )
    return request.status
