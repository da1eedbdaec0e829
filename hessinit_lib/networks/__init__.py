"""Networks that the experiments use, one file each."""
