"""Each parameter of each experiment refuses what is wrong in one clear line, before work starts."""

from __future__ import annotations

import pytest

from tests.parameter_fuzz import EXPERIMENTS, fuzz, is_one_clear_line


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_wrong_values_are_refused(experiment: str) -> None:
    outcomes = list(fuzz([experiment]))
    assert [o for o in outcomes if o.kind == "raw"] == []
    assert [o for o in outcomes if o.kind == "accepted" and not o.text] == []
    assert [o for o in outcomes if o.kind == "refused" and not is_one_clear_line(o)] == []
    assert {o.kind for o in outcomes} == {"refused", "accepted"}
