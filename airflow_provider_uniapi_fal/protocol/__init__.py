"""The gateway's wire as plain values: no I/O and no Airflow."""
