"""How tables look: the notebooks show text of records only through here, so that it stays text."""

from __future__ import annotations

import html

import pandas as pd
from pandas.io.formats.style import Styler


def captioned(table: pd.DataFrame, caption: str) -> Styler:
    """Put a caption above a table, and escape both: a name in a record cannot become markup.

    pandas itself escapes a plain `DataFrame` where a notebook shows it, but not `DataFrame.style`.

    Args:
        table: what a chapter's figures made of records.
        caption: plain text.

    Example:
        >>> table = pd.DataFrame({"loss": ["low"]}, index=["<b>he</b>"])
        >>> "&lt;b&gt;he&lt;/b&gt;" in captioned(table, "Loss").to_html()
        True
    """
    styled = table.rename_axis(index=_escaped, columns=_escaped).style
    styled.format(escape="html")
    for axis in (0, 1):
        styled.format_index(escape="html", axis=axis)
    return styled.set_caption(html.escape(caption))


def _escaped(text: object) -> object:
    return html.escape(text) if isinstance(text, str) else text
