"""Links that tasks show in Airflow's user interface."""
