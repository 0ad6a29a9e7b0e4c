"""Where things lie in S3: stored keys outlive releases, so they are spelled out here."""

from __future__ import annotations

import pytest

from tandem_api.layout import RunLayout


def test_the_keys_of_a_run():
    layout = RunLayout("team/a", "default", "reviews", "u1")
    assert layout.run_json == "team/a/default/reviews/u1/run.json"
    assert layout.result == "team/a/default/reviews/u1/result/"


def test_the_keys_of_a_stage_lie_under_its_step():
    stage = RunLayout("", "default", "reviews", "u1").stage(2, "w", "train")
    root = "default/reviews/u1/steps/2-w/train/"
    assert stage.root == root
    assert (stage.request, stage.result) == (f"{root}request.json", f"{root}result.json")
    assert (stage.ledger, stage.traces) == (f"{root}ledger/", f"{root}traces/")
    assert (stage.adapter, stage.checkpoints) == (f"{root}adapter/", f"{root}checkpoints/")
    assert stage.epoch_adapter(2) == f"{root}adapters/2/"
    assert stage.prompt_set("abc") == f"{root}prompts/abc.json"


@pytest.mark.parametrize("prefix", ["", "/", "//"])
def test_no_key_begins_with_a_slash(prefix):
    assert RunLayout(prefix, "ns", "run", "u").root == "ns/run/u/"


def test_runs_of_one_name_do_not_share_a_key():
    first, second = (RunLayout("", "ns", "run", uid).root for uid in ("u1", "u2"))
    assert not first.startswith(second)
    assert not second.startswith(first)
