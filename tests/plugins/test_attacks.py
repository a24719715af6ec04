"""Attacks on every route of the gallery, over HTTP, on a real API server."""

from __future__ import annotations

import re
import socket
from html import unescape
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from airflow_provider_uniapi_fal.plugins.gallery.app import make_app
from tests.plugins.conftest import SCENES, SCRIPT

if TYPE_CHECKING:
    from tests.plugins.conftest import Site

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

#: Every route of a DAG, below its run.
BELOW_A_RUN = (
    "",
    "/tasks/one/-1",
    "/tasks/one/{MAP_INDEX}",
    "/tasks/one/-1/manifest",
    "/tasks/one/-1/rows/0/details",
    "/tasks/one/-1/rows/0/files/0/details",
    "/tasks/one/-1/rows/0/files/0/thumbnail",
    "/tasks/one/-1/rows/0/files/0/media",
    "/tasks/one/-1/rows/0/files/0/download",
)
#: The others: the page in the menu, and our own files.
OTHERS = ("/", "/static/gallery.css", "/static/gallery.js", "/static/icon.svg", "/static/secret")

FILE = "/rows/0/files/{file}/{part}"
PARTS = ("thumbnail", "media", "download")


class Attributes(HTMLParser):
    """Collects the attributes of all tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all += attrs


def test_the_list_of_routes_is_complete() -> None:
    """A new route is to be attacked, too."""
    below = {path.replace("{MAP_INDEX}", "-1") for path in BELOW_A_RUN}
    patterns = {
        "/tasks/one/-1": "/tasks/{task_id}/{map_index}",
        "/rows/0": "/rows/{row}",
        "/files/0": "/files/{file}",
    }
    expected = {"/", "/static/{name}"}
    for path in below:
        for concrete, pattern in patterns.items():
            path = path.replace(concrete, pattern)  # noqa: PLW2901
        expected.add(f"/dags/{{dag_id}}/runs/{{run_id}}{path}")
    assert {route.path for route in make_app().routes} == expected  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", [*BELOW_A_RUN, *OTHERS])
def test_nothing_is_shown_without_a_login(site: Site, path: str) -> None:
    below = path if path in OTHERS else site.run() + path
    for headers in ({}, {"Accept": "text/html"}, {"Authorization": "Bearer nonsense"}):
        reply = site.as_user(None).get(site.address(below), headers=headers, timeout=30)
        assert reply.status_code in (401, 403)
        assert "scene-00" not in reply.text


@pytest.mark.parametrize("path", BELOW_A_RUN)
def test_a_dag_that_the_user_may_not_see_is_refused(site: Site, path: str) -> None:
    address = site.address(site.run("closed_night") + path)
    assert site.as_user("admin").get(address, timeout=30).status_code == 200
    assert site.as_user("guest").get(address, timeout=30).status_code == 403


@pytest.mark.parametrize("path", BELOW_A_RUN)
@pytest.mark.parametrize(
    "dag", ["~", "%7E", "open_night%2F..%2Fclosed_night", "closed_night?dag_id=open_night"]
)
def test_no_trick_with_the_dags_id_leads_to_another_dag(site: Site, path: str, dag: str) -> None:
    dag, _, query = dag.partition("?")
    run = site.run("closed_night").rpartition("/")[2]
    address = site.address(f"/dags/{dag}/runs/{run}{path}?{query}")
    reply = site.as_user("guest").get(address, timeout=30)
    assert reply.status_code in (403, 404)
    assert "scene-" not in reply.text


def test_a_run_is_found_only_below_its_own_dag(site: Site) -> None:
    run = site.run("closed_night").rpartition("/")[2]
    reply = site.as_user("guest").get(site.address(f"/dags/open_night/runs/{run}"), timeout=30)
    assert reply.status_code == 200
    assert "scene-" not in reply.text


def test_a_malformed_manifest_takes_no_page_with_it(site: Site) -> None:
    """It is among those of the open run, which the menu's page and the run's page show with all others."""
    guest = site.as_user("guest")
    menu = guest.get(site.address("/"), timeout=60)
    assert (menu.status_code, menu.text.count('<li class="run">')) == (200, 2)
    assert f'src="/fal-media{site.run()}/' in menu.text  # a small picture
    for query in ("", "?text=harbour"):
        page = guest.get(site.address(site.run() + query), timeout=60)
        assert page.status_code == 200
        assert 'class="card' in page.text
        assert "This is no manifest" in page.text


def test_the_menus_page_lists_only_dags_that_the_user_may_see(site: Site) -> None:
    guest = site.as_user("guest").get(site.address("/"), timeout=60).text
    admin = site.as_user("admin").get(site.address("/"), timeout=60).text
    assert "closed_night" in admin
    assert "open_night" in guest
    assert "closed_night" not in guest.replace(SCRIPT, "")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("scene", ["absolute path", "dots", "link out of the root"])
def test_a_file_out_of_the_roots_is_refused(site: Site, scene: str, part: str) -> None:
    reply = site.as_user("admin").get(
        site.address(site.scene(scene) + FILE.format(file=0, part=part)), timeout=30, allow_redirects=False
    )
    assert reply.status_code == 403
    assert b"root:" not in reply.content
    assert len(reply.content) < 500


@pytest.mark.parametrize(
    "scene",
    [
        "another DAG's manifest",
        "manifest outside the root",
        "manifest is a link out of the root",
        "not written yet",
        "broken",
        "on the web",
        "malformed types",
        "summary is a link out of the root",
    ],
)
@pytest.mark.parametrize("path", ["", "/manifest", "/rows/0/details", "/rows/0/files/0/media"])
def test_a_manifest_that_is_not_to_be_shown_shows_nothing(site: Site, scene: str, path: str) -> None:
    reply = site.as_user("admin").get(site.address(site.scene(scene) + path), timeout=30)
    assert reply.status_code == (200 if not path else 404 if scene == "not written yet" else 403)
    assert "scene-00" not in reply.text
    assert 'class="card' not in reply.text
    if not path:
        told = {
            "another DAG's manifest": "that of another DAG",
            "manifest outside the root": "media_roots",
            "manifest is a link out of the root": "media_roots",
            "not written yet": "not written yet",
            "broken": "do not belong together",
            "on the web": "is no storage",
            "malformed types": "This is no manifest: this is no row of a manifest: model cannot be None",
            "summary is a link out of the root": "media_roots",
        }
        assert told[scene] in unescape(reply.text)


@pytest.mark.parametrize("path", ["/rows/1/files/0/media", "/rows/0/files/9/media", "/rows/-1/files/0/media",
                                  "/rows/99999999999999999999999/details", "/rows/0/files/-1/thumbnail",
                                  "/rows/..%2F..%2Fetc/details", "/rows/0/files/0/../../../manifest2"])  # fmt: skip
def test_what_no_manifest_names_is_not_there(site: Site, path: str) -> None:
    reply = site.as_user("admin").get(site.address(site.scene("absolute path") + path), timeout=30)
    assert reply.status_code in (404, 422)


@pytest.mark.parametrize(
    "name", ["..%2Fapp.py", "../app.py", "%2e%2e%2fapp.py", "gallery.css%00", "..%5Capp.py"]
)
def test_our_own_files_are_those_on_the_list(site: Site, name: str) -> None:
    reply = site.as_user("admin").get(site.address(f"/static/{name}"), timeout=30)
    assert reply.status_code == 404
    assert "import" not in reply.text


@pytest.mark.parametrize("file", [0, 1])
@pytest.mark.parametrize("part", ["media", "download"])
def test_a_file_that_can_run_scripts_is_only_ever_a_download(site: Site, file: int, part: str) -> None:
    reply = site.as_user("admin").get(
        site.address(site.scene("hostile files") + FILE.format(file=file, part=part)), timeout=30
    )
    assert reply.status_code == 200
    assert reply.headers["Content-Type"] == "application/octet-stream"
    assert reply.headers["Content-Disposition"].startswith("attachment;")
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in reply.headers["Content-Security-Policy"]


@pytest.mark.parametrize("file", [0, 1, 2])
def test_a_file_that_can_run_scripts_has_no_small_picture(site: Site, file: int) -> None:
    reply = site.as_user("admin").get(
        site.address(site.scene("hostile files") + FILE.format(file=file, part="thumbnail")),
        timeout=30,
        allow_redirects=False,
    )
    assert (reply.status_code, reply.headers["Location"]) == (307, "/fal-media/static/nothing-to-see.svg")
    assert reply.content == b""


def test_a_page_that_calls_itself_a_picture_stays_a_picture(site: Site) -> None:
    session = site.as_user("admin")
    media = session.get(
        site.address(site.scene("hostile files") + FILE.format(file=2, part="media")), timeout=30
    )
    assert media.headers["Content-Type"] == "image/png"
    assert media.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in media.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path", ["", "/rows/0/details", "/rows/0/files/0/details", "/rows/0/files/0/details?part=inner"]
)
def test_words_of_a_manifest_are_text_and_no_markup(site: Site, path: str) -> None:
    reply = site.as_user("admin").get(site.address(site.scene("hostile words") + path), timeout=30)
    assert reply.status_code == 200
    assert SCRIPT in unescape(reply.text)
    assert SCRIPT not in reply.text
    assert "<img src=x" not in reply.text
    assert re.search(r"<script(?! src=)", reply.text) is None


def test_words_in_the_address_are_text_and_no_markup(site: Site) -> None:
    for query in (f"text={SCRIPT}", f"model={SCRIPT}", f"outcome={SCRIPT}"):
        reply = site.as_user("admin").get(site.address(f"{site.scene('good')}?{query}"), timeout=30)
        assert reply.status_code == 200
        assert SCRIPT not in reply.text


def test_every_page_has_a_policy_that_runs_and_fetches_nothing_of_others(site: Site) -> None:
    session = site.as_user("admin")
    for path in ("/", site.run(), site.scene("good"), site.scene("good") + "/rows/0/details", "/nothing"):
        reply = session.get(site.address(path), timeout=60, headers={"Accept": "text/html"})
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        found = Attributes()
        found.feed(reply.text)
        for name, value in found.all:
            assert name != "style"
            assert not name.startswith("on")
            if name in ("src", "href", "action", "poster"):
                assert (value or "").startswith("/fal-media/")


@pytest.mark.parametrize("part", ["media", "download"])
@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("bytes=0-99999999999999999999", 206),
        ("bytes=" + "9" * 20 + "-", 416),
        ("bytes=-99999999999999999999", 206),
        ("bytes=" + ",".join("0-0" for _ in range(2000)), 200),
        ("bytes=0-" + "9" * 4000, 200),
    ],
)
def test_a_huge_range_brings_no_more_than_the_file(site: Site, header: str, status: int, part: str) -> None:
    address = site.address(site.scene("good") + FILE.format(file=0, part=part))
    whole = site.as_user("admin").get(address, timeout=30).content
    reply = site.as_user("admin").get(address, headers={"Range": header}, timeout=30)
    assert reply.status_code == status
    assert len(reply.content) <= len(whole)
    if status == 416:
        assert reply.headers["Content-Range"] == f"bytes */{len(whole)}"


@pytest.mark.parametrize("file", [0, 1, 2])
@pytest.mark.parametrize("part", PARTS)
def test_a_text_that_calls_itself_a_video_opens_nothing_else(site: Site, file: int, part: str) -> None:
    """Playlists of a file outside the roots and of a web address, and a description of a session."""
    reply = site.as_user("admin").get(
        site.address(site.scene("hostile films") + FILE.format(file=file, part=part)),
        timeout=30,
        allow_redirects=False,
    )
    if part == "thumbnail":
        assert (reply.status_code, reply.headers["Location"]) == (307, "/fal-media/static/nothing-to-see.svg")
    else:
        assert reply.text.startswith(("#EXTM3U", "v=0"))
    assert not site.web_was_called()


@pytest.mark.parametrize("path", [*BELOW_A_RUN, "/"])
@pytest.mark.parametrize("scene", ["on the web", "file on the web", "hostile films"])
def test_no_address_on_the_web_is_called(site: Site, scene: str, path: str) -> None:
    """Something listens at the address that the manifest's XCom, its file or the playlist in it names."""
    below = path if path in OTHERS else site.run() + path.replace("/one/", f"/{site.task(scene)}/")
    reply = site.as_user("admin").get(site.address(below), timeout=60, allow_redirects=False)
    assert reply.status_code in (200, 307, 403)
    assert not site.web_was_called()


def test_the_listener_at_the_web_address_would_notice(site: Site) -> None:
    socket.create_connection(site.ear.getsockname(), timeout=10).close()
    assert site.web_was_called()
    assert not site.web_was_called()


def test_every_scene_is_named_by_a_task(site: Site) -> None:
    """A scene whose manifest no task had named would be refused for the wrong reason."""
    for index, _ in enumerate(SCENES):
        assert site.airflow.xcom("open_night", site.open_run, f"scene_{index}", key="manifest_path")
