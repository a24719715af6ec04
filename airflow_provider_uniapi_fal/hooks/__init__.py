"""From an Airflow connection to the gateway."""
