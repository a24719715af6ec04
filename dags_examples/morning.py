"""
The morning after: a contact sheet of the night's media, a person's approval, and only then publication.

It is scheduled on the asset that a landing or a batch names in its `outlets`; the event brings the path of the
manifest. The pictures that succeeded, and none that was flagged as unsafe, go onto the sheet. The task `approve` waits
for a person without a worker (*Required Actions* in Airflow's interface); after twelve hours without an answer it
rejects, and nothing is published.
"""

from __future__ import annotations

import io
import logging
import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Asset, ObjectStoragePath, Param, dag, task
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_uniapi_fal.landing.manifest import read_manifest, write_manifest
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator

TILE = 256

log = logging.getLogger(__name__)


@dag(
    schedule=[Asset("media_night")],
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    default_args={"retries": 2},
    params={
        "published": Param("file:///tmp/published", type="string", description="Folder that is published"),
    },
    doc_md=__doc__,
)
def morning() -> None:
    @task
    def select(triggering_asset_events: Any = None) -> str:
        """Write a manifest of what may be published beside the night's own; return its path."""
        events = [event for events in triggering_asset_events.values() for event in events]
        events.sort(key=lambda event: event.timestamp)
        nights = [event.extra["manifest_path"] for event in events if "manifest_path" in event.extra]
        if not nights:
            raise AirflowFailException(
                "No event of the asset media_night brought a manifest: this run was started by hand, or by an event "
                "that was made by hand. Start a night; it starts the morning."
            )
        if len(nights) > 1:
            log.warning("These nights came together, and the last one is taken: %s", nights)
        source = ObjectStoragePath(nights[-1])
        manifest = read_manifest(source)
        good = tuple(row for row in manifest.rows if row.outcome == "succeeded" and row.files)
        selected = source.parent / "selected.jsonl"
        write_manifest(replace(manifest, rows=good), selected)
        return str(selected)

    @task
    def contact_sheet(selected: Any) -> str:
        """Lay out the pictures on one sheet; return its path."""
        from PIL import Image, ImageDraw

        path = ObjectStoragePath(selected)
        files = [(row.key, file) for row in read_manifest(path).rows for file in row.files]
        columns = max(1, math.ceil(math.sqrt(len(files))))
        lines = max(1, math.ceil(len(files) / columns))
        sheet = Image.new("RGB", (columns * TILE, lines * (TILE + 20)), "black")
        draw = ImageDraw.Draw(sheet)
        for number, (key, file) in enumerate(files):
            x, y = number % columns * TILE, number // columns * (TILE + 20)
            draw.text((x + 4, y + TILE + 4), key, fill="white")
            if (file.content_type or "").startswith("image/"):
                with ObjectStoragePath(file.path).open("rb") as reader, Image.open(reader) as picture:
                    picture.thumbnail((TILE, TILE))
                    sheet.paste(picture, (x + (TILE - picture.width) // 2, y + (TILE - picture.height) // 2))
        content = io.BytesIO()
        sheet.save(content, "JPEG")
        target = path.parent / "contact-sheet.jpg"
        target.write_bytes(content.getvalue())
        return str(target)

    selected = select()
    sheet = contact_sheet(selected)
    approve = ApprovalOperator(
        task_id="approve",
        subject="Publish the media of the night?",
        body=f"They are on the contact sheet {sheet}.",
        response_timeout=timedelta(hours=12),
        defaults=ApprovalOperator.REJECT,
    )
    publish = FalToObjectStorageOperator(
        task_id="publish",
        result=selected,
        destination="{{ params.published }}/{{ dag_run.run_after | ds }}",
    )
    sheet >> approve >> publish


morning()
