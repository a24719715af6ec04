"""The plugin that Airflow loads: the gallery as tabs of runs and tasks, and as a page in the menu."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

from airflow_provider_uniapi_fal.links.urls import PREFIX, prefix_below

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping


class Gallery:
    """
    The gallery's web application, built when it is first asked for something.

    Schedulers, workers and triggerers load plugins too: they need no web framework for that.
    """

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        if self._app is None:
            from airflow_provider_uniapi_fal.plugins.gallery.app import make_app

            self._app = make_app()
        await self._app(scope, receive, send)


def _views(prefix: str) -> list[dict[str, Any]]:
    run = prefix + "/dags/{DAG_ID}/runs/{RUN_ID}"
    icons = {
        "icon": f"{prefix}/static/icon.svg",
        "icon_dark_mode": f"{prefix}/static/icon-dark.svg",
    }
    return [
        {
            "name": "Media",
            "href": f"{prefix}/",
            "destination": "nav",
            "category": "browse",
            "url_route": "fal-media",
            **icons,
        },
        {"name": "Media", "href": run, "destination": "dag_run", "url_route": "fal-media-run", **icons},
        {
            "name": "Media",
            "href": run + "/tasks/{TASK_ID}/{MAP_INDEX}",
            "destination": "task_instance",
            "url_route": "fal-media-task",
            **icons,
        },
    ]


class UniapiFalPlugin(AirflowPlugin):
    """Adds the gallery to Airflow's user interface."""

    name = "uniapi_fal"
    fastapi_apps = [{"app": Gallery(), "url_prefix": PREFIX, "name": "UniAPI fal gallery"}]  # noqa: RUF012
    external_views = _views(prefix_below(conf.get("api", "base_url", fallback="") or ""))
