"""Judges of the claim that the known rules are recovered, one for each way to mean it."""

from __future__ import annotations

from collections.abc import Sequence

from hessinit_book.chapters.norm_balance.drift import drift, second_size
from hessinit_book.chapters.norm_balance.run import RULES
from hessinit_book.claims.findings import Finding, derived, verdict
from hessinit_book.records.records import Record, look_up

WITHIN = 2.0  # largest over smallest norm of the layers: balanced, up to this factor
DIFFERENT = 4.0  # largest over smallest number of inputs of the layers: widths that differ

NAMED = ("lecun_small", "dropout", "he")  # for smooth activations, dropout and ReLU


def traces(found: Sequence[Record], rules: Sequence[Record]) -> Finding:
    """Ask that the algebra is right, and that no measured trace speaks against it."""
    errors = look_up(rules, "values.checks.statement_07.value")
    allowed = look_up(rules, "values.checks.statement_07.allowed")
    right = all(e <= most for e, most in zip(errors, allowed, strict=True))
    drifts = {name: _drifts(found, name, ["trace"]) for name in NAMED}
    holds = [value <= WITHIN for values in drifts.values() for value in values]
    algebra = f"variances of the theory and of the rules: equal to {max(errors):.0e}, by algebra"
    return Finding(
        derived(holds) if right else verdict([False]), "; ".join([algebra, *_texts(drifts)])
    )


def one_sample(found: Sequence[Record]) -> Finding:
    """Ask that norms of single samples are balanced where networks are wide."""
    widest = f"w{max(found[0].parameters['widths'])}_"
    wide = [shape for shape in _shapes(found) if shape.startswith(widest)]
    others = [shape for shape in _shapes(found) if shape not in wide]
    drifts = {name: _drifts(found, name, ["b1"], wide) for name in NAMED}
    holds = [value <= WITHIN for values in drifts.values() for value in values]
    narrow = [value for name in NAMED for value in _drifts(found, name, ["b1"], others)]
    rest = f"in the other networks: {_range(narrow)}"
    return Finding(derived(holds), "; ".join([*_texts(drifts), rest]))


def literal(found: Sequence[Record]) -> Finding:
    """Ask that the norms as they are, not divided by anything, are balanced."""
    different = [shape for shape in _shapes(found) if _spread_of_inputs(found, shape) > DIFFERENT]
    drifts = {name: _drifts(found, name, ["b1"], different, "one") for name in NAMED}
    holds = [value <= WITHIN for values in drifts.values() for value in values]
    equal = _drifts(found, "equal", ["b1"], different)
    rest = f"equal deviations in all layers, which it asks for: {_range(equal)}"
    return Finding(verdict(holds), "; ".join([*_texts(drifts), rest]))


def batches(found: Sequence[Record]) -> Finding:
    """Ask that norms of batches are balanced, at all sizes; where there is a residual, with it."""
    sizes = [size for size in sorted(found[0].parameters["batch_sizes"]) if size > 1]
    measured = [f"b{size}" for size in sizes]
    drifts = {name: _drifts(found, name, measured) for name in (*NAMED, "lecun")}
    texts = _texts(drifts)
    for name in ("lecun_small", "lecun"):
        whole = _drifts(found, name, ["whole"])
        drifts[name] += whole
        texts.append(
            f"{RULES[name].title}, with the residual (batch of {second_size(found)}): "
            + _range(whole)
        )
    holds = [value <= WITHIN for values in drifts.values() for value in values]
    large = [_drifts(found, name, ["large_batch"]) for name in ("he", "dropout")]
    texts.append(
        f"estimated for large batches: He {_range(large[0])}, with dropout {_range(large[1])}"
    )
    return Finding(verdict(holds), "; ".join(texts))


def glorot(found: Sequence[Record]) -> Finding:
    """Ask that Glorot's variances balance the norms that their geometric twin balances."""
    drifts = {"glorot_small": _drifts(found, "glorot_small", ["trace", "b1"])}
    holds = [value <= WITHIN for value in drifts["glorot_small"]]
    ratios = {key: look_up(found[:1], f"values.glorot.{key}")[0] for key in ("784_100", "784_10")}
    twins = [f"{ratio:.2f} in a layer {key.replace('_', ' to ')}" for key, ratio in ratios.items()]
    texts = [*_texts(drifts), "Glorot's variance over the one that balances: " + ", ".join(twins)]
    return Finding(verdict(holds), "; ".join(texts))


def _shapes(found: Sequence[Record]) -> list[str]:
    return list(found[0].values["shapes"])


def _spread_of_inputs(found: Sequence[Record], shape: str) -> float:
    inputs = found[0].values["shapes"][shape][:-1]
    return max(inputs) / min(inputs)


def _drifts(
    found: Sequence[Record],
    name: str,
    norms: Sequence[str],
    shapes: Sequence[str] | None = None,
    unit: str | None = None,
) -> list[float]:
    return [
        drift(found, name, shape, norm, unit)
        for shape in (_shapes(found) if shapes is None else shapes)
        for norm in norms
    ]


def _texts(drifts: dict[str, list[float]]) -> list[str]:
    """Write drifts rule by rule: their range, and how many are within the factor."""
    return [
        f"{RULES[name].title}: {_range(values)}, within {WITHIN:g} in "
        f"{sum(value <= WITHIN for value in values)} of {len(values)}"
        for name, values in drifts.items()
    ]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}" if values else "none"
