"""Random small networks with random habits of users: right, or refused in one line."""

from __future__ import annotations

import pytest

from tests.any_network import SHORT_ERRORS, UNNOTICED, verdict

# Kinds of failures that are known, and why.
KNOWN = {
    SHORT_ERRORS: "few probes of a skewed remainder: about 1 draw in 150, off by under 1 %",
    UNNOTICED: "below what the check of derivatives sees: about 1 draw in 1,000, off by 4e-4",
}


@pytest.mark.parametrize("tens", range(10))
def test_norms_are_right_or_refused(tens: int) -> None:
    seeds = range(10 * tens, 10 * tens + 10)
    failed = {seed: why for seed in seeds for what, why in [verdict(seed)] if what == "failed"}
    known = [why for why in failed.values() if any(kind in why for kind in KNOWN)]
    assert len(known) == len(failed), failed
    if known:
        pytest.xfail("; ".join(known))
