"""What a landing tells OpenLineage, where its provider is installed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_uniapi_fal.protocol.job import JobHandle


@dataclass(frozen=True)
class Moved:
    """
    What was read and what was written.

    :param job: the job whose result was landed
    :param sources: what was read in storage: the table of a batch, manifests
    :param destination: folder that the files were written to; None if nothing was landed
    :param manifest: the manifest that was written
    :param files: how many files, of ``bytes`` in all
    """

    job: JobHandle | None = None
    sources: tuple[ObjectStoragePath, ...] = ()
    destination: ObjectStoragePath | None = None
    manifest: ObjectStoragePath | None = None
    files: int = 0
    bytes: int = 0


def facets(moved: Moved) -> Any:
    """
    Return the lineage: the gateway's job, or what was read in storage, as inputs, the folder and the manifest as outputs.

    The folder, not each file, is the dataset: a batch has thousands. It carries their number and bytes.

    :return: an ``OperatorLineage``; None without the OpenLineage provider, or if nothing was landed
    """
    try:
        from airflow.providers.common.compat.openlineage.facet import (
            Dataset,
            OutputDataset,
            OutputStatisticsOutputDatasetFacet,
        )
        from airflow.providers.openlineage.extractors import OperatorLineage
    except ImportError:
        return None
    if moved.destination is None:
        return None
    inputs = []
    if moved.job is not None:
        # The connection's address may be a secret's neighbour; its id says which gateway it is.
        inputs.append(
            Dataset(
                namespace=f"uniapi_fal://{moved.job.fal_conn_id}",
                name=f"{moved.job.dialect}/{moved.job.model}/requests/{moved.job.request_id}",
            )
        )
    inputs += [Dataset(*_named(source)) for source in moved.sources]
    statistics = OutputStatisticsOutputDatasetFacet(size=moved.bytes, fileCount=moved.files)
    folder = OutputDataset(*_named(moved.destination), outputFacets={"outputStatistics": statistics})
    manifest = [] if moved.manifest is None else [OutputDataset(*_named(moved.manifest))]
    return OperatorLineage(inputs=inputs, outputs=[folder, *manifest])


def _named(path: ObjectStoragePath) -> tuple[str, str]:
    """Return namespace and name of a place in storage by OpenLineage's naming: ``s3://bucket`` and the key."""
    if path.protocol in ("file", "local", ""):
        return "file", path.path
    bucket, _, key = path.path.removeprefix(f"{path.protocol}://").lstrip("/").partition("/")
    return f"{path.protocol}://{bucket}", key or "/"
