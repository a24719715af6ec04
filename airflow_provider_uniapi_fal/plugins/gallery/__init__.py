"""
The gallery: media as pages below ``/fal-media``, read from manifests.

``roots``, ``ranges``, ``kinds``, ``choosing`` and ``words`` are pure rules; ``accounts``, ``files`` and
``thumbnails`` read the database and storage; ``access`` asks Airflow for permission; ``app`` has the routes.
"""
