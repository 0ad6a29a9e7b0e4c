"""`scores.json`: every number of the run in one place, for jq and pipelines."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tandem_api.contract import CandidateScore
from tandem_api.v1alpha1.status import Candidate, Usage
from tandem_trainer.report.facts import Facts, StageTimes

VERSION = 1


def scores_document(facts: Facts) -> dict[str, Any]:
    """The document: plain JSON values, scores as numbers in [0, 1], times in seconds."""
    status, spec = facts.status, facts.request.spec
    return {
        "version": VERSION,
        "run": {
            "namespace": facts.request.namespace,
            "name": facts.request.name,
            "uid": facts.request.uid,
            "strategy": spec.strategy_text,
            "model": spec.model.uri,
            "seed": spec.seed,
            "versions": facts.versions,
            "examples": facts.sizes,
        },
        "baseline": _candidate(status.baseline) if status.baseline else None,
        "candidates": [_candidate(candidate) for step in status.steps for candidate in step.candidates],
        "best": _candidate(facts.best),
        "test": _test(facts.best_test) if facts.best_test else None,
        "baseline_test": _test(facts.baseline_test) if facts.baseline_test else None,
        "changes": asdict(facts.changes),
        "steps": [
            {
                "index": step.index,
                "kind": step.kind,
                "state": step.state,
                "reason": step.reason,
                "score": float(step.score) if step.score is not None else None,
                "errors": step.errors,
                "tokens": step.tokens,
                "facts": {stage.name: stage.facts for stage in step.stages},
            }
            for step in status.steps
        ],
        "stages": [_stage(times) for times in facts.stages],
        "usage": _usage(facts.usage),
        "model_loading_seconds": status.serving.load_seconds,
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "id": candidate.id,
        "step": candidate.step,
        "score": float(candidate.score),
        "low": float(candidate.low),
        "high": float(candidate.high),
        "n": candidate.n,
        "errors": candidate.errors,
        "prompt_set": candidate.prompt_set.sha256 if candidate.prompt_set else None,
        "adapter": candidate.adapter.sha256 if candidate.adapter else None,
    }


def _test(score: CandidateScore) -> dict[str, Any]:
    return {"score": score.score, "low": score.low, "high": score.high, "n": score.n, "errors": score.errors}


def _stage(times: StageTimes) -> dict[str, Any]:
    return {
        "step": times.step,
        "kind": times.kind,
        "stage": times.stage,
        "state": times.state,
        "start_seconds": round(times.start, 2),
        "seconds": round(times.seconds, 2),
        "loading_seconds": round(times.loading, 2),
        "gap_seconds": round(times.gap, 2),
        "attempts": times.attempts,
        **_usage(times.usage),
    }


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "calls": usage.calls,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "tokens": usage.tokens,
        "gpu_seconds": usage.gpu_seconds,
    }
