"""The repository's public address, from the one place where it is set.

That is `[project.urls] Repository` in pyproject.toml. From it follow the theme's buttons
(repository, source, edit, issue; Binder and Colab on notebook pages) and the substitution
`{{ repository }}` for the text, so that no page and no configuration spells it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from book_records import repository_root
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

if sys.version_info >= (3, 11):
    import tomllib
else:  # Sphinx brings tomli where Python has no tomllib.
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

# Jupyter Book refuses these in _config.yml unless the address is spelled there too.
_BUTTONS = (
    "use_repository_button",
    "use_source_button",
    "use_edit_page_button",
    "use_issues_button",
)


def read_address(root: Path) -> str:
    """Read the address from pyproject.toml, without a slash at its end.

    Raises:
        ExtensionError: it is not set, or is no https address.
    """
    path = root / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    address = project.get("urls", {}).get("Repository", "")
    if not address.startswith("https://"):
        raise ExtensionError(
            f"{path}: [project.urls] Repository is {address!r}, expected an https address"
        )
    return address.rstrip("/")


def _configure(app: Sphinx, config: Config) -> None:
    address = read_address(repository_root(app.srcdir))
    config.html_theme_options["repository_url"] = address
    config.html_theme_options.update(dict.fromkeys(_BUTTONS, True))
    config.myst_substitutions = {**config.myst_substitutions, "repository": f"<{address}>"}


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx."""
    app.connect("config-inited", _configure)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
