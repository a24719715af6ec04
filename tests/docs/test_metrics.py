"""The page of metrics names exactly what the code sends."""

from __future__ import annotations

import re
from pathlib import Path

from airflow_provider_uniapi_fal import metrics

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_lists_the_very_names_of_the_code() -> None:
    listed = re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert listed == list(metrics.NAMES)
