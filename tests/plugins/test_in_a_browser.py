"""What a person does in Airflow's user interface, done by a headless Chromium."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, BrowserContext, Frame, Page, ViewportSize, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from airflow_provider_uniapi_fal.emulator.running import running_emulator
from tests.plugins.conftest import PROJECT

if TYPE_CHECKING:
    from tests.plugins.conftest import Site

pytestmark = [pytest.mark.browser, pytest.mark.system, pytest.mark.long, pytest.mark.timeout(600)]

KEY = "sk-a-key-for-the-form"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.fail("there is no Chromium on this machine: `make browser` installs it")
    with sync_playwright() as playwright:
        # Chromium's own sandbox cannot be had by root; all pages are ours, on loopback.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


def log_in(browser: Browser, site: Site, user: str, size: ViewportSize | None = None) -> Page:
    context: BrowserContext = browser.new_context(viewport=size or {"width": 1440, "height": 900})
    context.set_default_timeout(30_000)
    page = context.new_page()
    page.goto(f"{site.airflow.url}/auth/login")
    page.fill("input[name=username]", user)
    page.fill("input[name=password]", site.password(user))
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "login" not in url)
    return page


@pytest.fixture
def guest(browser: Browser, site: Site) -> Iterator[Page]:
    page = log_in(browser, site, "guest")
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
    yield page
    page.context.close()
    assert wrong == []


@pytest.fixture
def admin(browser: Browser, site: Site) -> Iterator[Page]:
    page = log_in(browser, site, "admin")
    yield page
    page.context.close()


def test_the_connection_form_is_filled_in_tested_and_saved(admin: Page, site: Site) -> None:
    with running_emulator(key=KEY) as emulator:
        admin.goto(f"{site.airflow.url}/connections")
        admin.get_by_role("button", name="Add Connection").click()
        form = admin.get_by_role("dialog")
        form.locator("input[name=connection_id]").fill("fal_from_the_form")
        form.get_by_role("combobox").first.click()
        admin.keyboard.type("UniAPI")
        admin.get_by_role("option").filter(has_text="UniAPI fal").first.click()
        expect(form.get_by_text("Gateway", exact=True)).to_be_visible()
        host = form.locator("input[name=host]")
        expect(host).to_have_attribute("placeholder", "https://api.uniapi.io")
        password = form.locator("input[name=password]")
        expect(password).to_have_attribute("type", "password")
        expect(form.locator("input[name=login]")).to_have_count(0)
        host.fill(emulator.url)
        password.fill(KEY)
        extra = form.get_by_text("Extra Fields", exact=True)
        if extra.count():
            extra.first.click()
        expect(form.get_by_text("Media hosts")).to_be_visible()
        proxy = form.locator("#element_proxy")
        expect(proxy).to_have_attribute("type", "password")
        form.locator("#element_media_hosts").fill("127.0.0.1\n")
        form.get_by_role("button", name="Save").click()
        expect(form).to_have_count(0)
        assert posts(emulator) == 0
    saved = site.as_user("admin").get(
        f"{site.airflow.url}/api/v2/connections/fal_from_the_form",
        headers={"Authorization": f"Bearer {site.token('admin')}"},
        timeout=30,
    )
    fields = saved.json()
    assert (fields["conn_type"], fields["host"], fields["password"]) == ("uniapi_fal", emulator.url, "***")
    assert "127.0.0.1" in json.loads(fields["extra"])["media_hosts"]
    assert KEY not in saved.text


@pytest.mark.parametrize(
    ("key", "title", "says"),
    [
        (KEY, "Test Connection Successful", "The gateway accepted the key"),
        ("sk-wrong", "Test Connection Failed", "The gateway refused the key"),
    ],
)
def test_the_test_button_shows_whether_the_key_is_right(
    admin: Page, site: Site, key: str, title: str, says: str
) -> None:
    conn_id = "fal_right" if key == KEY else "fal_wrong"
    with running_emulator(key=KEY) as emulator:
        make_connection(site, conn_id, emulator.url, key)
        admin.goto(f"{site.airflow.url}/connections")
        row = admin.get_by_role("row").filter(has_text=conn_id)
        row.get_by_role("button", name="Test Connection").click()
        expect(admin.get_by_text(title, exact=True).first).to_be_visible()
        expect(admin.get_by_text(says).first).to_be_visible()
        assert posts(emulator) == 0


def test_the_gallery_is_in_the_tab_of_a_run_and_of_a_task_and_in_the_menu(guest: Page, site: Site) -> None:
    run = f"{site.airflow.url}{site.run()}"
    guest.goto(run)
    guest.get_by_role("link", name="Media").last.click()
    frame = guest.frame_locator("iframe[title=Media]")
    expect(frame.locator(".card").first).to_be_visible()
    expect(frame.locator("h1")).to_be_hidden()  # Airflow's own heading says which run it is
    guest.goto(f"{run}/tasks/one/plugin/fal-media-task")
    expect(guest.frame_locator("iframe[title=Media]").locator(".card")).to_have_count(22)
    guest.goto(f"{site.airflow.url}/plugin/fal-media")
    expect(guest.frame_locator("iframe[title=Media]").locator(".run")).to_have_count(2)


def test_a_dag_that_the_user_may_not_see_is_refused_in_the_browser_too(guest: Page, site: Site) -> None:
    reply = guest.goto(site.address(site.run("closed_night")))
    assert reply is not None
    assert reply.status == 403
    expect(guest.locator("h1")).to_have_text("Not for you")
    assert "scene-00" not in guest.content()


def test_pictures_are_looked_at_and_a_video_is_played_by_keyboard_alone(guest: Page, site: Site) -> None:
    guest.goto(site.address(site.scene("good")))
    expect(guest.locator(".card").first).to_be_visible()
    guest.keyboard.press("ArrowRight")
    guest.keyboard.press("ArrowRight")
    guest.keyboard.press("Enter")
    viewer = guest.locator("dialog[open]")
    expect(viewer.locator("h2")).to_contain_text("scene-01")
    until(guest, "document.querySelector('dialog img').naturalWidth === 768")
    guest.keyboard.press("ArrowDown")  # moves in the grid only
    guest.keyboard.press("ArrowRight")
    expect(viewer.locator("h2")).to_contain_text("scene-02")
    until(guest, "document.querySelector('dialog video').readyState >= 1")
    length = guest.evaluate("document.querySelector('dialog video').duration")
    assert length == pytest.approx(3.0, abs=0.2)
    # Seek behind what was loaded first, then play.
    guest.evaluate("document.querySelector('dialog video').currentTime = 2")
    guest.evaluate("document.querySelector('dialog video').muted = true")
    guest.evaluate("document.querySelector('dialog video').play()")
    until(guest, "document.querySelector('dialog video').currentTime > 2.2")
    guest.keyboard.press("ArrowRight")
    guest.keyboard.press("ArrowRight")
    expect(viewer.locator(".stage")).to_contain_text("The model refused the content")
    guest.keyboard.press("Escape")
    expect(viewer).to_have_count(0)
    expect(guest.locator(".card").nth(4)).to_be_focused()
    guest.keyboard.press("/")
    guest.keyboard.type("harbour")
    guest.keyboard.press("Enter")
    expect(guest.locator(".card")).to_have_count(3)


def test_the_lists_are_used_by_keyboard_and_nothing_happens_before_show(guest: Page, site: Site) -> None:
    """A list that changes the page while it is walked through cannot be used by keyboard (WCAG 3.2.2)."""
    address = site.address(site.scene("good"))
    guest.goto(address)
    size, model = guest.locator("select[name=size]"), guest.locator("select[name=model]")
    guest.evaluate("document.body.dataset.same = 'page'")
    for chosen, value in ((model, "flux/dev"), (size, "120")):
        chosen.focus()
        guest.keyboard.press("ArrowDown")
        expect(chosen).to_have_value(value)
        expect(chosen).to_be_focused()
    # Whatever a change has set going is done before what is asked for after it.
    guest.wait_for_load_state("networkidle")
    assert guest.evaluate("document.body.dataset.same") == "page"
    assert guest.url == address
    guest.keyboard.press("Tab")
    expect(guest.get_by_role("button", name="Show")).to_be_focused()
    guest.keyboard.press("Enter")
    expect(guest.locator(".card")).to_have_count(19)
    expect(size).to_have_value("120")


def test_five_thousand_files_are_paged_through(guest: Page, site: Site) -> None:
    guest.goto(site.address(site.run(run_id=site.long_run)) + "?size=120")
    seen: set[str] = set()
    for number in range(1, 43):
        expect(guest.locator(".pager span")).to_have_text(f"Page {number} of 42")
        seen |= set(guest.locator(".card .key").all_text_contents())
        if number < 42:
            guest.keyboard.press("n")
    assert len(seen) == 5000
    guest.locator("a[rel=prev]").click()
    expect(guest.locator(".pager span")).to_have_text("Page 41 of 42")


def test_the_gallery_follows_airflows_theme(guest: Page, site: Site) -> None:
    def background() -> str:
        frame = guest.frame_locator("iframe[title=Media]")
        expect(frame.locator(".card").first).to_be_visible()
        return str(frame.locator("body").evaluate("body => getComputedStyle(body).backgroundColor"))

    address = f"{site.airflow.url}{site.run()}/plugin/fal-media-run"
    guest.goto(address)
    for theme, colour in (("dark", "rgb(22, 29, 45)"), ("light", "rgb(255, 255, 255)")):
        guest.evaluate(f"localStorage.setItem('theme', '{theme}')")
        guest.reload()
        assert background() == colour


def test_words_of_a_manifest_run_no_script(guest: Page, site: Site) -> None:
    guest.goto(site.address(site.scene("hostile words")))
    guest.locator(".card").first.click()
    expect(guest.locator("dialog[open] .facts")).to_contain_text("<script>")
    expect(guest).not_to_have_title("owned")


@pytest.mark.parametrize(("file", "name"), [(0, "drawing.svg"), (1, "page.html")])
def test_a_file_that_can_run_scripts_is_downloaded_and_runs_none(
    guest: Page, site: Site, file: int, name: str
) -> None:
    """Its script would change the title of the page that shows it."""
    details = site.address(f"{site.scene('hostile files')}/rows/0/files/{file}/details")
    guest.goto(details)
    with guest.expect_download() as download, pytest.raises(PlaywrightError, match="Download is starting"):
        guest.goto(details.replace("/details", "/media"))
    assert download.value.suggested_filename == name
    assert b"<script>" in download.value.path().read_bytes()
    assert guest.url == details
    expect(guest).to_have_title(f"files {file + 1}/3")


def test_a_page_that_calls_itself_a_picture_is_shown_as_a_broken_one(guest: Page, site: Site) -> None:
    reply = guest.goto(site.address(site.scene("hostile files") + "/rows/0/files/2/media"))
    assert reply is not None
    assert b"<script>" in reply.body()
    expect(guest.locator("body > img")).to_have_count(1)
    assert guest.evaluate("document.images[0].naturalWidth") == 0
    assert guest.title() != "owned"


def test_the_extra_links_of_a_task_lead_to_its_media(admin: Page, site: Site) -> None:
    """By their buttons on Airflow's page of the task, after a real run of it."""
    with running_emulator(key=KEY) as emulator:
        make_connection(site, "fal_landing", emulator.url, KEY)
        run_id = site.airflow.trigger("landing", {"folder": f"file://{site.folder}/root/landing"})
        assert site.airflow.wait_for_run("landing", run_id, timeout=240) == "success"
    run = site.run("landing", run_id)
    request_id = site.airflow.xcom("landing", run_id, "submit", key="request_id")
    for task_id, leads_to in (("submit", f"{run}?text={request_id}"), ("land", f"{run}/tasks/land/-1")):
        admin.goto(f"{site.airflow.url}{run}/tasks/{task_id}/details")
        # The tab "Media" is a link of this name, too; its address is one of Airflow's own.
        admin.locator("a[href*='/fal-media/']").get_by_text("Media", exact=True).click()
        admin.wait_for_url(site.address(leads_to))
        expect(admin.locator(".card")).to_have_count(1)
        until(admin, "document.querySelector('.card img').naturalWidth > 0")
    admin.goto(f"{site.airflow.url}{run}/tasks/land/details")
    with admin.expect_download() as download:
        admin.locator("a[href*='/fal-media/']").get_by_text("Manifest", exact=True).click()
    assert json.loads(download.value.path().read_text())["request_id"] == request_id


def test_the_pictures_of_the_documentation_can_be_taken(browser: Browser, site: Site) -> None:
    """Into ``build/pictures``; those in ``docs/pictures`` are copies of them, and show no path of a machine."""
    folder = PROJECT / "build" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    page = log_in(browser, site, "admin", {"width": 1360, "height": 860})
    run = site.run("nightly_batch")

    def take(name: str, text: str) -> None:
        for private in (str(site.folder), str(PROJECT), "file://", "/tmp/"):
            assert private not in text
        page.screenshot(path=folder / name)

    def all_pictures(where: Page | Frame) -> None:
        until(where, "[...document.images].slice(0, 8).every(one => one.naturalWidth > 0)")

    try:
        page.goto(f"{site.airflow.url}{run}/tasks/media/plugin/fal-media-task")
        page.evaluate("localStorage.setItem('theme', 'light')")
        page.reload()
        gallery = page.locator("iframe[title=Media]").element_handle().content_frame()
        assert gallery is not None
        expect(page.frame_locator("iframe[title=Media]").locator(".card")).to_have_count(22)
        all_pictures(gallery)
        take("gallery.png", page.inner_text("body") + gallery.inner_text("body"))
        page.evaluate("localStorage.setItem('theme', 'dark')")
        page.goto(site.address(f"{run}/tasks/media/-1"))
        all_pictures(page)
        page.locator(".card").nth(2).click()
        expect(page.locator("dialog[open] h2")).to_contain_text("scene-02")
        expect(page.locator("dialog[open]")).to_contain_text("s3://media/nights/2026-11-25/scene-02.mp4")
        until(page, "document.querySelector('dialog video').readyState >= 2")
        take("file.png", page.inner_text("body"))
    finally:
        page.context.close()


def make_connection(site: Site, conn_id: str, url: str, key: str) -> None:
    made = site.as_user("admin").post(
        f"{site.airflow.url}/api/v2/connections",
        json={
            "connection_id": conn_id,
            "conn_type": "uniapi_fal",
            # With a port of its own: Airflow 3.3.2's button takes an empty one for another address.
            "host": "http://127.0.0.1",
            "port": int(url.rpartition(":")[2]),
            "password": key,
            "extra": json.dumps({"media_hosts": ["127.0.0.1"]}),
        },
        headers={"Authorization": f"Bearer {site.token('admin')}"},
        timeout=30,
    )
    assert made.status_code == 201, made.text


def until(page: Page | Frame, expression: str) -> None:
    """Wait for a condition; playwright's own waiting would need what the page's policy forbids."""
    deadline = time.monotonic() + 30
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(50)


def posts(emulator: object) -> int:
    account = emulator.account()  # type: ignore[attr-defined]
    return int(account["totals"]["posts_accepted"])
