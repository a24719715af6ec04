"""Finding manifests by the XComs that name them, and reading each once."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import func, select

from airflow_provider_uniapi_fal.landing.manifest import read_manifest, summary_path
from airflow_provider_uniapi_fal.plugins.gallery.choosing import Account
from airflow_provider_uniapi_fal.plugins.gallery.files import chunks_of, located
from airflow_provider_uniapi_fal.plugins.gallery.roots import NotAllowed, Root, folder_of, place_of
from airflow_provider_uniapi_fal.reporting import MANIFEST_KEY

if TYPE_CHECKING:
    from datetime import datetime

#: A longer manifest is not read: 256 MiB are a hundred thousand rows with long prompts.
MAX_MANIFEST_BYTES = 256 * 1024 * 1024

#: A longer summary is not read: it holds two dozen numbers and names, whatever the manifest's length.
MAX_SUMMARY_BYTES = 1024 * 1024

#: Rows that are kept in memory, of all manifests together.
KEPT_ROWS = 100_000

#: Seconds for which a manifest that was read is not looked at again.
FRESH_SECONDS = 10.0

#: Manifests that are read at once.
PARALLEL = 8


@dataclass(frozen=True)
class Named:
    """The XCom of a task that says where its manifest is."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    address: str


@dataclass(frozen=True)
class Run:
    """A run with manifests."""

    dag_id: str
    run_id: str
    manifests: int
    at: datetime


@dataclass(frozen=True)
class Problem:
    """
    Why a manifest is not shown.

    :param kind: ``refused``, ``unfinished``, ``broken`` or ``foreign``
    :param folder: where it is, as one would write it into ``media_roots``
    """

    named: Named
    kind: str
    message: str
    folder: str


def manifests_of(
    dag_id: str, run_id: str, task_id: str | None = None, map_index: int | None = None
) -> list[Named]:
    """Return where the manifests of a run are, or that of one of its tasks."""
    wanted = [XComModel.key == MANIFEST_KEY, XComModel.dag_id == dag_id, XComModel.run_id == run_id]
    if task_id is not None:
        wanted += [XComModel.task_id == task_id, XComModel.map_index == map_index]
    query = select(
        XComModel.dag_id, XComModel.run_id, XComModel.task_id, XComModel.map_index, XComModel.value
    )
    with create_session(scoped=False) as session:
        rows = session.execute(
            query.where(*wanted).order_by(XComModel.timestamp, XComModel.task_id, XComModel.map_index)
        ).all()
    # Of several tasks that name one manifest, the first counts: its media are shown once.
    found: dict[str, Named] = {}
    for row in rows:
        if isinstance(address := XComModel.deserialize_value(row), str):
            found.setdefault(address, Named(row.dag_id, row.run_id, row.task_id, row.map_index, address))
    return list(found.values())


def runs_of(dag_ids: Iterable[str], *, page: int, size: int) -> tuple[list[Run], bool]:
    """Return runs of these DAGs that have manifests, the newest first, and whether there are more."""
    newest = func.max(XComModel.timestamp)
    query = (
        select(XComModel.dag_id, XComModel.run_id, func.count().label("manifests"), newest.label("at"))
        .where(XComModel.key == MANIFEST_KEY, XComModel.dag_id.in_(list(dag_ids)))
        .group_by(XComModel.dag_id, XComModel.run_id)
        .order_by(newest.desc(), XComModel.dag_id, XComModel.run_id)
        .offset((page - 1) * size)
        .limit(size + 1)
    )
    with create_session(scoped=False) as session:
        rows = session.execute(query).all()
    return [Run(row.dag_id, row.run_id, row.manifests, row.at) for row in rows[:size]], len(rows) > size


class Reader:
    """Reads manifests, several at once, and keeps those that were read last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Root, Named], tuple[float, Any, Account]] = OrderedDict()
        self._rows = 0
        self._lock = threading.Lock()

    def read(self, found: Sequence[Named], roots: Sequence[Root]) -> tuple[list[Account], list[Problem]]:
        """Return the manifests that can be shown, and why the others cannot."""
        if len(found) <= 1:
            read = [self._one(named, roots) for named in found]
        else:
            with ThreadPoolExecutor(PARALLEL, thread_name_prefix="fal-media") as pool:
                read = list(pool.map(lambda named: self._one(named, roots), found))
        accounts = [one for one in read if isinstance(one, Account)]
        return accounts, [one for one in read if isinstance(one, Problem)]

    def _one(self, named: Named, roots: Sequence[Root]) -> Account | Problem:
        def problem(kind: str, message: str) -> Problem:
            return Problem(named, kind, message, folder_of(named.address))

        try:
            place = place_of(named.address, roots)
        except NotAllowed as error:
            return problem("refused", f"The manifest is not read: {error}.")
        key = (place.root, named)
        kept = self._kept.get(key)
        if kept is not None and time.monotonic() - kept[0] < FRESH_SECONDS:
            return kept[2]
        try:
            path, size = located(place)
            # Beside the manifest itself, where a link leads to it, and looked at as any other file is.
            summary_at, summary_size = located(replace(place, path=summary_path(path).path))
            for what, length, most in (
                ("manifest", size, MAX_MANIFEST_BYTES),
                ("summary", summary_size, MAX_SUMMARY_BYTES),
            ):
                if length > most:
                    return problem("broken", f"The {what} has {length} bytes, which is too long to be shown.")
            summary = b"".join(chunks_of(summary_at, 0, summary_size))
            version = (size, summary)
            if kept is not None and kept[1] == version:
                account = kept[2]
            else:
                manifest = read_manifest(path, summary)
                if manifest.dag_id != named.dag_id:
                    return problem("foreign", "The manifest is that of another DAG, and is not shown here.")
                account = Account(named.task_id, named.map_index, manifest)
        except FileNotFoundError:
            return problem("unfinished", "The manifest is not written yet; that is done at the end.")
        except NotAllowed as error:
            return problem("refused", f"The manifest is not read: {error}.")
        except (ValueError, KeyError, TypeError) as error:
            return problem("broken", f"This is no manifest: {error}.")
        except Exception as error:  # noqa: BLE001 - each store has errors of its own
            return problem("broken", f"The manifest cannot be read: {type(error).__name__}.")
        self._keep(key, version, account)
        return account

    def _keep(self, key: tuple[Root, Named], version: Any, account: Account) -> None:
        with self._lock:
            replaced = self._kept.pop(key, None)
            self._rows += len(account.manifest.rows) - (len(replaced[2].manifest.rows) if replaced else 0)
            self._kept[key] = (time.monotonic(), version, account)
            while self._rows > KEPT_ROWS and len(self._kept) > 1:
                _, (_, _, oldest) = self._kept.popitem(last=False)
                self._rows -= len(oldest.manifest.rows)
