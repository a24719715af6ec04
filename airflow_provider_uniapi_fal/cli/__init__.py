"""``airflow fal …``: the gateway's verbs, and looking after paid jobs, from a terminal."""
