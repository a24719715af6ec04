"""
How many requests the emulator answers with one core: submits, statuses, results and media files from its cache.

    python benchmarks/emulator_load.py [--jobs 10000] [--family fal]

What is measured is the processor time of the emulator's own process, so that a busy machine changes the figures little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_uniapi_fal.emulator.running import EmulatorProcess

CONNECTIONS = 32
PICTURE = {"width": 512, "height": 512}


class Connection:
    """One kept-alive connection, with as little client in it as possible: the emulator is what is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def call(self, method: str, path: str, key: str, payload: Any = None) -> bytes:
        """Return the body of an answer that must be a 2xx."""
        body = b"" if payload is None else json.dumps(payload).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: load\r\nAuthorization: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        length = next(int(line[15:]) for line in lines if line.lower().startswith("content-length:"))
        answer = await self._reader.readexactly(length)
        if not lines[0].startswith("HTTP/1.1 2"):
            raise RuntimeError(f"{method} {path}: {lines[0]} {answer[:200]!r}")
        return answer


@dataclass(frozen=True)
class Wire:
    """How one family is spoken to."""

    key: str
    submit: tuple[str, dict[str, Any]]
    request_id: Callable[[Any], str]
    status: str
    media: Callable[[Any], str]
    result: str = ""


WIRES = {
    "fal": Wire(
        "Key load",
        ("/fal-ai/flux/dev", {"image_size": PICTURE, "seed": 1}),
        lambda body: body["request_id"],
        "/fal-ai/flux/requests/{}/status",
        lambda body: body["images"][0]["url"],
        "/fal-ai/flux/requests/{}",
    ),
    "kling": Wire(
        "Bearer load",
        ("/kling/v1/images/generations", {"aspect_ratio": "1:1"}),
        lambda body: body["data"]["task_id"],
        "/kling/v1/images/generations/{}",
        lambda body: body["data"]["task_result"]["images"][0]["url"],
    ),
    "luma": Wire(
        "Bearer load",
        ("/luma/generations", {}),
        lambda body: body["id"],
        "/luma/generations/{}",
        lambda body: body["video"]["url"],
    ),
}


async def each(
    url: str, items: Iterable[Any], work: Callable[[Connection, Any], Awaitable[Any]]
) -> list[Any]:
    """Do some work for each item, over a fixed number of connections."""
    waiting, done = iter(list(items)), []

    async def worker() -> None:
        reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
        connection = Connection(reader, writer)
        for item in waiting:
            done.append(await work(connection, item))
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
    return done


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(emulator: EmulatorProcess, wire: Wire, jobs: int) -> None:
    """Run every kind of call, and print what each cost the emulator."""

    async def phase(
        name: str, items: Iterable[Any], work: Callable[[Connection, Any], Awaitable[Any]]
    ) -> list[Any]:
        before, started = processor_seconds(emulator.pid), time.monotonic()
        done = await each(emulator.url, items, work)
        used, took = processor_seconds(emulator.pid) - before, time.monotonic() - started
        print(
            f"{name:<8} {len(done):>6} calls  {used:6.2f} CPU-s  {len(done) / used:7.0f} per core and second  {took:6.1f} s"
        )
        return done

    path, arguments = wire.submit
    prompt = "user_prompt" if "luma" in path else "prompt"

    async def submit(connection: Connection, number: int) -> str:
        body = {**arguments, prompt: f"picture {number}"}
        return wire.request_id(json.loads(await connection.call("POST", path, wire.key, body)))

    async def status(connection: Connection, request_id: str) -> bytes:
        return await connection.call("GET", wire.status.format(request_id), wire.key)

    async def result(connection: Connection, request_id: str) -> bytes:
        return await connection.call("GET", (wire.result or wire.status).format(request_id), wire.key)

    async def media(connection: Connection, url: str) -> int:
        return len(await connection.call("GET", urlsplit(url).path, wire.key))

    ids = await phase("submit", range(jobs), submit)
    await phase("status", ids * 2, status)
    results = await phase("result", ids, result)
    await phase("media", [wire.media(json.loads(body)) for body in results], media)


def main() -> None:
    """Measure one family."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--jobs", type=int, default=10_000)
    options.add_argument("--family", choices=WIRES, default="fal")
    options.add_argument(
        "--lasting", action="store_true", help="with a state file, as a benchmark that restarts has it"
    )
    read = options.parse_args()
    state = {} if read.lasting else {"state": ""}
    with EmulatorProcess(
        queue_seconds=0.0, run_seconds=0.0, urls="gateway", same_media=True, start_seconds=60.0, **state
    ) as emulator:
        print(f"{read.family}, {read.jobs} jobs")
        asyncio.run(measure(emulator, WIRES[read.family], read.jobs))


if __name__ == "__main__":
    main()
