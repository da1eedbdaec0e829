"""Random small networks with random habits of users: right, or refused in one line."""

from __future__ import annotations

import pytest

from tests.any_network import verdict


@pytest.mark.parametrize("tens", range(10))
def test_norms_are_right_or_refused(tens: int) -> None:
    verdicts = {seed: verdict(seed) for seed in range(10 * tens, 10 * tens + 10)}
    failed = {seed: why for seed, (what, why) in verdicts.items() if what == "failed"}
    assert not failed
