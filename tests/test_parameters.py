"""Wrong parameters are refused before work starts, in a line that says what was expected."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from test_records import make_record

from hessinit_book.chapters import parameters_of
from hessinit_book.chapters.mnist_tracking.run import MnistTrackingParameters
from hessinit_book.errors import ParameterError
from hessinit_book.parameters import PROFILES

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


# Notebooks


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
