"""The result bundle, as a folder: the program for plain DSPy, its prompts, the adapter, the scores, the report, and
what was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tandem_api.contract import CandidateScore, StageRequest
from tandem_api.records import PromptSet
from tandem_api.store.s3 import MANIFEST
from tandem_api.v1alpha1 import Metadata, OptimizationRun
from tandem_api.v1alpha1.status import Status, Usage
from tandem_trainer.context import StageContext
from tandem_trainer.program.loading import LoadedProgram
from tandem_trainer.report.facts import gather
from tandem_trainer.report.render import render_report
from tandem_trainer.report.scores import scores_document


def write_bundle(
    context: StageContext,
    program: LoadedProgram,
    prompts: PromptSet,
    status: Status,
    test: tuple[CandidateScore, ...],
    usage: Usage,
    folder: Path,
) -> None:
    """Write all of the bundle's files into `folder`. `usage` is this stage's own."""
    facts = gather(context, program, prompts, status, test, usage)
    # DSPy's own format: `load` of the same program takes it, without anything of ours installed.
    program.with_prompts(prompts).save(str(folder / "program.json"))
    _write_json(folder / "run.json", _asked(context.request))
    _write_json(folder / "prompts.json", prompts.model_dump(mode="json"))
    if facts.best.adapter is not None:
        context.store.fetch_folder(facts.best.adapter, folder / "adapter")
        # The bundle has a manifest of its own, over all its files.
        (folder / "adapter" / MANIFEST).unlink(missing_ok=True)
    _write_json(folder / "scores.json", scores_document(facts))
    (folder / "report.html").write_text(render_report(facts), encoding="utf-8")


def _asked(request: StageRequest) -> dict[str, Any]:
    """The run without its status, so that the bundle says by itself what it is the result of."""
    metadata = Metadata(name=request.name, namespace=request.namespace, uid=request.uid)
    document = OptimizationRun(metadata=metadata, spec=request.spec).to_json()
    del document["status"]
    return document


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
