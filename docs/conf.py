"""How Sphinx builds the documentation (`make docs`): the Markdown files where they lie, and a reference made from the code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from docs import reference  # noqa: E402

MADE = "build/reference"  # within the folder that Sphinx reads, and ignored by git
PAGES = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/**.md", f"{MADE}/*.md")

project = "losslens"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = [*PAGES]
# Sphinx walks every folder that is not excluded: environments and results have many thousand files.
exclude_patterns = [entry.name for entry in ROOT.iterdir() if entry.name not in {"docs", "build", *PAGES}]
exclude_patterns += [f"build/{entry.name}" for entry in (ROOT / "build").glob("*") if entry.name != "reference"]

myst_heading_anchors = 4
default_role = "code"  # docstrings write code in single backticks
smartquotes = False  # options begin with two hyphens
highlight_language = "text"
suppress_warnings = ["misc.highlighting_failure"]  # commands and JSON with `...` in them are meant, and csv has no lexer
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

html_theme = "alabaster"
html_theme_options = {"page_width": "1400px", "body_max_width": "none", "font_family": "sans-serif", "fixed_sidebar": True}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

CONTENTS = """
```{toctree}
:hidden:
:caption: Begin

README <self>
docs/TUTORIAL
```
```{toctree}
:hidden:
:glob:
:caption: How to

docs/howto/*
```
```{toctree}
:hidden:
:glob:
:caption: Reference

build/reference/*
```
```{toctree}
:hidden:
:glob:
:caption: Guides

docs/[A-SU-Z]*
docs/T[A-TV-Z]*
```
```{toctree}
:hidden:
:glob:
:caption: Why

ARCHITECTURE
docs/decisions/*
CHANGELOG
```
"""


def add_contents(_: Any, name: str, source: list[str]) -> None:
    """The first page is README as it stands; what lies beside it is listed here, so that a new guide shows up by itself."""
    if name == root_doc:
        source[0] += CONTENTS


def keep_layout(_made: Any, _what: str, _name: str, _thing: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings are plain words; what is indented in them after an empty line is a formula or a table, laid out by eye."""
    shown: list[str] = []
    inside = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not inside and shown and not shown[-1]:
            shown += ["::", ""]
            inside = True
        inside = inside and (indented or not line)
        shown.append(line)
    lines[:] = shown


def add_index(made: Any, failed: Exception | None) -> None:
    """Servers and people open index.html."""
    if failed is None and made.builder.format == "html":
        forward = f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html"><a href="{root_doc}.html">{project}</a>\n'
        (Path(made.outdir) / "index.html").write_text(forward, encoding="utf-8")


def setup(made: Any) -> None:
    """Called by Sphinx before it looks for pages."""
    reference.write(ROOT / MADE)
    made.connect("source-read", add_contents)
    made.connect("autodoc-process-docstring", keep_layout, priority=400)  # before napoleon
    made.connect("build-finished", add_index)
