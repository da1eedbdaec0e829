"""The Explorer: its script predicts what the library does, and its page works without a mouse."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from hessinit_book.drawing import explorer
from hessinit_book.drawing.explorer_records import measured_networks
from hessinit_book.records import records
from hessinit_book.records.records import Record
from hessinit_book.theory import LayerPrediction, Masks, RandomNetwork, predict_layer_norms

ROOT = Path(__file__).resolve().parent.parent
EXPLORER = ROOT / "_build" / "html" / "book" / "explorer.html"
MODEL = ROOT / "book" / "_static" / "explorer" / "model.js"
CENTER = {
    "depth": 5,
    "width": 512,
    "activation": "relu",
    "dropout": 0.0,
    "batch": 1,
    "first": 1.0,
    "others": 1.0,
    "output": 1.0,
}

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = sorted((ROOT / "results" / "paper" / "mnist_tracking").glob("seed-*.json"))
    path = tmp_path_factory.mktemp("explorer") / "data.js"
    explorer.main([str(path), *map(str, paths)])
    return path


def in_javascript(data: Path, expression: str) -> Any:
    """Evaluate an expression of `E`, the model, and `D`, its data."""
    program = (
        f"require({json.dumps(str(data))}); require({json.dumps(str(MODEL))});"
        "const E = globalThis.hessinitExplorer;"
        "const D = E.prepare(globalThis.hessinitExplorerData);"
        f"console.log(JSON.stringify({expression}));"
    )
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def in_library(network: dict[str, Any], stds: list[float]) -> list[LayerPrediction]:
    """Predict for samples of one norm and one overlap, those of the page."""
    inputs, batch = explorer.input_statistics(), network["batch"]
    x = torch.zeros(batch, inputs["size"], dtype=torch.float64)
    x[:, 0] = math.sqrt(inputs["overlap"] if batch > 1 else 0.0)
    for b in range(batch):
        x[b, b + 1] = math.sqrt(1 - float(x[b, 0]) ** 2)
    widths = [inputs["size"], *[network["width"]] * (network["depth"] - 1), inputs["classes"]]
    law = RandomNetwork.make(
        widths, [std**2 for std in stds], network["activation"], Masks(1 - network["dropout"])
    )
    return predict_layer_norms(law, x * math.sqrt(inputs["squaredNorm"]))


NETWORKS = {
    "relu": {},
    "relu-large": {"first": 30.0, "others": 1.3},
    "leaky-deep": {"activation": "leaky_relu", "depth": 30, "others": 0.7},
    "linear": {"activation": "linear", "width": 64},
    "tanh": {"activation": "tanh", "depth": 20},
    "tanh-large": {"activation": "tanh", "depth": 20, "others": 3.0},
    "gelu": {"activation": "gelu", "depth": 10, "others": 1.2},
    "silu-small": {"activation": "silu", "depth": 10, "first": 1e-2},
    "elu": {"activation": "elu"},
    "selu": {"activation": "selu", "depth": 20},
    "dropout": {"dropout": 0.5, "depth": 8},
    "two-layers": {"depth": 2, "width": 30},
    "relu-batch": {"batch": 32, "depth": 8},
    "tanh-batch": {"batch": 32, "activation": "tanh", "depth": 8},
    "dropout-batch": {"batch": 32, "dropout": 0.3},
}


@needs_node
def test_the_script_predicts_what_the_library_does(data: Path) -> None:
    # Logits so small that the softmax is at its center, where nothing is drawn at random.
    networks = [{**CENTER, **changes, "output": 1e-9} for changes in NETWORKS.values()]
    found = in_javascript(data, f"{json.dumps(networks)}.map((n) => E.predict(D, n))")
    for name, network, layers in zip(NETWORKS, networks, found, strict=True):
        expected = in_library(network, [layer["std"] for layer in layers])
        for layer, wanted in zip(layers, expected, strict=True):
            where = (name, layer["layer"])
            assert math.exp(layer["forward"]) == pytest.approx(wanted.forward, rel=1e-3), where
            assert math.exp(layer["backward"]) == pytest.approx(wanted.backward, rel=1e-3), where
            assert math.exp(layer["output"]) == pytest.approx(0.3, rel=1e-3), where
            assert math.exp(layer["norm"]) == pytest.approx(wanted.limit, rel=1e-3), where


@needs_node
@pytest.mark.parametrize("name", ["relu", "relu-batch", "tanh-batch", "relu-large"])
def test_the_script_knows_saturated_outputs(data: Path, name: str) -> None:
    network = {**CENTER, **NETWORKS[name]}
    layers = in_javascript(data, f"E.predict(D, {json.dumps(network)})")
    expected = in_library(network, [layer["std"] for layer in layers])
    for layer, wanted in zip(layers, expected, strict=True):
        # The library's own average over 256 draws of the logits errs by some percent.
        assert math.exp(layer["output"]) == pytest.approx(wanted.output, rel=0.1)
        assert math.exp(layer["norm"]) == pytest.approx(wanted.limit, rel=0.1)


@needs_node
def test_regimes_are_named(data: Path) -> None:
    networks = [{**CENTER, "depth": 10, "others": factor} for factor in (0.5, 1.0, 2.0)]
    found = in_javascript(data, f"{json.dumps(networks)}.map((n) => E.explore(D, n))")
    # The middle layers: the last reads what all have changed, as the first does.
    named = [layers[4]["regime"] for layers in found]
    assert named == ["vanishing", "balanced", "exploding"]
    assert {layer["regime"] for layer in found[1]} == {"balanced"}
    extreme = {**CENTER, "depth": 50, "others": 100.0, "activation": "linear"}
    assert all(
        math.isfinite(x["norm"])
        for x in in_javascript(data, f"E.explore(D, {json.dumps(extreme)})")
    )


@needs_node
def test_measured_networks_are_found_again(data: Path) -> None:
    found = in_javascript(
        data, "D.measured.map((m) => [m, E.describe(D, m), E.matching(D, E.describe(D, m))])"
    )
    assert len(found) == 4
    for measured, described, again in found:
        assert again == measured
        assert described["batch"] == 1024
        layers = in_javascript(data, f"E.predict(D, {json.dumps(described)})")
        norms = [sorted(norms)[len(norms) // 2] for norms in measured["norms"]]
        for layer, norm in zip(layers, norms, strict=True):
            # Width 30 is far from infinite; a slip of a factor would be far more.
            assert abs(layer["norm"] - math.log(norm)) < math.log(3), measured["label"]
    none = in_javascript(data, f"E.matching(D, {json.dumps(CENTER)}) ?? null")
    assert none is None


def test_records_of_norm_propagation_are_read() -> None:
    def record(seed: int) -> Record:
        scheme = {"w64_d3": {"measured": [1.0 + seed, 2.0, 3.0]}}
        any_record = next((ROOT / "results" / "paper" / "mnist_tracking").glob("seed-*.json"))
        return records.read(any_record).model_copy(
            update={
                "experiment": "norm_propagation",
                "seed": seed,
                "parameters": {"keep": 0.5, "batch_size": 32},
                "values": {"schemes": {"dropout_rescaled": scheme, "lecun_tanh": scheme}},
            }
        )

    (found,) = measured_networks([record(1), record(0)])
    assert found["norms"] == [[1.0, 2.0], [2.0, 2.0], [3.0, 3.0]]
    assert found["stds"] == pytest.approx([784**-0.5, 64**-0.5, 64**-0.5])
    assert (found["depth"], found["dropout"], found["batch"]) == (3, 0.5, 32)


def test_other_records_are_passed_over() -> None:
    path = next((ROOT / "results" / "paper" / "layer_structure").glob("seed-*.json"))
    assert measured_networks([records.read(path)]) == []


# The page


@pytest.fixture(scope="module")
def sheet(browser: Any) -> Any:
    return browser.new_page()


def rows(sheet: Any) -> list[list[str]]:
    """Give the text alternative: the table's cells."""
    read = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    return sheet.eval_on_selector_all("#ex-table tbody tr", read)


def test_keys_move_the_norms(sheet: Any) -> None:
    sheet.goto(EXPLORER.as_uri())
    assert sheet.text_content("#ex-summary").startswith("All layers are balanced.")
    assert [row[4] for row in rows(sheet)] == ["balanced"] * 10
    sheet.focus("#ex-others")
    for _ in range(3):
        sheet.keyboard.press("PageDown")
    assert "vanish" in sheet.text_content("#ex-summary")
    assert rows(sheet)[4][4] == "vanishing"
    assert "critical" in sheet.get_attribute("#ex-others", "aria-valuetext")
    sheet.keyboard.press("End")
    assert "explode" in sheet.text_content("#ex-summary")
    sheet.focus("#ex-depth")
    sheet.keyboard.press("Home")
    assert len(rows(sheet)) == 2


def test_a_measured_network_is_shown_beside_its_prediction(sheet: Any) -> None:
    sheet.goto(EXPLORER.as_uri())
    sheet.select_option("#ex-measured", index=1)
    assert sheet.locator("#ex-chart rect.measured").count() == 3
    assert "mnist_tracking" in sheet.text_content("#ex-summary")
    assert all("to" in row[5] for row in rows(sheet))
    sheet.focus("#ex-others")
    sheet.keyboard.press("PageDown")
    assert sheet.locator("#ex-chart rect.measured").count() == 0
    assert sheet.input_value("#ex-measured") == ""


def test_controls_and_chart_are_seen_together(sheet: Any) -> None:
    sheet.goto(EXPLORER.as_uri())
    sheet.set_viewport_size({"width": 1280, "height": 900})
    chart = sheet.locator("#ex-chart").bounding_box()
    controls = sheet.locator(".explorer-controls").bounding_box()
    assert controls["x"] + controls["width"] < chart["x"]
    assert controls["y"] < chart["y"]
    assert controls["height"] < 768 - 60  # a laptop's screen, less the bar at the top
    sheet.set_viewport_size({"width": 390, "height": 844})
    sheet.locator("#ex-dropout").scroll_into_view_if_needed()  # the chart stays above it
    chart = sheet.locator("#ex-chart").bounding_box()
    dropout = sheet.locator("#ex-dropout").bounding_box()
    assert chart["y"] >= 0
    assert chart["y"] + chart["height"] <= dropout["y"] <= 844
