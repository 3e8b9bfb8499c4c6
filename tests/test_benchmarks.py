"""The scripts of benchmarks/: nothing but these tests runs them here."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from mammo_pd.config import load_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("script", sorted(file.stem for file in BENCHMARKS.glob("*.py")))
def test_every_script_finds_what_it_imports(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    try:
        assert importlib.import_module(script).__doc__
    except ModuleNotFoundError as error:
        if error.name != "torchao":
            raise
        pytest.skip("torchao is not installed: benchmarks/fp8.py is the only one to need it")
    finally:
        # Their names are common words.
        for name in set(sys.modules) - before:
            if "." not in name and (BENCHMARKS / f"{name}.py").is_file():
                del sys.modules[name]


@pytest.mark.parametrize(
    "plan", sorted((BENCHMARKS / "recipes").glob("*.json")), ids=lambda p: p.stem
)
def test_every_recipe_is_a_configuration(plan: Path) -> None:
    given = json.loads(plan.read_text())
    recipes = [given] if "cells" in given else list(given.values())
    if "pretraining" in given:
        recipes = [recipe for kind in given.values() for recipe in kind.values()]
    assert recipes
    for recipe in recipes:
        load_config(None, recipe["set"])
