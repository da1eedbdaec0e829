"""The role {judged}: how well a number tells who trains, computed from full-scale records.

Syntax::

    {judged}`<experiment> <rate> <split> <family> [ahead]`
    {judged}`<experiment> clear`

    {judged}`mnist_depth 0.1 activation Hessian`
    {judged}`fashion_depth 0.1 activation gradient ahead`

The first gives a family's balanced accuracy; with "ahead", how far the Hessian norms are ahead of
it. The second gives how many of these differences are clear, in an experiment's whole table.
Families, rates and splits are those of `mnist_depth`, which computes the tables of the notebooks.
"""

from __future__ import annotations

from book_records import complain, read_followed
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxRole

from hessinit_book.chapters.mnist_depth.reading import Contest, clear, contests, lead
from hessinit_book.errors import RecordError

SYNTAX = "{judged}`<experiment> <rate> <split> <family> [ahead]` or {judged}`<experiment> clear`"


def judged(held: list[Contest], words: list[str]) -> str:
    """Write the figure that the role's words, but for the experiment, ask for.

    Raises:
        RecordError: they do not follow the syntax, or there is no such test.
    """
    if words == ["clear"]:
        return "{} of {}".format(*clear(held))
    if len(words) not in (3, 4) or words[3:] not in ([], ["ahead"]):
        raise RecordError(f"expected {SYNTAX}")
    rate, split, family = words[:3]
    for one in held:
        if (f"{one.rate:g}", one.split) == (rate, split) and family in one.scores:
            if not one.scores[family].chosen:
                raise RecordError(f"no fold of {' '.join(words)} tells anything")
            ahead = words[3:] == ["ahead"]
            figure = lead(held, one, family).signed() if ahead else one.scores[family].estimate()
            return str(figure).replace("-", "\N{MINUS SIGN}")
    raise RecordError(f"there is no test {' '.join(words[:3])!r}")


class JudgedRole(SphinxRole):
    """The role itself."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Give the figure, or a visible mark and a warning."""
        experiment, *words = self.text.split() or [""]
        try:
            text = judged(_held(self.env, f"paper/{experiment}"), words)
        except RecordError as error:
            complain(self.env, self.get_location(), f"{{judged}}`{self.text}`", error)
            return [nodes.problematic(self.rawtext, f"{{judged}}`{self.text}`")], []
        return [nodes.inline("", text, classes=["num"])], []


def _held(env: BuildEnvironment, source: str) -> list[Contest]:
    """Hold the contests of an experiment, once a page."""
    records, key = read_followed(env, source), f"hessinit_judged {source}"
    if key not in env.temp_data:
        env.temp_data[key] = contests(records)
    return env.temp_data[key]


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx."""
    app.setup_extension("book_records")
    app.add_role("judged", JudgedRole())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
