"""The addresses of the gallery's pages, made in one place for its own pages and for the links that lead there."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urlencode, urlsplit

#: Below the API server's own address.
PREFIX = "/fal-media"


def prefix_below(base_url: str) -> str:
    """Return the gallery's prefix where the API server itself has one, from ``[api] base_url``."""
    return urlsplit(base_url).path.rstrip("/") + PREFIX


@dataclass(frozen=True)
class Urls:
    """
    Addresses below a prefix.

    :param prefix: path, or scheme, host and path, at which the gallery is mounted
    """

    prefix: str

    def runs(self, page: int = 1) -> str:
        """Return the menu's page."""
        return f"{self.prefix}/" + (f"?page={page}" if page > 1 else "")

    def static(self, name: str) -> str:
        """Return a file of our own."""
        return f"{self.prefix}/static/{name}"

    def run(self, dag_id: str, run_id: str, **query: object) -> str:
        """Return all media of a run."""
        return self._page(f"/dags/{_segment(dag_id)}/runs/{_segment(run_id)}", query)

    def task(self, dag_id: str, run_id: str, task_id: str, map_index: int, **query: object) -> str:
        """Return the media of one task's manifest."""
        return self._page(self._task(dag_id, run_id, task_id, map_index), query)

    def manifest(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
        """Return the manifest itself."""
        return self._page(f"{self._task(dag_id, run_id, task_id, map_index)}/manifest", {})

    def item(
        self, dag_id: str, run_id: str, task_id: str, map_index: int, row: int, file: int | None, part: str
    ) -> str:
        """Return one file of one row: its ``details``, the ``media`` itself, its ``download`` or ``thumbnail``."""
        where = f"{self._task(dag_id, run_id, task_id, map_index)}/rows/{row}"
        return self._page(f"{where}/{part}" if file is None else f"{where}/files/{file}/{part}", {})

    def _task(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
        run = f"/dags/{_segment(dag_id)}/runs/{_segment(run_id)}"
        return f"{run}/tasks/{_segment(task_id)}/{map_index}"

    def _page(self, path: str, query: dict[str, object]) -> str:
        given = {name: value for name, value in query.items() if value not in (None, "", 1)}
        return f"{self.prefix}{path}" + (f"?{urlencode(given)}" if given else "")


def _segment(text: str) -> str:
    return quote(text, safe="")
