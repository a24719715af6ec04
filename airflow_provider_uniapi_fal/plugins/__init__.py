"""What shows up in Airflow's user interface."""
