"""The benchmark of the paper's claim: plans, tables from stored results, and a whole run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PLANS = ("phantoms_pilot", "phantoms_resolution", "rsna_640_resolution")
CELLS = [(512, 1.0, "uniform"), (1024, 1.0, "uniform"), (1024, 0.25, "uniform")]
CELLS += [(512, 0.25, "uniform"), (1024, 0.25, "tissue")]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def write_results(
    out: Path, cells: list[tuple[int, float, str]] = CELLS, *, women: int = 60
) -> None:
    """Results as `train` leaves them; the finer of two inputs tells clusters apart better."""
    out.mkdir()
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=2 * women)
    kind = np.where(label, rng.choice(["mass", "calcification"], 2 * women), None)
    facts = pd.DataFrame(
        {
            "image_id": [f"{n:03}" for n in range(2 * women)],
            "patient_id": [f"w{n // 2}" for n in range(2 * women)],
            "exam_id": [f"e{n // 2}" for n in range(2 * women)],
            "laterality": ["L", "R"] * women,
            "view": "CC",
            "label": label,
            "split": "test",
            "lesion_type": kind,
            "lesion_contrast": np.where(label, rng.uniform(0.1, 1, 2 * women), np.nan),
        }
    )
    tables = []
    with (out / "results.jsonl").open("w") as file:
        for height, keep, draw in cells:
            for seed in (0, 1):
                name = f"{height}.keep{100 * keep:g}.{draw}"
                seen = np.where(kind == "mass", 2, 2 * (height / 512 - 1)) * (0.7 + 0.3 * keep)
                logit = seen * label + rng.standard_normal(len(label))
                cell = f"{name}.seed{seed}"
                tables.append(
                    facts.assign(
                        score=1 / (1 + np.exp(-logit)), cell=cell, name=name, seed=seed, fold=None
                    )
                )
                seconds = (height / 512) ** 2 * keep * 50
                line = {"cell": cell, "name": name, "height": height, "keep": keep, "draw": draw}
                line |= {"variant": "", "seed": seed, "fold": None, "images": 80_000}
                line |= {"images_per_second": 80_000 / seconds, "train_seconds": seconds}
                line |= {"seconds": seconds + 30, "wait_share": 0.0, "gib": seconds / 10}
                line |= {"loss": [0.7, 0.3], "num_keep": 100, "num_tokens": 400, "at_once": 4}
                line |= {"gpus": 4, "device": "a GPU", "epochs": 20, "model": "a ViT"}
                file.write(json.dumps(line) + "\n")
        file.write(json.dumps({"cell": "failed", "error": "Traceback"}) + "\n")
    pd.concat(tables, ignore_index=True).to_parquet(out / "predictions.parquet")


@pytest.mark.parametrize("plan", PLANS)
def test_each_cell_of_a_plan_is_a_configuration_of_its_own(plan: str) -> None:
    from resolution_vs_keep import read_plan

    from mammo_pd.config import load_config, resolve_img_size

    cells, given = read_plan(BENCHMARKS / "recipes" / f"{plan}.json")
    for cell in cells:
        config = load_config(None, cell.settings)
        assert resolve_img_size(config.data.res, 14, (2048, 1229)) == tuple(
            map(int, cell.size.split("x"))
        )
        assert config.patch_dropout.keep_rate == cell.keep
        assert config.patch_dropout.draw == cell.draw
        assert (config.training.seed, config.data.fold) == (cell.seed, cell.fold)
        assert config.data.split == given["split"]
        if not cell.variant:
            # GPU time and memory are what differs between cells, and nothing else.
            assert config.training.epochs == given["set"]["training.epochs"]


def test_a_finer_input_at_keep_a_quarter_has_the_patches_of_a_coarser_one_at_keep_1() -> None:
    from resolution_vs_keep import read_plan

    for plan in PLANS[1:]:
        sizes = read_plan(BENCHMARKS / "recipes" / f"{plan}.json")[1]["sizes"]
        patches = {int(h): np.prod(list(map(int, s.split("x")))) for h, s in sizes.items()}
        for height, count in patches.items():
            if 2 * height in patches:
                assert patches[2 * height] / 4 == pytest.approx(count, rel=0.05)


def test_the_table_prints_the_differences_that_the_claim_is_about(tmp_path: Path) -> None:
    from resolution_table import tell

    write_results(tmp_path / "out")
    told = tell([tmp_path / "out"], None)
    rows = [line.split(" | ") for line in told.splitlines() if line.startswith("| ")]
    equal = next(row for row in rows if row[0] == "| equal compute")
    assert equal[1:3] == ["1024 keep 0.25", "512 keep 1"]
    head = next(row for row in rows if row[0] == "| question")
    by_kind = dict(zip(head, equal, strict=True))
    # Drawn so: clusters are seen at 1,024 alone, masses at both.
    assert float(by_kind["of calcification"].split()[0]) > 0.1
    assert float(by_kind["of mass"].split()[0]) < 0.1
    assert by_kind["GPU s, times"] == "1.00"
    assert {row[1] for row in rows if row[0] == "| fewer patches"} == {
        "512 keep 0.25",
        "1024 keep 0.25",
        "1024 keep 0.25 tissue",
    }
    assert sum("AUC of mass, contrast" in row[0] or "contrast" in row[-1] for row in rows) == 1
    assert "failed" not in told


def test_what_is_kept_is_printed_again() -> None:
    from resolution_table import tell

    kept = BENCHMARKS / "results" / "resolution_vs_keep_h200_2026-11-26"
    assert tell([kept / "pilot_difficulty_1"], None) in (kept / "README.md").read_text()


def test_results_of_two_calls_are_read_together_and_the_later_one_of_a_cell_counts(
    tmp_path: Path,
) -> None:
    from resolution_table import read_results

    write_results(tmp_path / "a", CELLS[:2])
    write_results(tmp_path / "b", CELLS[1:])
    cells = read_results([tmp_path / "a", tmp_path / "b"])
    assert [(c.height, c.keep, c.draw) for c in cells] == sorted(
        CELLS, key=lambda c: (c[0], -c[1], c[2] != "uniform")
    )
    later = read_results([tmp_path / "b"])
    assert cells[2].scores.equals(later[1].scores)


def test_the_pareto_front_is_what_no_cheaper_cell_reaches(tmp_path: Path) -> None:
    from resolution_table import Subset, pareto, read_results

    from mammo_pd.terms import Level

    write_results(tmp_path / "out")
    cells, subset = read_results([tmp_path / "out"]), Subset("", Level.IMAGE)
    front = pareto(cells, subset)
    for cell in cells:
        beaten = any(
            other.gpu_seconds() <= cell.gpu_seconds()
            and other.mean_auc(subset) >= cell.mean_auc(subset)
            and other is not cell
            for other in cells
        )
        assert (cell in front) is not beaten


@pytest.mark.slow
def test_a_tiny_grid_is_drawn_trained_scored_and_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from phantom_store import counts, make_store
    from resolution_table import tell
    from resolution_vs_keep import train

    store, out, plan = tmp_path / "store", tmp_path / "out", tmp_path / "plan.json"
    make_store(store, images=counts(24, 6, 12), seed=0, difficulty=0.5, processes=1)
    settings = {"model.name": "vit_tiny_patch16_224", "training.batch_size": 8}
    settings |= {"training.epochs": 2, "training.lr": 1e-3}
    cells: list[dict[str, object]] = [{"height": 64, "keep": 1}]
    given = {"split": "default", "images": 24, "scored": 36, "set": settings, "cells": cells}
    given["sizes"] = {"64": "64x48", "128": "128x96"}
    plan.write_text(json.dumps(given))
    train(store, plan, out, at_once=1, minutes=10, weights=None)
    cells.append({"height": 128, "keep": 0.25, "draw": "tissue"})
    plan.write_text(json.dumps(given))
    train(store, plan, out, at_once=1, minutes=10, weights=None)
    assert "1 of 2 cells are done" in capsys.readouterr().out
    lines = [json.loads(line) for line in (out / "results.jsonl").open()]
    assert [line["cell"] for line in lines] == [
        "64.keep100.uniform.seed0",
        "128.keep25.tissue.seed0",
    ]
    assert [line["images"] for line in lines] == [48, 48]
    assert "| 128 | 0.25 | tissue | 12 | 0 |" in tell([out], None)
    # In two processes together, to the same scores.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(BENCHMARKS / "resolution_vs_keep.py"), "train"]
    command += [str(file) for file in (store, plan, tmp_path / "together")]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    together = [json.loads(line) for line in (tmp_path / "together" / "results.jsonl").open()]
    assert [(line["cell"], line["images"], line["devices"]) for line in together] == [
        (line["cell"], line["images"], 2) for line in lines
    ]
    for one, two in zip(lines, together, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
    alone, both = (
        pd.read_parquet(folder / "predictions.parquet") for folder in (out, tmp_path / "together")
    )
    np.testing.assert_allclose(both["score"], alone["score"], atol=1e-4)


def test_a_breast_without_its_lesion_differs_only_where_that_lies() -> None:
    from phantom_store import draw

    from mammo_pd.phantoms.settings import PhantomSettings
    from mammo_pd.terms import Laterality

    drawn = draw(PhantomSettings(patients=1, seed=3, prevalence=1.0), 0, Laterality.LEFT, 1.0)
    healthy = draw(PhantomSettings(patients=1, seed=3, prevalence=0.0), 0, Laterality.LEFT, 1.0)
    assert drawn.lesion is not None
    assert healthy.lesion is None
    assert drawn.pixels.shape[0] == 2048
    assert ((drawn.pixels > 0) == (healthy.pixels > 0)).all()
    rows, columns = np.nonzero(drawn.pixels != healthy.pixels)
    away = np.hypot(rows - drawn.lesion.row, columns - drawn.lesion.column)
    assert len(away)
    # Spicules reach nearly twice the radius.
    assert away.max() < 2.8 * drawn.lesion.radius + 10
