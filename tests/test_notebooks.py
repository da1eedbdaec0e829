"""Each notebook runs from start to end; a wrong parameter ends it with one clear line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from hessinit_book.chapters import parameters_of
from hessinit_book.errors import ParameterError
from hessinit_book.records import records
from hessinit_book.records.stamps import code_stamp

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]

# conftest.py chooses another backend, which shows no figure.
ENVIRONMENT = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "OMP_NUM_THREADS": "1",
}


def papermill(name: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a notebook in a folder, in a shell as a user does; its records go there too."""
    given = ["-p", "results_dir", str(folder / "results"), "-p", "device", "cpu", *arguments]
    command = [sys.executable, "-m", "papermill", source(name), "out.ipynb", "--no-progress-bar"]
    return subprocess.run(
        [*command, *given],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )


def source(name: str) -> str:
    return str(ROOT / "notebooks" / f"{name}.ipynb")


def test_there_are_notebooks() -> None:
    assert "mnist_tracking" in NAMES


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """Start one kernel for all notebooks: most of the time of a short run is torch's import."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env={**os.environ, **ENVIRONMENT})
    yield manager
    manager.shutdown_kernel(now=True)


def run_all(notebook: NotebookNode, kernel: KernelManager, folder: Path) -> None:
    """Run all cells in a folder, in a namespace of their own."""
    fresh = f"%reset -f\nimport os\nos.chdir({str(folder)!r})\ndel os"
    cell = {"cell_type": "code", "source": fresh, "metadata": {}, "outputs": []}
    notebook.cells.insert(0, NotebookNode(cell, id="reset", execution_count=None))
    client = NotebookClient(notebook, km=kernel)
    try:
        client.execute(cleanup_kc=False)
    finally:
        client.kc.stop_channels()
    del notebook.cells[0]


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(name: str, tmp_path: Path, kernel: KernelManager) -> None:
    full_scale = ROOT / "results" / "paper" / name
    if full_scale.is_dir():  # so that the cells that show it are run
        shutil.copytree(full_scale, tmp_path / "results" / "paper" / name)
    given = {"profile": "smoke", "device": "cpu", "results_dir": str(tmp_path / "results")}
    notebook = parameterize_notebook(load_notebook_node(source(name)), given)
    run_all(notebook, kernel, tmp_path)

    (record,) = records.read_all(tmp_path / "results", "smoke", name)
    expected = parameters_of(name).check(profile="smoke")
    assert record.parameters == expected.bearing()
    assert (record.experiment, record.profile, record.seed) == (name, "smoke", expected.seeds[0])
    assert record.dataset.kind == "sample"
    assert record.code == code_stamp(name)
    assert record.values

    outputs = [
        output
        for cell in notebook.cells
        if cell["cell_type"] == "code" and "remove-output" not in cell["metadata"]["tags"]
        for output in cell["outputs"]
    ]
    assert any("image/svg+xml" in output.get("data", {}) for output in outputs)
    # No warning gets onto the page.
    assert [output for output in outputs if output["output_type"] in ("stream", "error")] == []
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode not in (0, 2), done.stderr  # 2: papermill did not take the arguments
    return [line for line in done.stderr.splitlines() if line.strip()][-1]


WRONG = [
    ("-p stepz 3", "unknown parameter 'stepz'; known: profile, seeds, device,"),
    ("-p profile huge", "profile: got 'huge', expected one of smoke, quick, paper"),
    ("-p data_dir nowhere", "data_dir: got 'nowhere', expected an existing folder of data"),
]


@pytest.mark.parametrize(("name", "slip"), [*zip(NAMES, WRONG, strict=False)])
def test_wrong_parameter(name: str, slip: tuple[str, str], tmp_path: Path) -> None:
    arguments, expected = slip
    done = papermill(name, tmp_path, *arguments.split())
    assert last_line(done).startswith(f"ParameterError: {expected}")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", NAMES)
def test_each_notebook_checks_its_parameters(name: str, shell: InteractiveShell) -> None:
    """The cells that papermill would run, up to the one that fails; no kernel is started."""
    notebook = parameterize_notebook(load_notebook_node(source(name)), {"sedes": []})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            done = shell.run_cell(cell.source, store_history=True)
            if done.error_in_exec:
                break
    assert isinstance(done.error_in_exec, ParameterError)
    assert str(done.error_in_exec).startswith("unknown parameter 'sedes'; known: profile, seeds,")


def test_wrong_list(tmp_path: Path) -> None:
    done = papermill("mnist_tracking", tmp_path, "-y", "{profile: smoke, deviations: [1, -1]}")
    assert last_line(done) == "ParameterError: deviations[1]: got -1, expected greater than 0"
    assert not (tmp_path / "results").exists()


def test_truncated_record(tmp_path: Path) -> None:
    name = "mnist_tracking"
    path = records.record_path(tmp_path / "results", "smoke", name, 0)
    path.parent.mkdir(parents=True)
    path.write_text('{\n "sha256": "ab",\n')
    done = papermill(name, tmp_path, "-p", "profile", "smoke", "-p", "seeds", "[0]")
    line = last_line(done)
    assert line.startswith(f"RecordError: {path} is not a whole JSON file")
    assert line.endswith("delete it and run again")
    assert path.read_text() == '{\n "sha256": "ab",\n'
