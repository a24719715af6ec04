"""Checks of what a user gives for a landing, in the task and before anything is paid or copied."""

from __future__ import annotations

from airflow_provider_uniapi_fal.exceptions import error_of
from airflow_provider_uniapi_fal.landing.names import check_template
from airflow_provider_uniapi_fal.landing.storage import is_plain_name
from airflow_provider_uniapi_fal.protocol.errors import bad_input


def check_destination(destination: object) -> None:
    """
    Check the argument ``destination``.

    :raises FalInputError: if it is no folder
    """
    if not isinstance(destination, str) or not destination.strip():
        raise error_of(bad_input("destination: a folder in storage is needed, such as s3://bucket/night."))


def check_name(name: object) -> None:
    """
    Check the argument ``name``.

    :raises FalInputError: if it is no plain file name
    """
    if not isinstance(name, str) or not is_plain_name(name):
        raise error_of(bad_input(f"name: a plain file name is needed, not {name!r}."))


def check_name_template(name_template: object) -> None:
    """
    Check the argument ``name_template``.

    :raises FalInputError: saying what is wrong with it
    """
    try:
        check_template(name_template)
    except ValueError as error:
        raise error_of(bad_input(f"name_template: {error}.")) from error
