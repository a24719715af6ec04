"""A whole night on one machine: the emulator, an Airflow of one's own, and the nightly DAG."""
