"""Configuration of the documentation: make docs."""

import lightning_nobp

project = "lightning-nobp"
author = "The lightning-nobp authors"
copyright = f"2026, {author}"
version = release = lightning_nobp.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# What Lightning's own classes say is in Lightning's documentation.
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"lightning-nobp {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
