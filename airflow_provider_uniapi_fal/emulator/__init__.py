"""
A local server that speaks the gateway's wire: no network, no key, real pictures and videos.

``python -m airflow_provider_uniapi_fal.emulator`` starts it; ``emulator.running`` starts it from Python,
``emulator.pytest_plugin`` for the tests of one's own DAGs. It is written from the description of the wire alone and
shares no code with the provider, so that a mistake in the one cannot hide behind the same mistake in the other.
"""

from __future__ import annotations
