"""What a person does in Airflow's user interface, done by a headless Chromium."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from airflow_provider_uniapi_fal.emulator.running import running_emulator

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


def log_in(browser: Browser, site: Site, user: str) -> Page:
    context: BrowserContext = browser.new_context(viewport={"width": 1440, "height": 900})
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
        headers={"Authorization": f"Bearer {token(admin)}"},
        timeout=30,
    )
    fields = saved.json()
    assert (fields["conn_type"], fields["host"], fields["password"]) == ("uniapi_fal", emulator.url, "***")
    assert "127.0.0.1" in json.loads(fields["extra"])["media_hosts"]
    assert KEY not in saved.text


@pytest.mark.parametrize(("key", "says"), [(KEY, "accepted the key"), ("sk-wrong", "refused the key")])
def test_the_test_button_says_whether_the_key_is_right(admin: Page, site: Site, key: str, says: str) -> None:
    conn_id = "fal_" + says.split()[0]
    with running_emulator(key=KEY) as emulator:
        made = site.as_user("admin").post(
            f"{site.airflow.url}/api/v2/connections",
            # With a port of its own: Airflow 3.3.2's button takes an empty one for another address.
            json={
                "connection_id": conn_id,
                "conn_type": "uniapi_fal",
                "host": "http://127.0.0.1",
                "port": int(emulator.url.rpartition(":")[2]),
                "password": key,
            },
            headers={"Authorization": f"Bearer {token(admin)}"},
            timeout=30,
        )
        assert made.status_code == 201, made.text
        admin.goto(f"{site.airflow.url}/connections")
        row = admin.get_by_role("row").filter(has_text=conn_id)
        with admin.expect_response(
            lambda reply: "test" in reply.url and reply.request.method != "OPTIONS"
        ) as told:
            row.get_by_role("button", name="Test Connection").click()
        assert says in told.value.text()
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
    expect(guest.frame_locator("iframe[title=Media]").locator(".night")).to_have_count(2)


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
    for path in ("/rows/0/files/0/media", "/rows/0/files/1/media", "/rows/0/files/2/media"):
        # A download begins, or a broken picture is shown; no page is.
        guest.evaluate(
            "address => fetch(address).then(reply => reply.blob())",
            site.address(site.scene("hostile files") + path),
        )
    guest.goto(site.address(site.scene("hostile files") + "/rows/0/files/2/media"))
    assert guest.title() != "owned"


def test_the_extra_link_leads_to_the_media(guest: Page, site: Site) -> None:
    """The link's address opens alone, outside of Airflow's frame, with the login that is there."""
    guest.goto(site.address(f"{site.run()}?text={quote('req-00002')}"))
    expect(guest.locator(".card")).to_have_count(1)


def until(page: Page, expression: str) -> None:
    """Wait for a condition; playwright's own waiting would need what the page's policy forbids."""
    deadline = time.monotonic() + 30
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(50)


def posts(emulator: object) -> int:
    account = emulator.account()  # type: ignore[attr-defined]
    return int(account["totals"]["posts_accepted"])


def token(page: Page) -> str:
    return next(str(cookie["value"]) for cookie in page.context.cookies() if cookie["name"] == "_token")
