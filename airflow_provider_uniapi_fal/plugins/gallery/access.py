"""Who may see what: Airflow's own answer, asked at every route."""

from __future__ import annotations

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.models.dag import DagModel
from fastapi import HTTPException, Request

__all__ = ["GetUserDep", "may_see_dag", "visible_dags"]

# The pages show what a task's XCom leads to.
_may_read_xcoms = requires_access_dag("GET", DagAccessEntity.XCOM)


def may_see_dag(dag_id: str, request: Request, user: GetUserDep) -> None:
    """Let only those pass who may read the XComs of the DAG in the path."""
    # Airflow takes "~" for "no DAG in particular" and would ask for no DAG's permission.
    if dag_id == "~":
        raise HTTPException(404, "There is no such DAG.")
    _may_read_xcoms(request, user)


def visible_dags(user: GetUserDep) -> set[str]:
    """Return the DAGs whose XComs a user may read."""
    manager = get_auth_manager()
    dag_ids = manager.get_authorized_dag_ids(user=user, method="GET")
    teams = DagModel.get_dag_id_to_team_name_mapping(list(dag_ids))
    return {
        dag_id
        for dag_id in dag_ids
        if manager.is_authorized_dag(
            method="GET",
            access_entity=DagAccessEntity.XCOM,
            details=DagDetails(id=dag_id, team_name=teams.get(dag_id)),
            user=user,
        )
    }
