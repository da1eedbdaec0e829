"""Wrong parameters are refused before work starts, in a line that says what was expected."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from test_records import make_record

from hessinit_book.chapters import parameters_of
from hessinit_book.chapters.mnist_tracking.run import MnistTrackingParameters
from hessinit_book.data import load
from hessinit_book.errors import ParameterError
from hessinit_book.parameters import _DRAWN, _TRAINING, PROFILES, require_writable

CHAPTERS = Path(__file__).resolve().parent.parent / "hessinit_book" / "chapters"

check = MnistTrackingParameters.check


@pytest.mark.parametrize(
    ("given", "got", "expected"),
    [
        ({"profile": "huge"}, "profile: got 'huge'", "one of smoke, quick, paper"),
        ({"profile": ["smoke"]}, "profile: got ['smoke']", "one of smoke, quick, paper"),
        ({"deviations": [1.0, -1]}, "deviations[1]: got -1", "greater than 0"),
        ({"deviations": []}, "deviations: got ()", "at least one"),
        ({"deviations": 0.5}, "deviations: got 0.5", "a list"),
        ({"steps": 0}, "steps: got 0", "greater than or equal to 1"),
        ({"steps": True}, "steps: got True", "a valid integer"),
        ({"steps": 2.5}, "steps: got 2.5", "a valid integer"),
        ({"steps": "many"}, "steps: got 'many'", "a valid integer"),
        ({"seeds": []}, "seeds: got ()", "at least one"),
        ({"seeds": [1, 0, 1]}, "seeds: got [1, 0, 1]", "each once"),
        ({"seeds": [0, -1]}, "seeds[1]: got -1", "greater than or equal to 0"),
        ({"seeds": [False]}, "seeds[0]: got False", "a valid integer"),
        ({"seeds": 3}, "seeds: got 3", "a list"),
        ({"seeds": "3"}, "seeds: got '3'", "a list"),
        ({"seeds": "[3"}, "seeds: got '[3'", "a list"),
        ({"device": "gpu"}, "device: got 'gpu'", "auto, cpu, mps, cuda or cuda:N"),
        ({"device": "cuda:x"}, "device: got 'cuda:x'", "auto, cpu, mps, cuda or cuda:N"),
        ({"learning_rate": float("nan")}, "learning_rate: got nan", "a finite number"),
        ({"learning_rate": float("inf")}, "learning_rate: got inf", "a finite number"),
        ({"learning_rate": "0.1"}, "learning_rate: got '0.1'", "a valid number"),
        ({"data_dir": "no such folder"}, "data_dir: got 'no such folder'", "an existing folder"),
        ({"deviations": [0.1, 1, 0.1]}, "deviations: got [0.1, 1.0, 0.1]", "each once"),
        ({"learning_rate": 1e-300}, "learning_rate: got 1e-300", "at least 1e-12"),
        ({"batch_size": 2001}, "batch_size: got 2001", "at most 2000, the training set"),
        ({"profile": "paper", "probe_size": 60_001}, "probe_size: got 60001", "at most 60000, "),
        ({"device": "cuda:\u0663"}, "device: got 'cuda:\u0663'", "auto, cpu, mps, cuda or cuda:N"),
        ({"data_dir": "~nosuchuser/x"}, "data_dir: got '~nosuchuser/x'", "no home of that name"),
        ({"results_dir": ""}, "results_dir: got ''", "a path"),
        ({"results_dir": "a" * 300}, f"results_dir: got '{'a' * 79}...", "File name too long"),
        ({"results_dir": f"{__file__}/x"}, "results_dir: got '", "test_parameters.py is no folder"),
        ({"cls": 3}, "unknown parameter 'cls'", "known: profile, seeds, device"),
        ({"stepz": 3}, "unknown parameter 'stepz'", "known: profile, seeds, device"),
        ({"stepz": None}, "unknown parameter 'stepz'", "known: profile, seeds, device"),
    ],
)
def test_refused_in_one_line(given: dict[str, Any], got: str, expected: str) -> None:
    with pytest.raises(ParameterError) as caught:
        check(**{"profile": "smoke", **given})
    message = str(caught.value)
    assert message.startswith(got)
    assert expected in message.removeprefix(got)
    assert "\n" not in message


def test_data_dir_is_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ParameterError, match="expected an existing folder"):
        check(data_dir=str(file))
    assert check(data_dir=str(tmp_path)).data_dir == tmp_path


@pytest.mark.parametrize(
    ("given", "seeds"), [("[3]", (3,)), ("[2, 0]", (2, 0)), ([5], (5,)), ((1, 2), (1, 2))]
)
def test_seeds_as_list_or_text(given: object, seeds: tuple[int, ...]) -> None:
    assert check(seeds=given).seeds == seeds


@pytest.mark.parametrize("profile", PROFILES)
def test_defaults_are_those_of_the_profile(profile: str) -> None:
    parameters = check(profile=profile, steps=None, seeds=None)
    own = MnistTrackingParameters.BY_PROFILE[parameters.profile]
    assert parameters.profile == profile
    assert {name: getattr(parameters, name) for name in own} == own
    assert parameters.deviations == (1e-5, 1e-2, 1.0)


def test_quick_is_the_default_profile() -> None:
    assert check() == check(profile="quick")
    assert check() != check(profile="smoke")


def test_given_wins_over_the_profile() -> None:
    assert check(profile="smoke", steps=7).steps == 7


def test_bearing_leaves_out_places(tmp_path: Path) -> None:
    parameters = check(profile="smoke", seeds=[4], device="cpu", results_dir=str(tmp_path))
    bearing = parameters.bearing()
    fields = set(MnistTrackingParameters.model_fields)
    assert set(bearing) == fields - {"seeds", "device", "data_dir", "results_dir"}
    assert bearing == check(profile="smoke", data_dir=str(tmp_path)).bearing()
    assert bearing != check(profile="smoke", steps=21).bearing()
    assert bearing["deviations"] == [1e-5, 1e-2, 1.0]  # as a record gives it back


@pytest.mark.parametrize(
    ("experiment", "given", "expected"),
    [
        ("contest", {"batch_size": 751}, "batch_size: got 751, expected less than or equal to 750"),
        ("init_targets", {"batch_size": 2001}, "batch_size: got 2001, expected at most 2000, the"),
        ("init_targets", {"probe_size": 10**6}, "probe_size: got 1000000, expected at most 2000,"),
        ("diagnose", {"batch_size": 1501}, "batch_size: got 1501, expected at most 1500, the"),
        ("fashion_depth", {"batch_size": 1001}, "batch_size: got 1001, expected at most 1000, "),
        ("linearization_error", {"batch_sizes": [1, 2001]}, "batch_sizes: got 2001, expected at m"),
        ("layer_structure", {"hidden": [4]}, "hidden: got (4,), expected at least two"),
        ("width_scaling", {"rates": [1, 2]}, "rates: got (1, 2), expected at least three"),
        ("fashion_depth", {"drop_percent": [150]}, "drop_percent[0]: got 150, expected less than"),
        ("fashion_depth", {"drop_percent": [-20]}, "drop_percent[0]: got -20, expected greater"),
        ("fashion_depth", {"drop_percent": [0]}, "drop_percent[0]: got 0, expected greater than 0"),
        ("word2vec", {"seeds": [2**32]}, "seeds[0]: got 4294967296, expected less than 42949672"),
        ("word2vec", {"learning_rate": 1e20}, "learning_rate: got 1e+20, expected less than or"),
        ("word2vec", {"deviations": [1e20]}, "deviations[0]: got 1e+20, expected less than or"),
        ("word2vec", {"sample": 1.0}, "sample: got 1.0, expected 0, or at least 1e-08 and less"),
        ("word2vec", {"corpus": "text9"}, "corpus: got 'text9', expected 'sample', 'text8' or"),
        ("init_targets", {"width": 2}, "width: got 2, expected greater than or equal to 8"),
        ("init_targets", {"probe_size": 1}, "probe_size: got 1, expected greater than or equal"),
    ],
)
def test_refused_by_an_experiment(experiment: str, given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ParameterError) as caught:
        parameters_of(experiment).check(**given)
    assert str(caught.value).startswith(expected)


def test_units_of_layers_may_be_alike() -> None:
    assert parameters_of("layer_structure").check(hidden=[10, 10])


def test_experiments_that_draw_from_images_name_them() -> None:
    """All that have a batch but for the one that draws a table of its own."""
    names = [path.parent.name for path in CHAPTERS.glob("*/run.py")]
    drawing = [n for n in names if set(_DRAWN) & set(parameters_of(n).model_fields)]
    assert [n for n in drawing if not parameters_of(n).IMAGES] == ["word_pair_saddle"]


def test_sizes_of_the_image_sets() -> None:
    for name, sizes in _TRAINING.items():
        assert load(name, sample=True).info.train_size == sizes[0]
    full = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000}
    assert {name: sizes[1] for name, sizes in _TRAINING.items()} == full


def test_numbers_as_yaml_1_1_reads_them() -> None:
    parameters = check(learning_rate="1e-3", deviations=["1E-5", "2.e+0", 1, ".5e1"])
    assert parameters.learning_rate == 1e-3
    assert parameters.deviations == (1e-5, 2.0, 1, 5.0)
    assert check(deviations="[1e-5, 1]").deviations == (1e-5, 1)


def test_home_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check(results_dir="~/results").results == tmp_path / "results"


def test_results_are_in_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inner = tmp_path / "notebooks"
    inner.mkdir()
    monkeypatch.chdir(inner)
    assert check().results == inner / "results"
    (tmp_path / "runs.yaml").touch()
    assert check().results == tmp_path / "results"


# Where records go


@pytest.mark.parametrize("where", ["file/x", "file", "/proc/x", "/dev/null/x", "loop/x", "link"])
def test_folder_that_no_record_can_go_to(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    given = {"profile": "smoke", "results_dir": str(tmp_path / where)}
    with pytest.raises(ParameterError, match=r"^results_dir: got .*, expected a folder .* \(.+\)$"):
        MnistTrackingParameters.from_notebook(given)
    # Also where the check of the notebook is passed by, before anything is computed.
    with pytest.raises(ParameterError, match=r"^results_dir: got .*, expected a folder"):
        require_writable(tmp_path / where / "smoke" / "mnist_tracking")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "loop", "link"}


def test_trying_a_folder_leaves_nothing(tmp_path: Path) -> None:
    MnistTrackingParameters.from_notebook({"results_dir": str(tmp_path / "made" / "later")})
    assert list(tmp_path.iterdir()) == []


def test_records_that_are_there_need_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are made of a checkout that is read only."""

    def refuse(folder: Path) -> None:
        raise ParameterError("read only")

    monkeypatch.setattr("hessinit_book.parameters.require_writable", refuse)
    given = {"profile": "smoke", "results_dir": str(tmp_path), "seeds": [0, 1]}
    folder = tmp_path / "smoke" / "mnist_tracking"
    folder.mkdir(parents=True)
    (folder / "seed-0.json").touch()
    with pytest.raises(ParameterError, match="read only"):
        MnistTrackingParameters.from_notebook(given)
    (folder / "seed-1.json").touch()
    assert MnistTrackingParameters.from_notebook(given).seeds == (0, 1)


def test_environment_names_nobodys_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HESSINIT_DATA", "~nosuchuser/data")
    with pytest.raises(ParameterError, match="HESSINIT_DATA: got '~nosuchuser/data', expected a"):
        MnistTrackingParameters.from_notebook({"profile": "smoke"})


# Notebooks

CHECK = "found = MnistTrackingParameters.from_notebook(globals())"


def run_cells(shell: InteractiveShell, *cells: str) -> MnistTrackingParameters:
    shell.user_ns["MnistTrackingParameters"] = MnistTrackingParameters
    for cell in cells:
        done = shell.run_cell(cell, store_history=True)
        if done.error_in_exec:
            raise done.error_in_exec
    return shell.user_ns["found"]


def test_cells_of_a_notebook_count_alone(shell: InteractiveShell) -> None:
    cell = 'profile = "smoke"\nsteps = None\nevery = 5'
    assert run_cells(shell, "import sys", cell, CHECK) == check(profile="smoke", every=5)
    # A later cell, and a parameter that is changed in a cell of its own.
    assert run_cells(
        shell, "results = [1, 2]", "count = len(results)", "steps = 7", CHECK
    ) == check(profile="smoke", every=5, steps=7)


@pytest.mark.parametrize(
    ("line", "name"),
    [("sedes = []", "sedes"), ("_steps = 3", "_steps"), ("In = 3", "In"), ("rate = None", "rate")],
)
def test_misspelled_names_in_cells(line: str, name: str, shell: InteractiveShell) -> None:
    """What papermill was given has a cell of its own; a reader edits the notebook's."""
    cell = 'profile = "smoke"\nsteps = 20'
    with pytest.raises(ParameterError, match=f"unknown parameter '{name}'; known: profile"):
        run_cells(shell, cell, f"# Parameters\n{line}\n", CHECK)
    with pytest.raises(ParameterError, match=f"unknown parameter '{name}'"):
        run_cells(shell, f"{cell}\n{line}", CHECK)
    assert run_cells(shell, cell, CHECK).steps == 20  # mended


# Without a notebook's history, every plain value counts.


def namespace(**names: Any) -> dict[str, Any]:
    """What a kernel's namespace holds below the cell of parameters."""
    shell = {"In": ["", "import sys"], "Out": {}, "_dh": ["."], "_": "", "get_ipython": print}
    imported = {"sys": sys, "MnistTrackingParameters": MnistTrackingParameters}
    return {"__name__": "__main__", **shell, **imported, "profile": "smoke", **names}


def test_from_notebook() -> None:
    found = MnistTrackingParameters.from_notebook(namespace(steps=5, every=None, seeds="[1]"))
    assert found == check(profile="smoke", steps=5, seeds=[1])


@pytest.mark.parametrize("value", [1, "1", None, True, 0.5, [1], {"a": [1.5]}])
def test_from_notebook_with_a_misspelled_name(value: object) -> None:
    with pytest.raises(ParameterError, match="unknown parameter 'lerning_rate'"):
        MnistTrackingParameters.from_notebook(namespace(lerning_rate=value))


@pytest.mark.parametrize("value", [sys, int, len])
def test_from_notebook_with_a_value_of_no_sense(value: object) -> None:
    with pytest.raises(ParameterError, match="steps: got"):
        MnistTrackingParameters.from_notebook(namespace(steps=value))


def test_from_notebook_a_second_time() -> None:
    """A reader changes a parameter and runs the cells again: their results are still there."""
    later = {"parameters": check(), "records": [make_record()], "full_scale": [], "figures": sys}
    found = MnistTrackingParameters.from_notebook(namespace(steps=5, **later))
    assert found.steps == 5


# By name


def test_parameters_of() -> None:
    assert parameters_of("mnist_tracking") is MnistTrackingParameters


@pytest.mark.parametrize("name", ["mnist_trackin", "__init__"])
def test_parameters_of_no_experiment(name: str) -> None:
    with pytest.raises(ParameterError, match=f"experiment.* '{name}'"):
        parameters_of(name)
