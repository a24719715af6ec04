"""
A small night at the real gateway, for whoever has a key and says yes: `UNIAPI_KEY=… make demo`.

Each prompt is a paid job. So the number of jobs, the models and the address are said first, and nothing but the word
yes, typed at a terminal, is taken for one. Never in CI.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_uniapi_fal.protocol.origin import DEFAULT_BASE_URL
from demo.account import read_account, what_is_wrong
from demo.local_airflow import LocalAirflow

if TYPE_CHECKING:
    from rich.console import Console

#: One picture each, of a model made to be quick and cheap.
NIGHT: tuple[dict[str, Any], ...] = tuple(
    {
        "key": key,
        "model": "flux/schnell",
        "arguments": {
            "prompt": prompt,
            "image_size": {"width": 512, "height": 384},
            "num_images": 1,
            "num_inference_steps": 4,
        },
    }
    for key, prompt in (
        ("copper-kettle", "A dented copper kettle steaming on a stove, frost on the window behind it"),
        ("waldsee", "Ein stiller Waldsee im Oktober, ein rotes Ruderboot am Steg"),
        ("bamboo-rain", "竹林雨后,石板小径泛着水光,远处一盏灯笼"),
    )
)

RUN_SECONDS = 900.0


@dataclass(frozen=True)
class Gateway:
    """
    The gateway and the key to pay with.

    :param media_hosts: private hosts that media may come from; a real gateway has none
    """

    host: str
    key: str = field(repr=False)
    media_hosts: tuple[str, ...] = ()

    def connection(self) -> str:
        """Write it as Airflow reads it from an environment variable; it is written nowhere else."""
        extra = {"media_hosts": list(self.media_hosts)}
        return json.dumps(
            {"conn_type": "uniapi_fal", "host": self.host, "password": self.key, "extra": extra}
        )


def gateway_of(environment: Mapping[str, str]) -> Gateway | None:
    """Return the gateway that the environment has a key for, if any; never in CI."""
    key = environment.get("UNIAPI_KEY", "").strip()
    if not key or environment.get("CI", "").lower() not in ("", "0", "false"):
        return None
    return Gateway(environment.get("UNIAPI_HOST", "").strip() or DEFAULT_BASE_URL, key)


def agreed(gateway: Gateway, console: Console, ask: Callable[[], str], *, terminal: bool) -> bool:
    """
    Say what it would cost and ask; only the word yes is a yes.

    :param terminal: whether somebody sits there who can be asked
    """
    jobs = len(NIGHT)
    models = ", ".join(sorted({row["model"] for row in NIGHT}))
    console.print(
        f"UNIAPI_KEY is set. A small night at {gateway.host} is {jobs} paid jobs ({jobs} pictures, {models}).",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if not terminal:
        console.print(
            "Nobody can be asked here, so nothing is paid: this is the demo with the emulator.",
            highlight=False,
        )
        return False
    console.print(f"Type yes to pay for {jobs} jobs; anything else runs the demo with the emulator.", end=" ")
    try:
        answer = ask()
    except EOFError:
        answer = ""
    if answer.strip().lower() == "yes":
        return True
    console.print("Nothing is paid.", highlight=False)
    return False


def run_real(folder: Path, console: Console, gateway: Gateway) -> bool:
    """Run the small night once and say what became of each prompt; return whether all of it succeeded."""
    # Not at the top: the demo is itself run as a module, and imports this one.
    from demo.__main__ import DAG_FILE, DAG_ID, table_of

    media, dags, prompts = folder / "media", folder / "dags", folder / "prompts.jsonl"
    media.mkdir()
    dags.mkdir()
    shutil.copy(DAG_FILE, dags)
    prompts.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in NIGHT), encoding="utf-8")
    console.print(f"Everything goes to {folder}; starting Airflow …", highlight=False, soft_wrap=True)
    airflow = LocalAirflow(
        folder / "airflow", dags=dags, environment={"AIRFLOW_CONN_FAL_DEFAULT": gateway.connection()}
    )
    try:
        with airflow:
            airflow.wait_for_dag(DAG_ID)
            run_id = airflow.trigger(DAG_ID, {"prompts": prompts.as_uri(), "destination": media.as_uri()})
            state = airflow.wait_for_run(DAG_ID, run_id, RUN_SECONDS)
    except BaseException:
        # Whatever ended it, by now Airflow has stopped, and nothing more is submitted.
        tell_of_jobs(media, console, gateway)
        raise
    found = next((path for name in ("manifest.jsonl", "account.json") for path in media.rglob(name)), None)
    rows = [] if found is None else read_account(found)
    if rows:
        console.print(table_of(rows))
        console.print(f"Account: {found}", highlight=False, soft_wrap=True)
    keys = [row["key"] for row in NIGHT]
    # What the gateway has accepted only the gateway knows; the account says what was submitted.
    problems = what_is_wrong(keys, rows, len(keys), state)
    for problem in problems:
        console.print(f"  {problem}", markup=False, highlight=False, soft_wrap=True, style="red")
    if problems:
        tell_of_jobs(media, console, gateway)
    return not problems


def tell_of_jobs(media: Path, console: Console, gateway: Gateway) -> None:
    """Say, once the night has ended badly, which jobs may run and be billed, and how they are found."""
    # Intents are written into the journal before they are posted.
    journals = sorted(media.rglob("manifest.journal"))
    if not journals:
        console.print(
            "No submit was written down: nothing was posted, and nothing is billed.", highlight=False
        )
        return
    connection = json.dumps({"conn_type": "uniapi_fal", "host": gateway.host, "password": "<your key>"})
    console.print("Jobs that were submitted go on: they may be running and may be billed. To find them:")
    for line in (
        f"export AIRFLOW_CONN_FAL_DEFAULT='{connection}'",
        *(
            f"{Path(sys.executable).with_name('airflow')} fal jobs --all --manifest {path.with_suffix('.jsonl')}"
            for path in journals
        ),
    ):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
