"""The notebook of examples/notebook, from top to bottom in a real kernel: the run, its result, and the program that is
loaded from it, with real vLLM and real training."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

import tandem

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/notebook/quickstart.ipynb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebook's folder, a copy beside one of the data that it names."""
    root = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "examples/reviews/data", root / "reviews/data")
    return root / "notebook"


@pytest.fixture(scope="module")
def executed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    """The notebook with the outputs of all its cells."""
    folder.mkdir()
    state = tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(state / name.lower()))
        patch.setenv("HF_HUB_OFFLINE", "1")
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        client = NotebookClient(
            notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        )
        client.execute()
    return notebook


def printed(notebook: NotebookNode, source: str) -> str:
    """What the cell that contains `source` has printed."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source]
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def test_it_is_committed_without_outputs() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert cells and all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.timeout(2400)
def test_it_shows_the_run_as_it_goes_on_and_the_scores_of_every_step(executed: NotebookNode) -> None:
    lines = printed(executed, "run.watch()").splitlines()
    assert lines[-1].startswith("quickstart: Succeeded, best ")
    assert any("step 1 (p), optimize" in line for line in lines) and any("step 2 (w)" in line for line in lines)
    table = printed(executed, "run.scores()")
    assert "baseline" in table and "test" in table


def test_the_loaded_program_answers_in_the_words_of_its_signature(executed: NotebookNode) -> None:
    lines = printed(executed, "load_program").splitlines()
    assert len(lines) == 2
    assert all(line.rpartition(" -> ")[2] in ("positive", "negative") for line in lines)


def test_the_run_can_be_opened_again_and_nothing_of_it_is_left(executed: NotebookNode, folder: Path) -> None:
    run = tandem.open_local(folder / "runs/quickstart")
    state = run.state()
    assert state.has_succeeded and not run.is_running
    assert run.wait(timeout=60) == state
    assert run.result().scores["best"]["score"] == pytest.approx(run.scores().best.score, abs=1e-4)
    assert [process.pid for process in psutil.process_iter() if str(folder) in workdir(process)] == []


def workdir(process: psutil.Process) -> str:
    """The folder of the run that a process belongs to; empty: of none."""
    try:
        return process.environ().get("TANDEM_WORKDIR", "")
    except psutil.Error:
        return ""
