import json
import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from few_steps import few_steps
from PIL import Image

from mammo_pd.errors import InputError
from mammo_pd.perf.bench import bench
from mammo_pd.perf.cost import shape_of, training_flops
from mammo_pd.perf.measure import Bench
from mammo_pd.perf.rows import OURS, TIMM, TIMM_WHOLE
from mammo_pd.terms import Draw

TINY = "test_vit"


def test_rows_are_ours_beside_timms(measured: Path) -> None:
    record = json.loads((measured / "b" / "bench.json").read_text())
    rows = record["rows"]
    assert [(row["who"], row["img_size"], row["keep_rate"]) for row in rows] == [
        (who, img_size, keep)
        for img_size in ([64, 48], [96, 80])
        for keep, whos in ((0.25, (OURS, TIMM)), (1.0, (OURS, TIMM_WHOLE)))
        for who in whos
    ]
    for row in rows:
        assert row["images_per_second"] == pytest.approx(2000 / row["step_ms"])
        # timm makes every token of the last block.
        shape = replace(shape_of(TINY), class_token_alone=row["who"] == OURS)
        flops = training_flops(shape, row["num_keep"])
        rate = row["images_per_second"] * flops / record["ceiling_flops"]
        assert row["share_of_ceiling"] == pytest.approx(rate)
        assert (row["sampling_share"] is not None) == (row["who"] == OURS)
    assert rows[0]["num_keep"] == 3


def test_bench_that_is_stopped_keeps_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "timm", stop)
    with few_steps(), pytest.raises(KeyboardInterrupt):
        bench(tmp_path, resolutions=["64x48"], keep_rates=[0.25], models=[TINY], batch_size=1)
    assert [row["who"] for row in json.loads((tmp_path / "bench.json").read_text())["rows"]] == [
        OURS
    ]


def test_table_and_plot_can_be_looked_at(measured: Path) -> None:
    text = (measured / "b" / "bench.md").read_text()
    assert text.count("\n|") == 2 + 8
    assert "ceiling" in text
    with Image.open(measured / "b" / "bench.png") as picture:
        assert picture.size[0] > 400
        assert len(picture.convert("RGB").getcolors(2**24)) > 50


def test_mlflow_has_every_row(measured: Path) -> None:
    with sqlite3.connect(measured / "runs" / "mlflow.db") as database:
        count = database.execute(
            "SELECT count(*) FROM metrics WHERE key = 'images_per_second'"
        ).fetchone()
    assert count == (8,)


def test_loader_reads_the_images_of_a_store(phantom_store: Path) -> None:
    with Bench(steps=1, store=phantom_store) as machine:
        row = machine.ours(TINY, (64, 48), 0.5, 2, draw=Draw.TISSUE, compiled=False)
        share = machine.tissue_share((64, 48), 16)
        pretraining = machine.ours(
            TINY, (64, 48), 0.25, 2, compiled=False, pretraining=True, end_to_end=False
        )
    assert 0 <= row.wait_share < 1
    assert row.end_to_end_share > 0
    assert math.isnan(row.peak_gib)
    assert 0.2 < share < 1
    assert (pretraining.who, pretraining.num_keep) == ("mammo-pd, pretraining", 3)
    assert pretraining.images_per_second > 0
    assert 0 < pretraining.share_of_ceiling < 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"resolutions": ["64x48", "full"]}, "depends on a split"),
        ({"keep_rates": [0.5, 1.5]}, "keep_rate 1.5"),
        ({"models": ["resnet18"]}, "is a ResNet"),
        ({"batch_size": 0}, "--batch-size 0"),
    ],
)
def test_what_bench_cannot_measure_is_refused_before_anything_is(
    given: dict[str, object], message: str, tmp_path: Path
) -> None:
    options = {"resolutions": ["64x48"], "keep_rates": [1.0], "models": [TINY], **given}
    said: list[str] = []
    with pytest.raises(InputError, match=message):
        bench(tmp_path, **options, say=said.append)  # type: ignore[arg-type]
    assert not said
