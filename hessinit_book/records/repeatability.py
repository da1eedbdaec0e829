"""What can be repeated how well: by which rule each number of a record is compared.

Numbers are `exact` unless they are listed here: computed again, they must agree within
`TOLERANCE`. Other rules, for reasons that were seen when records of one processor were
computed again on another:

- `rounding`: a number that is a rounding error (0 by the theory) comes out as another
  rounding error. One that was below the stated bound must be so again; a larger one counts
  as exact.
- `trained`: training at large rates amplifies the last digit until nothing is left of it, and
  what is derived from such losses goes along. By the same code on the same processor these
  numbers are exact. Else those that do not agree must lie in the range of the seeds that are
  there, widened to both sides by its own width, or by `WIDEN` of its larger end where few
  seeds happen to lie close; but for one in ten (rounded up) of those under one pattern.
- `text`: what is said of such numbers, as the nearest words of a word; compared only where they
  are exact.
- `timing`: comes out differently each time, and is not compared.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

TOLERANCE = 0.01
WIDEN = 0.05
OUTSIDE = 0.1  # of the trained numbers that do not agree: may lie outside of the range

Kind = Literal["exact", "rounding", "trained", "text", "timing"]


class Rule(NamedTuple):
    """How the numbers under some keys are compared.

    Attributes:
        kind: see the module's text.
        pattern: of the keys within a record's values; `*` stands for anything, dots too.
        below: bound of rounding errors.
    """

    kind: Kind
    pattern: str
    below: float = 0.0


EXACT = Rule("exact", "*")
TEXT = Rule("text", "*")

_REGIMES = (
    Rule("exact", "regimes.*.loss.0"),
    Rule("exact", "regimes.*.0.*"),  # the layers at the first look
    Rule("trained", "regimes.*"),
)

# Samples that float32 hardly tells apart.
_ALIKE = Rule("rounding", "*.cosine_distance.*", below=1e-9)

# The first rule that fits counts. Lists start before training: their first numbers are exact.
_RULES: dict[str, tuple[Rule, ...]] = {
    # Trained in bfloat16, which keeps three digits; what is tracked starts before training.
    "cifar_networks": (Rule("exact", "*.tracked.*.0.*"), Rule("trained", "*")),
    "cifar_stability": (*_REGIMES, Rule("trained", "rates.*.final_loss.*")),
    "contest": (
        Rule("timing", "*.cost"),
        Rule("trained", "*.final"),
        Rule("trained", "*.steps"),
        Rule("trained", "*.rate"),
        Rule("trained", "*.tried.*"),
    ),
    "diagnose": (Rule("exact", "losses.*.0"), Rule("trained", "losses.*")),
    "fashion_depth": (*_REGIMES, _ALIKE, Rule("trained", "*.trained.*")),
    "init_targets": (
        Rule("trained", "*.final.*"),
        Rule("trained", "*.steps.*"),
        Rule("trained", "*.equal_later.*"),  # starts that are themselves found by descent
        Rule("trained", "*.most_gain.*"),
    ),
    "layer_structure": (
        Rule("rounding", "checks.*.value", below=1e-12),
        Rule("rounding", "*.errors.*", below=1e-12),
        Rule("rounding", "*.residual_ratio", below=1e-12),
    ),
    "linearization_error": (
        Rule("rounding", "checks.statement_05.value", below=1e-12),
        Rule("rounding", "checks.statement_05_exact.value", below=1e-12),
        Rule("rounding", "checks.statement_05_labels.value", below=1e-12),
        Rule("trained", "trained.*"),
        Rule("trained", "accuracy.trained.*"),
        Rule("trained", "losses.*"),
    ),
    "mnist_depth": (
        *_REGIMES,
        Rule("trained", "*.trained.*"),
        # Many tanh layers of large weights amplify the last digit as training does.
        Rule("trained", "grid.tanh.depth_20.at_start.*"),
        _ALIKE,
    ),
    "modern_linearization": (
        Rule("rounding", "checks.statement_12.value", below=1e-12),
        Rule("rounding", "checks.statement_12_variance.value", below=1e-12),
        Rule("trained", "*trained.*"),
        Rule("trained", "*.loss.last"),
        Rule("trained", "*.stderr.*"),  # two digits of an estimated error
    ),
    "norm_propagation": (Rule("rounding", "checks.statement_07.value", below=1e-9),),
    "step_gain": (
        Rule("rounding", "checks.statement_08.value", below=1e-9),
        Rule("exact", "*.0"),
        Rule("trained", "*.full.*"),
        Rule("trained", "*.stochastic.*"),
    ),
    "width_scaling": (
        Rule("rounding", "checks.statement_10.value", below=1e-9),
        Rule("rounding", "balanced.*.balance_defect", below=1e-9),
        Rule("trained", "rates.*"),
    ),
    # Trained by gensim in single precision; the first look is before training.
    "word2vec": (
        Rule("exact", "starts.*.curve.*.0"),
        Rule("trained", "starts.*.curve.*"),
        Rule("trained", "starts.*.final.*"),
    ),
    "word2vec_curvature": (
        Rule("rounding", "checks.blocks.value", below=1e-9),
        Rule("rounding", "checks.gensim.value", below=1e-6),  # gensim computes in float32
        Rule("exact", "blocks.*.0"),
        Rule("trained", "blocks.std_1e+0.*"),
    ),
    "word_pair_saddle": (Rule("rounding", "checks.statement_11.value", below=1e-9),),
}


def rule_for(experiment: str, key: str) -> Rule:
    """Give the rule by which a number is compared.

    Args:
        experiment: name of the experiment.
        key: where the number stands within the record's values, fields joined by dots.

    Example:
        >>> rule_for("width_scaling", "balanced.depth_10.balance_defect").kind
        'rounding'
        >>> rule_for("width_scaling", "norms.mu.trace.0.0").kind
        'exact'
    """
    rules = _RULES.get(experiment, ())
    return next((rule for rule in rules if fnmatchcase(key, rule.pattern)), EXACT)
