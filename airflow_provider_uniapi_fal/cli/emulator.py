"""``airflow fal emulator``: the local gateway, with its own options."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from airflow_provider_uniapi_fal.emulator.__main__ import main

if TYPE_CHECKING:
    import argparse


def emulator(args: argparse.Namespace) -> None:
    """Serve until a signal says stop; the options are those of ``python -m …emulator``."""
    sys.exit(main(args.emulator_options))
