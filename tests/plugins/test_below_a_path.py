"""The gallery of an API server that lives below a path, as ``[api] base_url = https://example.com/team/airflow``."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import pytest
from airflow.api_fastapi.core_api.security import get_user
from fastapi import FastAPI
from fastapi.testclient import TestClient

from airflow_provider_uniapi_fal.links.urls import PREFIX, prefix_below
from airflow_provider_uniapi_fal.plugins import uniapi_fal
from airflow_provider_uniapi_fal.plugins.gallery import app as gallery
from airflow_provider_uniapi_fal.plugins.gallery.access import may_see_dag
from airflow_provider_uniapi_fal.plugins.gallery.accounts import Named, Run
from tests.plugins import nights

if TYPE_CHECKING:
    from pathlib import Path

BELOW = "/team/airflow"
BASE_URL = f"https://example.com{BELOW}/"
RUN = "scheduled__2026-11-25T02:00:00+00:00"


class Addresses(HTMLParser):
    """Collects every address of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("href", "src", "action", "poster")]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """Return a client of an API server below a path, mounted as Airflow mounts it, for a user who may see all."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", BASE_URL)
    monkeypatch.setenv("AIRFLOW__UNIAPI_FAL__MEDIA_ROOTS", tmp_path.as_uri())
    monkeypatch.setenv("AIRFLOW__UNIAPI_FAL__THUMBNAIL_FOLDER", str(tmp_path / "thumbnails"))
    file = nights.picture(tmp_path / "fox.jpg", "A fox", 1, 64, 48)
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    rows = [
        nights.row("broken", 0, files=(nights.landed(broken, "image/png"),)),
        nights.row("storm", 1, "refused"),
        *(nights.row(f"fox-{n:02}", n, files=(file,)) for n in range(2, 64)),
    ]
    named = Named("night", RUN, "land", -1, nights.write(tmp_path / "manifest.jsonl", rows, "night"))
    monkeypatch.setattr(gallery, "manifests_of", lambda *_: [named])
    monkeypatch.setattr(gallery, "visible_dags", lambda _: {"night"})
    run = Run("night", RUN, 1, datetime(2026, 11, 25, tzinfo=timezone.utc))
    monkeypatch.setattr(gallery, "runs_of", lambda *_, **__: ([run], True))
    made = gallery.make_app()
    made.dependency_overrides = {may_see_dag: lambda: None, get_user: lambda: None}
    server = FastAPI(root_path=BELOW)
    server.mount(PREFIX, made)
    return TestClient(server, base_url="https://example.com", follow_redirects=False)


def test_every_address_of_every_page_is_below_the_path_and_leads_somewhere(client: TestClient) -> None:
    to_visit, seen = [f"{BELOW}{PREFIX}/"], {""}
    while to_visit:
        address = to_visit.pop()
        # One of each kind: addresses that differ by a number are alike.
        if (kind := re.sub(r"\d+", "1", address)) in seen:
            continue
        seen.add(kind)
        reply = client.get(address, headers={"Accept": "text/html"})
        assert reply.status_code == 200, f"{address}: {reply.status_code}"
        is_page = reply.headers["content-type"].startswith("text/html")
        found = Addresses(reply.text).found if is_page else []
        for each in found:
            assert each.startswith(f"{BELOW}{PREFIX}/"), f"{address} leads to {each}"
            to_visit.append(urlsplit(urljoin(address, each))._replace(fragment="").geturl())
    # All kinds of pages were among them.
    for end in ("/manifest", "/details", "/media", "/download", "/thumbnail", "page=1"):
        assert any(address.endswith(end) for address in seen), end


def test_a_picture_that_cannot_be_shown_leads_to_a_placeholder_below_the_path(client: TestClient) -> None:
    run = RUN.replace(":", "%3A").replace("+", "%2B")
    thumbnail = f"{BELOW}{PREFIX}/dags/night/runs/{run}/tasks/land/-1/rows/0/files/0/thumbnail"
    placeholder = client.get(thumbnail).headers["location"]
    assert placeholder.startswith(f"{BELOW}{PREFIX}/static/")
    assert client.get(placeholder).headers["content-type"] == "image/svg+xml"


def test_airflow_shows_pages_and_icons_below_the_path() -> None:
    views = uniapi_fal._views(prefix_below(BASE_URL))
    assert len(views) == 3
    for view in views:
        for name in ("href", "icon", "icon_dark_mode"):
            assert view[name].startswith(f"{BELOW}{PREFIX}/")
