"""
Write constraints.txt: the exact versions of everything a development install needs, one line each.

The arguments are the Python interpreters to resolve for. A package that resolves to one version everywhere gets
one plain line; where newer Pythons get a newer version, each range of Pythons gets a line with a marker.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
HEADER = "# Exact versions for development. Made by `make constraints`; CONTRIBUTING.md says how.\n"


def normal(name: str) -> str:
    """Return a distribution's name in the one spelling that all of its spellings share."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(python: str) -> tuple[str, dict[str, str]]:
    """Return an interpreter's version and the newest set of versions that its pip would install."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        subprocess.run([python, "-m", "venv", f"{folder}/venv"], check=True)
        pip = [f"{folder}/venv/bin/python", "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, "--dry-run", "--report", str(report), f"{PROJECT}[dev]"], check=True)
        answer = json.loads(report.read_text())
    found = {normal(item["metadata"]["name"]): item["metadata"]["version"] for item in answer["install"]}
    del found["airflow-provider-uniapi-fal"]
    return answer["environment"]["python_version"], found


def lines(resolved: list[dict[str, str]], pythons: list[str]) -> list[str]:
    """Merge the versions found for each Python, oldest first, into constraint lines."""
    merged = []
    for name in sorted({name for found in resolved for name in found}):
        # A package that one Python does not need is not constrained there, so its neighbour's line may cover it.
        runs: list[tuple[str, str]] = []
        for python, found in zip(pythons, resolved, strict=True):
            if name in found and (not runs or runs[-1][1] != found[name]):
                runs.append((python, found[name]))
        for index, (since, version) in enumerate(runs):
            marks = [f'python_version >= "{since}"'] if index else []
            marks += [f'python_version < "{runs[index + 1][0]}"'] if index + 1 < len(runs) else []
            merged.append(" ; ".join([f"{name}=={version}", *([" and ".join(marks)] if marks else [])]))
    return merged


def main(interpreters: list[str]) -> None:
    """Resolve for every interpreter and write constraints.txt."""
    with ThreadPoolExecutor(2) as pool:
        resolved = dict(pool.map(resolve, interpreters))
    pythons = sorted(resolved, key=lambda python: [int(part) for part in python.split(".")])
    constraints = lines([resolved[python] for python in pythons], pythons)
    (PROJECT / "constraints.txt").write_text(HEADER + "\n".join(constraints) + "\n")
    print(f"constraints.txt holds for Python {', '.join(pythons)}")


if __name__ == "__main__":
    main(sys.argv[1:])
