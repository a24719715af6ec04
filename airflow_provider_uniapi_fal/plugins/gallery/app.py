"""The gallery's routes. Each asks Airflow first, and answers with nothing that a manifest does not name."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from functools import partial
from importlib import resources
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from airflow_provider_uniapi_fal.links.urls import Urls
from airflow_provider_uniapi_fal.plugins.gallery import kinds, settings, words
from airflow_provider_uniapi_fal.plugins.gallery.access import GetUserDep, may_see_dag, visible_dags
from airflow_provider_uniapi_fal.plugins.gallery.accounts import (
    Named,
    Problem,
    Reader,
    Run,
    manifests_of,
    runs_of,
)
from airflow_provider_uniapi_fal.plugins.gallery.choosing import PAGE_SIZES, Account, Card, Wanted, page_of
from airflow_provider_uniapi_fal.plugins.gallery.files import located, part_of
from airflow_provider_uniapi_fal.plugins.gallery.ranges import Unsatisfiable, read_range
from airflow_provider_uniapi_fal.plugins.gallery.roots import NotAllowed, Root, RootedPlace, place_of
from airflow_provider_uniapi_fal.plugins.gallery.thumbnails import (
    CONTENT_TYPE,
    Thumbnails,
    ThumbnailsUnavailable,
)

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

#: Our own pages load from their own address and nowhere else; a media file opened alone runs nothing at all.
PAGE_POLICY = (
    "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
)
FILE_POLICY = "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; sandbox"

STATIC = {
    "gallery.css": "text/css; charset=utf-8",
    "gallery.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "icon-dark.svg": "image/svg+xml",
    "nothing-to-see.svg": "image/svg+xml",
}

#: Runs on a page of the menu, manifests of each that are read for it, and pictures of each.
RUNS = 12
MANIFESTS_OF_A_RUN = 24
PICTURES_OF_A_RUN = 8

_TASK = "/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/{map_index}"
_FILE = _TASK + "/rows/{row}/files/{file}"


class _Headers:
    """Adds to every answer what keeps a browser from guessing, framing and telling."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                for name, value in (
                    ("content-security-policy", PAGE_POLICY),
                    ("x-content-type-options", "nosniff"),
                    ("referrer-policy", "same-origin"),
                    ("cross-origin-resource-policy", "same-origin"),
                    ("cache-control", "private, no-cache"),
                ):
                    if name.encode() not in given:
                        message["headers"] = [*message["headers"], (name.encode(), value.encode())]
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class _Pages:
    """Renders our templates; whatever is put into them is escaped."""

    def __init__(self, urls: Urls) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader(__package__ or "", "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(
            bytes=words.in_bytes,
            seconds=words.in_seconds,
            clock=words.clock,
            moment=words.moment,
            outcome=words.outcome,
            kind=kinds.kind_of,
            pretty=partial(words.as_json, indent=2),
        )
        self._environment.globals.update(urls=urls, page_sizes=PAGE_SIZES, version=_version_of_static())

    def page(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(_utf8(self._environment.get_template(template).render(values)), status)


def make_app() -> FastAPI:
    """Return the gallery as an application, to be mounted at its prefix."""
    urls = Urls(settings.own_prefix())
    pages = _Pages(urls)
    reader = Reader()
    thumbnails = Thumbnails(settings.thumbnail_folder(), settings.thumbnail_bytes())
    app = FastAPI(title="UniAPI fal gallery", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Headers)
    seen_by_permission = [Depends(may_see_dag)]

    @app.exception_handler(AnyHTTPException)
    def refused(request: Request, error: AnyHTTPException) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return Response(_utf8(str(error.detail)), error.status_code, error.headers, "text/plain")
        return pages.page(
            "error.html", status=error.status_code, code=error.status_code, message=error.detail
        )

    @app.get("/")
    def runs(request: Request, user: GetUserDep) -> Response:
        number = Wanted.of(request.query_params).page
        found, more = runs_of(visible_dags(user), page=number, size=RUNS)
        roots = _roots()
        return pages.page(
            "runs.html",
            runs=[_Strip(run, reader, roots) for run in found],
            number=number,
            more=more,
        )

    @app.get("/static/{name}")
    def static(name: str, user: GetUserDep) -> Response:
        if name not in STATIC:
            raise HTTPException(404, "There is no such file.")
        content = resources.files(__package__ or "").joinpath("static", name).read_bytes()
        headers = {"Cache-Control": "private, max-age=86400"}
        return Response(content, media_type=STATIC[name], headers=headers)

    @app.get("/dags/{dag_id}/runs/{run_id}", dependencies=seen_by_permission)
    def run(request: Request, dag_id: str, run_id: str) -> Response:
        return gallery(request, dag_id, run_id, manifests_of(dag_id, run_id), None)

    @app.get(_TASK, dependencies=seen_by_permission)
    def task(request: Request, dag_id: str, run_id: str, task_id: str, map_index: str) -> Response:
        index = _map_index(map_index)
        found = manifests_of(dag_id, run_id, task_id, index)
        return gallery(request, dag_id, run_id, found, (task_id, index))

    def gallery(
        request: Request, dag_id: str, run_id: str, found: list[Named], only: tuple[str, int] | None
    ) -> Response:
        accounts, problems = reader.read(found, _roots())
        return pages.page(
            "gallery.html",
            dag_id=dag_id,
            run_id=run_id,
            only=only,
            page=page_of(accounts, Wanted.of(request.query_params)),
            accounts=accounts,
            problems=problems,
            waiting=any(problem.kind == "unfinished" for problem in problems),
        )

    def account(dag_id: str, run_id: str, task_id: str, map_index: str) -> Account:
        accounts, problems = reader.read(
            manifests_of(dag_id, run_id, task_id, _map_index(map_index)), _roots()
        )
        if accounts:
            return accounts[0]
        _say_why(problems)

    def card_and_place(
        dag_id: str, run_id: str, task_id: str, map_index: str, row: int, file: int
    ) -> tuple[Card, RootedPlace]:
        card = _card(account(dag_id, run_id, task_id, map_index), row, file)
        try:
            return card, place_of(_file(card).path, _roots())
        except NotAllowed as error:
            raise HTTPException(403, f"The file is not shown: {error}.") from error

    @app.get(_TASK + "/manifest", dependencies=seen_by_permission)
    def manifest(dag_id: str, run_id: str, task_id: str, map_index: str) -> Response:
        account(dag_id, run_id, task_id, map_index)  # says why, if it cannot be shown
        (named,) = manifests_of(dag_id, run_id, task_id, _map_index(map_index))
        path, size = _located(place_of(named.address, _roots()))
        return StreamingResponse(
            part_of(path, size, None),
            media_type="application/x-ndjson",
            headers={
                "Content-Length": str(size),
                "Content-Disposition": kinds.disposition(path.name, inline=False),
            },
        )

    @app.get(_TASK + "/rows/{row}/details", dependencies=seen_by_permission)
    def row_details(
        request: Request, dag_id: str, run_id: str, task_id: str, map_index: str, row: int
    ) -> Response:
        card = _card(account(dag_id, run_id, task_id, map_index), row, None)
        return details_page(request, dag_id, run_id, card)

    @app.get(_FILE + "/details", dependencies=seen_by_permission)
    def file_details(
        request: Request, dag_id: str, run_id: str, task_id: str, map_index: str, row: int, file: int
    ) -> Response:
        card = _card(account(dag_id, run_id, task_id, map_index), row, file)
        return details_page(request, dag_id, run_id, card)

    def details_page(request: Request, dag_id: str, run_id: str, card: Card) -> Response:
        # The script asks for the inner part alone, and shows it above the grid.
        template = "details.html" if request.query_params.get("part") == "inner" else "details_page.html"
        return pages.page(template, dag_id=dag_id, run_id=run_id, card=card)

    @app.get(_FILE + "/thumbnail", dependencies=seen_by_permission)
    def thumbnail(
        request: Request, dag_id: str, run_id: str, task_id: str, map_index: str, row: int, file: int
    ) -> Response:
        card, place = card_and_place(dag_id, run_id, task_id, map_index, row, file)
        shown = _file(card)
        path, size = _located(place)
        tag = _tag(path, size, shown.sha256, f"thumbnail of {kinds.served_as(shown.content_type)}")
        headers = {
            "ETag": tag,
            "Cache-Control": "private, max-age=3600",
            "Content-Security-Policy": FILE_POLICY,
        }
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        try:
            made = thumbnails.of(path, size, shown.sha256, shown.content_type)
        except ThumbnailsUnavailable as error:
            log.warning("There are no thumbnails: %s", error)
            made = None
        except OSError as error:
            raise HTTPException(404, "The file cannot be read.") from error
        if made is None:
            return RedirectResponse(urls.static("nothing-to-see.svg"), 307)
        return Response(made, media_type=CONTENT_TYPE, headers=headers)

    @app.api_route(_FILE + "/media", methods=["GET", "HEAD"], dependencies=seen_by_permission)
    def media(
        request: Request, dag_id: str, run_id: str, task_id: str, map_index: str, row: int, file: int
    ) -> Response:
        card, place = card_and_place(dag_id, run_id, task_id, map_index, row, file)
        return _served(request, card, place, inline=True)

    @app.api_route(_FILE + "/download", methods=["GET", "HEAD"], dependencies=seen_by_permission)
    def download(
        request: Request, dag_id: str, run_id: str, task_id: str, map_index: str, row: int, file: int
    ) -> Response:
        card, place = card_and_place(dag_id, run_id, task_id, map_index, row, file)
        return _served(request, card, place, inline=False)

    return app


class _Strip:
    """What the menu's page shows of a run."""

    def __init__(self, run: Run, reader: Reader, roots: tuple[Root, ...]) -> None:
        self.run = run
        found = manifests_of(run.dag_id, run.run_id)
        self.partial = len(found) > MANIFESTS_OF_A_RUN
        accounts, self.problems = reader.read(found[:MANIFESTS_OF_A_RUN], roots)
        self.page = page_of(accounts, Wanted())
        cards = (card for account in accounts for card in account.cards)
        self.cards = list(_first(PICTURES_OF_A_RUN, cards))


def _first(count: int, cards: Iterator[Card]) -> Iterator[Card]:
    for card in cards:
        if count == 0:
            return
        if card.file is not None and kinds.kind_of(card.file.content_type) in ("picture", "video"):
            count -= 1
            yield card


def _served(request: Request, card: Card, place: RootedPlace, *, inline: bool) -> Response:
    """Return a file, or the part of it that was asked for; shown in place only if its kind is on our list."""
    file = _file(card)
    path, size = _located(place)
    content_type = kinds.served_as(file.content_type)
    inline = inline and content_type != kinds.DOWNLOAD
    tag = _tag(path, size, file.sha256, content_type)
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Content-Disposition": kinds.disposition(PurePosixPath(file.path).name, inline=inline),
        "Content-Security-Policy": FILE_POLICY,
    }
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range")
    if request.headers.get("if-range") not in (None, tag):
        asked = None
    try:
        span = read_range(asked, size)
    except Unsatisfiable:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    status = 200 if span is None else 206
    headers["Content-Length"] = str(size if span is None else span.length)
    if span is not None:
        headers["Content-Range"] = span.of(size)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=content_type)
    return StreamingResponse(
        part_of(path, size, span), status_code=status, headers=headers, media_type=content_type
    )


def _located(place: RootedPlace) -> tuple[ObjectStoragePath, int]:
    try:
        return located(place)
    except NotAllowed as error:
        raise HTTPException(403, f"The file is not shown: {error}.") from error
    except Exception as error:
        raise HTTPException(404, "The file is not there, or cannot be read.") from error


def _card(account: Account, row: int, file: int | None) -> Card:
    rows = account.manifest.rows
    if not 0 <= row < len(rows) or (file is not None and not 0 <= file < len(rows[row].files)):
        raise HTTPException(404, "The manifest has no such row or file.")
    return Card(account.task_id, account.map_index, row, rows[row], file)


def _file(card: Card) -> Any:
    if card.file is None:
        raise HTTPException(404, "This row has no file.")
    return card.file


def _say_why(problems: list[Problem]) -> NoReturn:
    for problem in problems:
        raise HTTPException(404 if problem.kind == "unfinished" else 403, problem.message)
    raise HTTPException(404, "This task has written no manifest.")


def _roots() -> tuple[Root, ...]:
    try:
        return settings.media_roots()
    except ValueError as error:
        raise HTTPException(500, f"Airflow's configuration is wrong: [uniapi_fal] {error}") from error


def _map_index(text: str) -> int:
    """Read a map index; Airflow leaves the placeholder as it is for a task that is not mapped."""
    plain = text.isascii() and text.isdigit() and len(text) < 10
    return int(text) if plain else -1


def _tag(path: ObjectStoragePath, size: int, sha256: str, what: str) -> str:
    return '"' + hashlib.sha256(json.dumps([str(path), size, sha256, what]).encode()).hexdigest()[:32] + '"'


def _utf8(text: str) -> bytes:
    """Return a text as it is sent; JSON can hold halves of characters, which cannot be."""
    return text.encode(errors="replace")


def _version_of_static() -> str:
    """Return a word that changes with our script and style, so that a browser asks for them anew."""
    folder = resources.files(__package__ or "").joinpath("static")
    return hashlib.sha256(b"".join(folder.joinpath(name).read_bytes() for name in STATIC)).hexdigest()[:12]
