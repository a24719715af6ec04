"""What the READMEs show is what is tested."""

from __future__ import annotations

from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_readmes_dag_is_the_example_that_the_tests_run(readme: str) -> None:
    example = (PROJECT / "dags_examples" / "one_picture.py").read_text()
    assert f"```python\n{example}```\n" in (PROJECT / readme).read_text()


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_readme_names_the_number_of_prompts_of_the_demo(readme: str) -> None:
    prompts = (PROJECT / "demo" / "prompts.jsonl").read_text().splitlines()
    assert f"{len(prompts)} " in (PROJECT / readme).read_text()
