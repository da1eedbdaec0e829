"""The zoo: sound networks and planted faults that `hessinit_lib.diagnose` is tried on."""
