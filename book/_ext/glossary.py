"""Terms of the glossary, linked where they first appear on a page, with their meaning at hand.

The first mention of a term in a page's running text becomes a link to the glossary. Its title
is the term's definition, which browsers show on hover; `_static/hints.js` shows it on
focus and touch too. Pages need no markup for it, so a term that is added is linked everywhere.
Headings, links, formulas, code, captions and tables are let be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx

_ATTRIBUTE = "hessinit_glossary"  # of the environment: {page: {term: (id, definition)}}
_KEEP = (
    nodes.title,
    nodes.reference,
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.caption,
    nodes.table,
    nodes.Admonition,
    nodes.problematic,
)


def terms_of(doctree: nodes.document) -> dict[str, tuple[str, str]]:
    """Collect the terms that a page defines in `{glossary}`.

    Returns:
        For each term, in lower case, the id of its entry and the text of its definition.
    """
    found = {}
    for item in doctree.findall(nodes.definition_list_item):
        definition = next(iter(item.findall(nodes.definition)), None)
        for term in item.findall(nodes.term):
            if definition is not None and term["ids"] and term["ids"][0].startswith("term-"):
                text = " ".join(definition.astext().split())
                found[term.astext().split("\n")[0].lower()] = (term["ids"][0], text)
    return found


def link_first_mentions(
    doctree: nodes.document, terms: dict[str, tuple[str, str]], address: str
) -> None:
    """Turn the first mention of each term into a link.

    Args:
        doctree: the page, changed in place.
        terms: see `terms_of`.
        address: of the glossary, seen from the page.
    """
    left = dict(terms)
    for text in list(_running_text(doctree)):
        pieces: list[nodes.Node] = []
        rest = text.astext()
        while left and (match := _pattern(left).search(rest)):
            anchor, definition = left.pop(_singular(match[0], left))
            link = nodes.reference(
                "", match[0], internal=True, refuri=f"{address}#{anchor}", classes=["hint"]
            )
            link["reftitle"] = definition
            pieces += [nodes.Text(rest[: match.start()]), link]
            rest = rest[match.end() :]
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(rest)])


def _pattern(terms: dict[str, tuple[str, str]]) -> re.Pattern[str]:
    longest_first = sorted(terms, key=len, reverse=True)
    words = "|".join(re.escape(term).replace(r"\ ", r"\s+") for term in longest_first)
    return re.compile(rf"(?<![\w-])(?:{words})s?(?![\w-])", re.IGNORECASE)


def _singular(mention: str, terms: dict[str, tuple[str, str]]) -> str:
    word = " ".join(mention.lower().split())
    return word if word in terms else word.removesuffix("s")


def _running_text(doctree: nodes.document) -> Iterator[nodes.Text]:
    for paragraph in doctree.findall(nodes.paragraph):
        if not _within(paragraph, _KEEP):
            for text in paragraph.findall(nodes.Text):
                if not _within(text, _KEEP):
                    yield text


def _within(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    parent = node.parent
    while parent is not None:
        # Extensions make their own kinds of literals and references, by class.
        if isinstance(parent, kinds) or "num" in getattr(parent, "attributes", {}).get(
            "classes", []
        ):
            return True
        parent = parent.parent
    return False


def _collect(app: Sphinx, doctree: nodes.document) -> None:
    assert app.env is not None
    found = terms_of(doctree)
    if found:
        known = getattr(app.env, _ATTRIBUTE, {})
        setattr(app.env, _ATTRIBUTE, {**known, app.env.docname: found})


def _link(app: Sphinx, doctree: nodes.document, page: str) -> None:
    if app.builder.format != "html":
        return
    for glossary, terms in getattr(app.env, _ATTRIBUTE, {}).items():
        if page != glossary:
            link_first_mentions(doctree, terms, app.builder.get_relative_uri(page, glossary))


def _merge(app: Sphinx, env: object, pages: list[str], other: object) -> None:
    known, theirs = (getattr(e, _ATTRIBUTE, {}) for e in (env, other))
    setattr(env, _ATTRIBUTE, {**known, **{p: theirs[p] for p in pages if p in theirs}})


def _purge(app: Sphinx, env: object, page: str) -> None:
    getattr(env, _ATTRIBUTE, {}).pop(page, None)


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx."""
    app.connect("doctree-read", _collect)
    app.connect("doctree-resolved", _link)
    app.connect("env-merge-info", _merge)
    app.connect("env-purge-doc", _purge)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
