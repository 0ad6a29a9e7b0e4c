"""The lists of pins agree, so that images hold what was tested."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "requirements"


def pins(name: str) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in (FOLDER / name).read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


@pytest.mark.parametrize("name", ["operator.txt", "trainer.txt"])
def test_an_image_holds_the_versions_that_are_tested(name: str) -> None:
    tested, image = pins("local.txt"), pins(name)
    assert image and image == {package: tested[package] for package in image}


def test_the_operator_image_is_small() -> None:
    assert pins("operator.txt").keys().isdisjoint({"torch", "dspy", "transformers", "vllm", "boto3"})
