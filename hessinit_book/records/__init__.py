"""Records of runs: written, read, compared, and told to be current or not."""
