"""``python -m airflow_provider_uniapi_fal.emulator``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

from airflow_provider_uniapi_fal.emulator.command_line import parser, read_settings

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_uniapi_fal.emulator.running import Address
    from airflow_provider_uniapi_fal.emulator.settings import Settings


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal says stop."""
    options = parser().parse_args(arguments)
    try:
        settings = read_settings(options)
    except ValueError as error:
        parser().error(str(error))
    try:
        asyncio.run(_serve(settings, options.address_file, verbose=options.verbose))
    except ModuleNotFoundError as error:
        if error.name not in ("PIL", "av", "cryptography"):
            raise
        what = "makes a certificate" if error.name == "cryptography" else "renders real media"
        print(
            f"The emulator {what} and needs {error.name}. "
            "Install the extra: pip install 'airflow-provider-uniapi-fal[emulator]'",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        file = f": {error.filename}" if error.filename else ""
        print(
            f"Cannot serve on {settings.host}:{settings.port}: {error.strerror or error}{file}",
            file=sys.stderr,
        )
        return 2
    return 0


async def _serve(settings: Settings, address_file: Path | None, *, verbose: bool) -> None:
    # Only here, so that --help works without the libraries that render.
    from airflow_provider_uniapi_fal.emulator.running import serving

    stopped = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, stopped.set)
    async with serving(settings, say=_log if verbose else None) as address:
        _announce(address, address_file)
        await stopped.wait()


def _announce(address: Address, address_file: Path | None) -> None:
    if address_file is not None:
        # In one step, so that whoever waits for the file never reads half an address.
        unfinished = address_file.with_name(f".{address_file.name}.{os.getpid()}")
        unfinished.write_text(address.url + "\n")
        unfinished.replace(address_file)
    print(f"The emulator listens on {address.url}", flush=True)
    if address.ca_file is not None:
        print(f"Its clients must trust {address.ca_file}", flush=True)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
