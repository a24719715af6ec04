"""
The buttons that a task shows: its media in the gallery, its manifest, and a page of the user's own.

Airflow asks for a link at the end of each leg of a task and stores the answer as an XCom, also over one that was
stored before. So an answer depends on what is in XCom, which lasts from leg to leg. :func:`push_links` stores the
answers before a wait begins; what is stored is not asked for any more, because each question and each answer is a call
to Airflow's API server.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from airflow.configuration import conf
from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

from airflow_provider_uniapi_fal.links.templates import filled
from airflow_provider_uniapi_fal.links.urls import PREFIX, Urls
from airflow_provider_uniapi_fal.reporting import MANIFEST_KEY, REQUEST_ID_KEY

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from airflow.sdk import BaseOperator

    Pushed: TypeAlias = Callable[[str], str | None]

log = logging.getLogger(__name__)


class FalLink(BaseOperatorLink):
    """Base of the links: an address made from what the task has pushed."""

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Return the address, or nothing if the task has not pushed what it needs."""

        def pushed(key: str) -> str | None:
            value = XCom.get_value(ti_key=ti_key, key=key)
            return value if isinstance(value, str) else None

        return self.address(ti_key, model=_model_of(operator), pushed=pushed)

    @abstractmethod
    def address(self, ti: Any, *, model: str, pushed: Pushed) -> str:
        """
        Return the address, or an empty text if there is none.

        :param ti: anything with ``dag_id``, ``run_id``, ``task_id`` and ``map_index``
        :param pushed: gives what the task has pushed under a key, ``REQUEST_ID_KEY`` or ``MANIFEST_KEY``, if it has
        """


class FalGalleryLink(FalLink):
    """The task's media in the gallery: the row of its one request, or all of its manifest."""

    name = "Media"

    def address(self, ti: Any, *, model: str, pushed: Pushed) -> str:
        """Return the gallery's page."""
        request_id = pushed(REQUEST_ID_KEY)
        if request_id:
            return _urls().run(ti.dag_id, ti.run_id, text=request_id)
        if pushed(MANIFEST_KEY):
            return _urls().task(ti.dag_id, ti.run_id, ti.task_id, ti.map_index)
        return ""


class FalManifestLink(FalLink):
    """The manifest that the task writes."""

    name = "Manifest"

    def address(self, ti: Any, *, model: str, pushed: Pushed) -> str:
        """Return where the gallery hands it out."""
        if not pushed(MANIFEST_KEY):
            return ""
        return _urls().manifest(ti.dag_id, ti.run_id, ti.task_id, ti.map_index)


class FalJobLink(FalLink):
    """The page of the job at the gateway, or wherever ``[uniapi_fal] job_url_template`` leads."""

    name = "Job"

    def address(self, ti: Any, *, model: str, pushed: Pushed) -> str:
        """Return what the template makes of the job."""
        template = conf.get("uniapi_fal", "job_url_template", fallback="") or ""
        request_id = pushed(REQUEST_ID_KEY) if template else None
        if not request_id:
            return ""
        try:
            return filled(template, request_id=request_id, model=model)
        except ValueError as error:
            log.warning("[uniapi_fal] job_url_template makes no link: %s.", error)
            return ""


#: Of a task that submits one job.
JOB_LINKS = (FalGalleryLink(), FalJobLink())

#: Of a task that writes a manifest.
MANIFEST_LINKS = (FalGalleryLink(), FalManifestLink())


def push_links(
    operator: BaseOperator, ti: Any, *, request_id: str | None = None, manifest_path: str | None = None
) -> None:
    """
    Store the links of a task now, so that they are there while it waits; Airflow does not store them again.

    They are a convenience: whatever goes wrong with them is logged, and the task goes on.

    :param ti: the running task instance
    :param request_id: what was pushed as ``request_id``, if anything was
    :param manifest_path: what was pushed as ``manifest_path``, if anything was
    """
    known = {REQUEST_ID_KEY: request_id, MANIFEST_KEY: manifest_path}
    try:
        for link in type(operator).operator_extra_links:
            if isinstance(link, FalLink) and (
                address := link.address(ti, model=_model_of(operator), pushed=known.__getitem__)
            ):
                ti.xcom_push(key=link.xcom_key, value=address)
    except Exception as error:  # noqa: BLE001 - a paid job does not fail over a button
        log.warning("The links of this task could not be stored: %s", error)
    else:
        links_are_stored(operator)


def links_are_stored(operator: BaseOperator) -> None:
    """
    Keep Airflow from storing the links again at the end of this leg: they are in XCom, from this leg or the one before.

    Links that are not ours stay. Airflow runs a copy of the operator that serves one leg, so that no other run
    and not the class, from which the interface takes the links, is concerned.
    """
    others = [link for link in operator.operator_extra_links if not isinstance(link, FalLink)]
    # Not by assignment: a property of a user's own class would refuse it, and fail a paid job over a button.
    vars(operator)["operator_extra_links"] = others


def _model_of(operator: BaseOperator) -> str:
    model = getattr(operator, "model", None)
    return model if isinstance(model, str) else ""


def _urls() -> Urls:
    return Urls((conf.get("api", "base_url", fallback="") or "").rstrip("/") + PREFIX)
