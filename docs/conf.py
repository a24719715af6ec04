"""How the documentation is built: ``make docs``."""

from __future__ import annotations

import sys
from pathlib import Path

from airflow_provider_uniapi_fal import __version__

project = "airflow-provider-uniapi-fal"
author = "The airflow-provider-uniapi-fal authors"
copyright = f"the {author[4:]}"
release = version = __version__

sys.path.insert(0, str(Path(__file__).parent))
extensions = ["myst_parser", "sphinx.ext.autodoc", "parameters"]
# A part of the page on compatibility, and no page itself.
exclude_patterns = ["public_names.md"]
# A name that is referred to and not described is a mistake, but for those that are not ours.
nitpicky = True
nitpick_ignore_regex = [("py:class", r"(airflow|enum)\..*")]
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
