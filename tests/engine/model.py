"""The scripted model of the engine tests: a reader of labels that gets better with demos, with instructions that tell
it a way, and with tuning. Asked for anything but a label, it writes such an instruction.

Deterministic: what it answers depends on the prompt, the seed (where it samples) and the served name alone. Its faults
come from the environment of the server process: ENGINE_FAULTS, a JSON object {"every": n, "status": code} and the like.
Those of a program's calls under an adapter's name are {"tuned": {fields of Fault}}, until the file "until" is there.
With {"canary": n} adapters have canaries, and n of them are asked for in vain: up to then the base model answers under
the adapter's name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from tests.scripted_lm.server import Fault, Scored

ITEM = re.compile(r"^Review: item (\d+) is (good|bad)$", re.MULTILINE)
LABEL_WANTED = re.compile(r"Review: item \d+ is (good|bad)\nSentiment:$")
WAY = re.compile(r"in the way ([0-9a-f]{6})")
#: Share of right answers in percent: unaided, with each demo more, at most with a way more, tuned.
UNAIDED, PER_DEMO, BEST_WAY, TUNED = 40, 15, 30, 90
#: What the base model and any adapter give each token of a canary.
BASE_LOGPROB, TUNED_LOGPROB = -3.0, -0.5

_faults = json.loads(os.environ.get("ENGINE_FAULTS", "{}"))
_count = _canaries = 0


def answer(request: dict[str, Any]) -> str | Fault | Scored:
    """The label of the last item, right as often as the model's skill says."""
    global _canaries
    fault = _fault() or _tuned_fault(request)
    if fault is not None:
        return fault
    if "prompt_logprobs" in request:
        _canaries += 1
        return Scored(TUNED_LOGPROB if _is_tuned(request) else BASE_LOGPROB)
    text = request["text"]
    if not LABEL_WANTED.search(text):
        way = _digits(f"{request['seed']}/{text}")[:6]
        return f"Say whether the review is good or bad, in the way {way}."
    items = ITEM.findall(text)
    number, label = items[-1]
    skill = UNAIDED + PER_DEMO * (len(items) - 1) + sum(int(way, 16) % BEST_WAY for way in WAY.findall(text))
    if _is_tuned(request):
        skill = TUNED
    # Sampling moves what it gets right; greedy answers are always the same.
    chance = f"{number}/{request['seed'] if request.get('temperature') else ''}"
    lucky = int(_digits(chance), 16) % 100 < skill
    right = {"good": "positive", "bad": "negative"}[label]
    return f" {right if lucky else 'mu'}"


def _is_tuned(request: dict[str, Any]) -> bool:
    wrong = _faults.get("canary", 0)
    return request["model"] != "base" and (wrong == 0 or _canaries > wrong)


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _fault() -> Fault | None:
    global _count
    _count += 1
    every = _faults.get("every")
    if every and _count % every == 0:
        if _faults.get("drop"):
            return Fault(drop=True)
        return Fault(status=_faults.get("status", 500), text=_faults.get("text", "a scripted fault"))
    if _faults.get("die_after") and _count == _faults["die_after"]:
        marker = Path(_faults["marker"])
        if not marker.exists():
            marker.touch()
            os._exit(1)
    return None


def _tuned_fault(request: dict[str, Any]) -> Fault | None:
    if request["model"] == "base" or "prompt_logprobs" in request or "tuned" not in _faults:
        return None
    until = _faults.get("until")
    return None if until and Path(until).exists() else Fault(**_faults["tuned"])
