"""The held-out part of the zoo: networks and faults that the rules were not fitted to."""

from __future__ import annotations

from hessinit_book.zoo.faults import Planted
from hessinit_book.zoo.networks import Network

NETWORKS_HELD_OUT: dict[str, Network] = {}

FAULTS_HELD_OUT: dict[str, Planted] = {}
