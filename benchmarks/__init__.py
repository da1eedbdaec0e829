"""Benchmarks: side by side with the other ways, in one run, as ratios.

`python -m benchmarks` measures every row of `rows.py`: our calls (`ours.py`), those of the
other libraries (`peers/`, one file each; `compare.py` finds what each needs for 1 %), the
floor that arithmetic sets (`floor.py`) and peak memory (`memory.py`). With `--device cuda` all
of it runs on a GPU, beside what that can do at best (`device.py`); `timing.py` times on either.
Each row gives one result record, `results/<profile>/benchmark_<row>/seed-0.json`; the book's page
"How fast" is made from these. `modern.py` does the same with Gauss-Newton norms, on the networks
people train (`modern_networks.py`). `dense_first_layer.py` compares with the authors' way, the
dense matrix.
"""
