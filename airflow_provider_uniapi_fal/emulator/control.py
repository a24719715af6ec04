"""The emulator's own endpoints under ``/_emulator``: the account, the faults, and a fresh start."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from aiohttp import web

from airflow_provider_uniapi_fal.emulator.faults import Rule

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.server import Gateway


def add_control(app: web.Application, gateway: Gateway) -> None:
    """Serve the control endpoints; they need no key and are not written down."""

    async def health(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "jobs": len(gateway.queue.jobs)})

    async def account(request: web.Request) -> web.Response:
        gateway.now()
        return web.json_response(gateway.account.report())

    async def requests(request: web.Request) -> web.Response:
        return web.json_response(gateway.account.requests())

    async def faults(request: web.Request) -> web.Response:
        return web.json_response([rule.as_mapping() for rule in gateway.rules.all()])

    async def add_fault(request: web.Request) -> web.Response:
        try:
            written = json.loads(await request.read())
            if not isinstance(written, (dict, str)):
                raise ValueError("A rule is a mapping or a text.")
            rule = Rule.read(written)
            gateway.settings.check_rule(rule)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        gateway.rules.add(rule)
        return web.json_response(rule.as_mapping())

    async def clear_faults(request: web.Request) -> web.Response:
        gateway.rules.clear()
        return web.json_response([])

    async def reset(request: web.Request) -> web.Response:
        gateway.reset()
        return web.json_response({"status": "ok"})

    app.router.add_get("/_emulator/health", health)
    app.router.add_get("/_emulator/account", account)
    app.router.add_get("/_emulator/requests", requests)
    app.router.add_get("/_emulator/faults", faults)
    app.router.add_post("/_emulator/faults", add_fault)
    app.router.add_delete("/_emulator/faults", clear_faults)
    app.router.add_post("/_emulator/reset", reset)
