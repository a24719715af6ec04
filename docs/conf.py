"""How the documentation is built: ``make docs``."""

from __future__ import annotations

from airflow_provider_uniapi_fal import __version__

project = "airflow-provider-uniapi-fal"
author = "The airflow-provider-uniapi-fal authors"
copyright = f"the {author[4:]}"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
# A part of the page on compatibility, and no page itself.
exclude_patterns = ["public_names.md"]
html_theme = "furo"
html_title = f"airflow-provider-uniapi-fal {release}"
# Nothing is fetched from elsewhere, neither when it is built nor when it is read.
html_show_sphinx = False

# The anchors that GitHub makes of headings, so that a link leads to the same place here and there.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_mock_imports: list[str] = []
