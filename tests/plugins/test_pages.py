"""The gallery as its reader's browser asks for it, over HTTP, on a real API server."""

from __future__ import annotations

import hashlib
import io
import re
import time
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.plugins.conftest import Site

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def get(site: Site, path: str, **headers: str):  # type: ignore[no-untyped-def] # a reply of requests
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return site.as_user("guest").get(site.address(path), headers=names, timeout=60)


def test_airflow_shows_the_gallery_in_the_menu_and_in_two_tabs(site: Site) -> None:
    plugins = site.as_user("admin").get(f"{site.airflow.url}/api/v2/plugins", timeout=30).json()["plugins"]
    (ours,) = [plugin for plugin in plugins if plugin["name"] == "uniapi_fal"]
    assert {view["destination"] for view in ours["external_views"]} == {"nav", "dag_run", "task_instance"}
    assert ours["fastapi_apps"][0]["url_prefix"] == "/fal-media"


def test_a_night_shows_the_failed_and_flagged_beside_the_good(site: Site) -> None:
    page = get(site, site.scene("good")).text
    assert page.count('<li>\n<a class="card') == 22
    for text in (
        "The model refused the content",
        "was removed from the queue",
        "a job may be running and be billed",
        'badge flagged">flagged',
        "kling-video/v2/master",
        "1–22 of 22",
    ):
        assert text in page, text


def test_filters_and_search_choose_cards(site: Site) -> None:
    def cards(query: str) -> int:
        return int(get(site, f"{site.scene('good')}?{query}").text.count('class="card '))

    assert cards("outcome=refused") == 2
    assert cards("model=kling-video%2Fv2%2Fmaster") == 3
    assert cards("text=HARBOUR") == 3
    assert cards("text=nothing+like+it") == 0


def test_a_file_says_all_that_the_manifest_says_of_it(site: Site) -> None:
    path = site.folder / "root" / "good" / "scene-02.mp4"
    page = get(site, site.scene("good") + "/rows/2/files/0/details").text
    for text in (
        "A city skyline at night, all windows lit",
        "kling-video/v2/master",
        "req-00002",
        hashlib.sha256(path.read_bytes()).hexdigest(),
        "640 × 360",
        "3.0 s",
        "video/mp4",
        "campaign",
    ):
        assert text in page, text


def test_each_of_several_files_of_a_row_says_which_it_is(site: Site) -> None:
    grid = get(site, site.scene("hostile files")).text
    for file in range(3):
        place = f"<small>{file + 1}/3</small>"
        details = f"{site.scene('hostile files')}/rows/0/files/{file}/details"
        assert place in grid
        for page in (get(site, details).text, get(site, f"{details}?part=inner").text):
            assert re.search(rf"<h2>files {place}", page)
    assert "<small>" not in get(site, site.scene("good") + "/rows/2/files/0/details").text


def test_the_media_come_whole_and_in_parts(site: Site) -> None:
    content = (site.folder / "root" / "good" / "scene-02.mp4").read_bytes()
    media = site.scene("good") + "/rows/2/files/0/media"
    whole = get(site, media)
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["Content-Type"] == "video/mp4"
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert whole.headers["Content-Disposition"].startswith("inline;")
    part = get(site, media, Range="bytes=100-199")
    assert (part.status_code, part.content) == (206, content[100:200])
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(content)}"
    assert get(site, media, Range="bytes=-50").content == content[-50:]
    tag = whole.headers["ETag"]
    assert get(site, media, If_None_Match=tag).status_code == 304
    assert get(site, media, Range="bytes=0-9", If_Range=tag).status_code == 206
    assert get(site, media, Range="bytes=0-9", If_Range='"another"').status_code == 200
    download = get(site, site.scene("good") + "/rows/2/files/0/download")
    assert download.headers["Content-Disposition"].startswith('attachment; filename="scene-02.mp4"')
    head = site.as_user("guest").head(site.address(media), timeout=30)
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(content)))


@pytest.mark.parametrize(("row", "longest"), [(0, 512), (2, 512)])
def test_a_thumbnail_is_made_once_and_kept(site: Site, row: int, longest: int) -> None:
    path = f"{site.scene('good')}/rows/{row}/files/0/thumbnail"
    first = get(site, path)
    assert first.headers["Content-Type"] == "image/webp"
    with Image.open(io.BytesIO(first.content)) as image:
        assert max(image.size) == longest
        colours = image.convert("RGB").resize((8, 8)).getcolors() or []
        assert len(colours) > 4  # a picture, not one colour
    kept = sorted((site.folder / "thumbnails").rglob("*.webp"))
    times = {file: file.stat().st_ctime_ns for file in kept if file.read_bytes() == first.content}
    assert times
    inode = {file: file.stat().st_ino for file in times}
    assert get(site, path).content == first.content
    assert {file: file.stat().st_ino for file in times} == inode
    assert (site.folder / "thumbnails").stat().st_mode & 0o077 == 0


def test_five_thousand_files_come_in_pages_and_quickly(site: Site) -> None:
    path = f"{site.run(run_id=site.long_run)}/tasks/one/-1"
    assert "1–60 of 5000" in get(site, path).text
    last = get(site, f"{path}?page=84").text
    assert "4981–5000 of 5000" in last
    assert "dot-04999" in last
    # No timed test: a bound so wide that only another order of work breaks it.
    started = time.monotonic()
    assert "dot-04321" in get(site, f"{path}?text=number+4321").text
    assert time.monotonic() - started < 10


def test_the_manifest_can_be_downloaded(site: Site) -> None:
    reply = get(site, f"{site.scene('good')}/manifest")
    assert reply.content == (site.folder / "root" / "good" / "manifest.jsonl").read_bytes()
    assert reply.headers["Content-Disposition"].startswith('attachment; filename="manifest.jsonl"')


def test_a_task_without_a_manifest_says_so_and_leads_to_the_run(site: Site) -> None:
    page = get(site, f"{site.run()}/tasks/nothing/{{MAP_INDEX}}").text
    assert "This task has left no manifest" in page
    assert "<code>manifest_path</code>" in page  # what would bring one
    assert f'href="/fal-media{site.run()}"' in page
