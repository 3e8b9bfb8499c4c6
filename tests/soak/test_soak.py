"""One round of the soak; `python tests/soak/soak.py` by hand runs as many as there is time for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mammo_pd

ROUNDS = 1


@pytest.mark.slow
def test_every_stage_that_is_killed_and_started_again_ends_as_if_it_had_not_been(
    tmp_path: Path,
) -> None:
    script = Path(__file__).with_name("soak.py")
    words = ["--work", str(tmp_path / "work"), "--rounds", str(ROUNDS)]
    # A process of its own, since it forks.
    package = str(Path(mammo_pd.__file__).parents[1])
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(script), *words], env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0
    lines = (tmp_path / "work" / "trials.jsonl").read_text().splitlines()
    trials = [json.loads(line) for line in lines]
    assert len(trials) == 30 * ROUNDS
    assert [trial for trial in trials if trial["problems"]] == []
