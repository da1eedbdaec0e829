"""Print the whole book into one file, _build/book.pdf, with the formulas and links it has.

Sphinx puts all pages into one, and Chromium prints it. `make book` goes first: the pages are
its executed notebooks.

usage: python tools/pdf.py [OUT.pdf]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import sync_playwright

SOURCE = Path("_build/src")
SINGLE = Path("_build/single")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# All formulas drawn, all images there, folded parts open.
READY = """async () => {
  await window.MathJax.startup.promise;
  document.querySelectorAll('details').forEach((d) => { d.open = true; });
  await Promise.all([...document.images].map((i) => {
    i.loading = 'eager';
    return i.decode().catch(() => null);
  }));
}"""


def build() -> Path:
    """Build the book as one page."""
    tools = Path(sys.executable).parent
    command = [str(tools / "jupyter-book"), "build", str(SOURCE), "--path-output", str(SINGLE)]
    environment = {**os.environ, "HESSINIT_ROOT": str(Path.cwd())}
    done = subprocess.run(
        [*command, "--builder", "singlehtml", "--all", "-q"], env=environment, check=False
    )
    if done.returncode:
        sys.exit("pdf: the book could not be built as one page, see above")
    return SINGLE / "_build" / "singlehtml" / "index.html"


def print_page(page: Path, out: Path) -> None:
    """Print a page with Chromium: the system's, else playwright's own."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            sheet = browser.new_page()
            sheet.goto(page.resolve().as_uri())
            sheet.set_default_timeout(120_000)
            sheet.evaluate(READY)
            sheet.pdf(
                path=out,
                format="A4",
                margin={"top": "18mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
                display_header_footer=True,
                header_template="<span></span>",
                footer_template='<div style="font-size:8px;width:100%;text-align:center">'
                '<span class="pageNumber"></span></div>',
                outline=True,
                tagged=True,
            )
        finally:
            browser.close()


def main(arguments: Sequence[str]) -> None:
    """Build and print."""
    if not SOURCE.is_dir():
        sys.exit("pdf: no built book: run `make book` first")
    out = Path(arguments[0]) if arguments else Path("_build/book.pdf")
    print_page(build(), out)
    print(f"The book: {out.resolve()}, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
