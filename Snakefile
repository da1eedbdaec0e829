# runs.yaml -> papermill -> notebook -> hessinit_lib -> result record -> book.
#
#   snakemake                                    the quick runs and the book
#   snakemake --config profile=smoke             another profile's runs, and the book
#   snakemake records --config profile=paper     a profile's records, without the book
import hashlib
import os
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError

from hessinit_lib.errors import UserError
from hessinit_book.records.build_lock import take_build_lock
from hessinit_book.records.machine import device_kind
from hessinit_book.records.planned import read_planned
from hessinit_book.records.records import KINDS, files_in, record_path
from hessinit_book.records.stamps import code_stamp, module_stamp

try:
    # All of it is checked before the first run starts: a slip costs no computing.
    PLANNED = read_planned("runs.yaml")
except UserError as error:
    raise WorkflowError(str(error))
PROFILE = config.get("profile", "quick")
if str(PROFILE) not in PLANNED:
    raise WorkflowError(f"profile: got {PROFILE!r}, expected one of {', '.join(PLANNED)}")
RUNS = PLANNED[PROFILE]
# The extension that puts numbers into the book finds the records from here.
os.environ["HESSINIT_ROOT"] = os.getcwd()

PROSE = [
    "_config.yml",
    "_toc.yml",
    "index.md",
    *(str(path) for path in sorted(Path("book").rglob("*")) if path.is_file() and "__pycache__" not in path.parts),
]


onstart:
    # Before the first job, and not in a dry run. The profiles turn Snakemake's own lock off.
    try:
        take_build_lock()
    except UserError as error:
        raise WorkflowError(str(error))


wildcard_constraints:
    profile="|".join(PLANNED),
    experiment="|".join(sorted({name for runs in PLANNED.values() for name in runs})) or "none",
    place="|".join(("", *(f"{kind}/" for kind in KINDS))),
    seed=r"\d+",


def kind_of(profile, experiment):
    """Tell the kind of device that an experiment's records are made on."""
    return device_kind(PLANNED[profile][experiment]["device"])


def parameters(profile, experiment, seeds, kind):
    """Write a notebook's parameters as a line of YAML, papermill's `-y`.

    The device is named, so that a job on another machine puts its record where it is looked for.
    """
    chosen = {**PLANNED[profile][experiment], "profile": profile, "seeds": seeds}
    if chosen["device"].partition(":")[0] != kind:  # a certain GPU, as "cuda:1", stays
        chosen["device"] = kind
    return yaml.safe_dump(chosen, default_flow_style=True, width=10**6).strip()


def record_files(profile, experiment):
    kind, seeds = kind_of(profile, experiment), PLANNED[profile][experiment]["seeds"]
    return [str(record_path("results", profile, experiment, seed, kind)) for seed in seeds]


def full_scale(experiment):
    """List the committed full-scale records: the book shows them, it does not make them.

    They go into `params`, never into `input`: an input that a rule can make would be made.
    """
    return sorted(str(path) for path in Path("results/paper", experiment).glob("seed-*.json"))


def digest(files):
    """Sum up files that are not inputs, so that a change in them is seen all the same."""
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


# The same from all devices: a page may show those of a GPU, too.
FULL_SCALE = [str(path) for experiment in RUNS for path in files_in(Path("results/paper", experiment))]

# What vouches for records of earlier code: the book says so beside them.
CONFIRMED = sorted(str(path) for path in Path("results/paper").glob("*/confirmed.json"))


# Made by `make bench` and committed, like the full-scale records.
BENCHMARKS = sorted(str(path) for path in Path("results/paper").glob("benchmark_*/seed-0.json"))


# All of them: the Explorer picks those that measured norms at the start.
MEASURED = [file for experiment in RUNS for file in full_scale(experiment)]


rule book:
    default_target: True
    input:
        prose=PROSE,
        pages=expand("_build/src/notebooks/{experiment}.ipynb", experiment=RUNS),
        records=[file for experiment in RUNS for file in record_files(PROFILE, experiment)],
        landing="_build/landing.svg",
        chart="_build/how_fast.svg",
        explorer="_build/explorer.js",
    output:
        "_build/html/index.html",
    params:
        code=module_stamp("hessinit_book.claims"),
        api=digest(sorted(Path("hessinit_lib").rglob("*.py"))),  # docstrings
        full=digest([*FULL_SCALE, *CONFIRMED]),
        benchmarks=digest(BENCHMARKS),
    log:
        "_build/logs/book.log",
    shell:
        "{{ cd _build/src && rm -rf book && cp -R ../../_config.yml ../../_toc.yml ../../index.md ../../book . "
        "&& cp ../landing.svg ../how_fast.svg book/figures/ "
        "&& cp ../explorer.js book/_static/explorer/data.js && cd ../.. && rm -rf _build/html "
        "&& jupyter-book build _build/src --path-output . --all -W --keep-going -n ; }} > {log} 2>&1 "
        "|| {{ cat {log}; exit 1; }}"


rule records:
    input:
        [file for experiment in RUNS for file in record_files(PROFILE, experiment)],


rule seed:
    input:
        notebook="notebooks/{experiment}.ipynb",
    output:
        # Not deleted before the job: the notebook itself knows whether the record still holds,
        # and a job that fails must not cost the record that was there.
        update("results/{profile}/{experiment}/{place}seed-{seed}.json"),
    params:
        code=lambda w: code_stamp(w.experiment),
        yaml=lambda w: parameters(w.profile, w.experiment, [int(w.seed)], w.place.rstrip("/") or "cpu"),
    log:
        "_build/logs/{profile}/{experiment}/{place}seed-{seed}.ipynb",
    threads: 1
    shell:
        "papermill {input.notebook} {log} -y {params.yaml:q} --no-progress-bar "
        "&& touch -c {output}"  # a record that still holds counts as new; none is made of nothing


# The same notebook once more, over all seeds: it finds their records, and draws.
rule page:
    input:
        notebook="notebooks/{experiment}.ipynb",
        records=lambda w: record_files(PROFILE, w.experiment),
    output:
        "_build/src/notebooks/{experiment}.ipynb",
    params:
        code=lambda w: code_stamp(w.experiment),
        figures=lambda w: module_stamp(f"hessinit_book.chapters.{w.experiment}.figures"),
        yaml=lambda w: parameters(
            PROFILE, w.experiment, list(RUNS[w.experiment]["seeds"]), kind_of(PROFILE, w.experiment)
        ),
        full=lambda w: digest(files_in(Path("results/paper", w.experiment))),
    log:
        "_build/logs/pages/{experiment}.ipynb",
    threads: 1
    shell:
        # A failed notebook stays in the log, with its error; a good one becomes the page.
        # It carries a stamp of the code and records that it shows (`make verify` compares).
        "papermill {input.notebook} {log} -y {params.yaml:q} --no-progress-bar "
        "&& python -m hessinit_book.records.freshness {input.notebook} {log} {output}"


rule landing:
    output:
        "_build/landing.svg",
    params:
        code=module_stamp("hessinit_book.chapters.mnist_tracking.landing"),
        full=digest(full_scale("mnist_tracking")),
        records=full_scale("mnist_tracking"),
    shell:
        "python -m hessinit_book.chapters.mnist_tracking.landing {output} {params.records}"


rule explorer:
    output:
        "_build/explorer.js",
    params:
        code=module_stamp("hessinit_book.drawing.explorer"),
        full=digest(MEASURED),
        records=MEASURED,
    shell:
        "python -m hessinit_book.drawing.explorer {output} {params.records}"


rule how_fast:
    input:
        "benchmarks/chart.py",
    output:
        "_build/how_fast.svg",
    params:
        code=module_stamp("hessinit_book.drawing.style"),
        full=digest(BENCHMARKS),
        records=BENCHMARKS,
    shell:
        "python -m benchmarks.chart {output} {params.records}"
