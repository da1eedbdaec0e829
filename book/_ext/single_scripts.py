"""Each script once a page.

Jupyter Book and its theme both set up thebe, so every page would declare the constant
THEBE_JS_URL twice, and the browser's console would show an error on every page.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def _drop_repeated(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    unique: dict[tuple[str, str], Any] = {}
    for script in context["script_files"]:
        # A script without a file is noted as None by some and as "" by others.
        unique.setdefault((str(script.filename or ""), repr(script.attributes)), script)
    context["script_files"] = list(unique.values())


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx, after the hooks that add scripts."""
    app.connect("html-page-context", _drop_repeated, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
