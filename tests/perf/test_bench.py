import json
import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mammo_pd.errors import InputError
from mammo_pd.perf.bench import OURS, TIMM, TIMM_WHOLE, Bench, bench
from mammo_pd.perf.budget import budget, choose, read_calibration
from mammo_pd.perf.cost import shape_of, training_flops
from mammo_pd.terms import Draw

TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    bench(
        out / "b",
        resolutions=["64x48", "96"],
        keep_rates=[0.25, 1.0],
        models=[TINY],
        batch_size=2,
        runs=out / "runs",
        say=lambda _: None,
    )
    return out


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
    with pytest.raises(KeyboardInterrupt):
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
    assert 0 <= row.wait_share < 1
    assert row.end_to_end_share > 0
    assert math.isnan(row.peak_gib)
    assert 0.2 < share < 1


def test_full_is_refused_since_it_depends_on_a_split(tmp_path: Path) -> None:
    for run in (
        lambda: bench(tmp_path, resolutions=["full"], keep_rates=[1], models=[TINY]),
        lambda: budget("8GB", resolutions=["full"], keep_rates=[1], models=[TINY], **NOTHING),
    ):
        with pytest.raises(InputError, match="depends on a split"):
            run()


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


NOTHING = {"hours": None, "images": None, "bench": None}
WHAT = {"models": ["vit_small_patch16_224"], "resolutions": ["1024"], "keep_rates": [0.25, 1.0]}


def test_budget_says_what_fits_and_the_command() -> None:
    text, command = budget("24GB", hours=12, images=100_000, bench=None, **WHAT)  # type: ignore[arg-type]
    small = next(line for line in text.splitlines() if "| 0.25 |" in line)
    batch = int(small.split("|")[5])
    assert 100 < batch < 200
    assert (
        f"--res 1024x816 --keep 0.25 --model vit_small_patch16_224 --batch-size {batch}" in command
    )
    assert "NVIDIA H200" in text


def test_less_memory_or_time_leaves_less() -> None:
    def best(memory: str, hours: float) -> str:
        options = {**WHAT, "resolutions": ["512", "1024", "3328x2560"]}
        return budget(memory, hours=hours, images=100_000, bench=None, **options)[1]  # type: ignore[arg-type]

    assert "--res 3328x2560" in best("80GB", 48)
    assert "--res 1024x816" in best("8GB", 48)
    assert "--res 1024x816" in best("80GB", 1)
    assert "--epochs" not in best("80GB", 48)
    # 79 images/s, as measured (benchmarks/results), see 100,000 images 14 times in 5 hours.
    assert "--epochs 14" in best("80GB", 5)
    assert "other --res" in best("80GB", 0.001)


def test_budget_goes_by_the_bench_of_this_machine(measured: Path) -> None:
    file = measured / "b" / "bench.json"
    calibration = read_calibration(file)
    assert calibration.rows == 4
    assert calibration.device.startswith("CPU")
    # A CPU is far from an H200.
    assert calibration.time > 50
    text, _ = budget("24GB", hours=None, images=None, bench=file, **WHAT)  # type: ignore[arg-type]
    assert "4 rows of" in text
    with pytest.raises(InputError, match="--memory 24GB"):
        budget(None, hours=None, images=None, bench=file, **WHAT)  # type: ignore[arg-type]


def test_budget_says_where_the_bench_is_far(measured: Path) -> None:
    """The bench ran steps of two images: two are near, and what 24 GB hold is not."""
    calibration = read_calibration(measured / "b" / "bench.json")
    near, far = (
        choose(shape_of(TINY), "96", 0.25, 24e9, 1.0, images, calibration)
        for images in (2, 100_000)
    )
    assert calibration.is_near(near)
    assert not calibration.is_near(far)
    text, _ = budget("24GB", hours=1, images=100_000, bench=measured / "b" / "bench.json", **WHAT)  # type: ignore[arg-type]
    assert "to measure them: mammo-pd bench --res 1024" in text


def test_budget_says_whether_memory_or_time_is_short() -> None:
    in_time, _ = budget("24GB", hours=0.001, images=100_000, bench=None, **WHAT)  # type: ignore[arg-type]
    assert "epochs in time" in in_time
    assert "grad_accum_steps" not in in_time
    in_memory, _ = budget("1GB", hours=1000, images=100_000, bench=None, **WHAT)  # type: ignore[arg-type]
    assert "training.grad_accum_steps=4" in in_memory


def test_budget_takes_no_larger_batch_than_there_are_images() -> None:
    _, command = budget("80GB", hours=100, images=100, bench=None, **WHAT)  # type: ignore[arg-type]
    assert "--batch-size 96" in command


def test_twice_as_slow_a_bench_halves_the_speed(measured: Path, tmp_path: Path) -> None:
    record = json.loads((measured / "b" / "bench.json").read_text())
    for row in record["rows"]:
        row["images_per_second"] /= 2
        row["peak_gib"] = 1.0
    (tmp_path / "slow.json").write_text(json.dumps(record))
    once, twice = (read_calibration(f) for f in (measured / "b/bench.json", tmp_path / "slow.json"))
    assert twice.time == pytest.approx(2 * once.time)
    assert twice.bytes > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"memory": "24 apples"}, "--memory 24 apples is not understood"),
        ({"memory": "0GB"}, "is not understood"),
        ({"memory": "1.2.3GB"}, "is not understood"),
        ({"hours": 3}, "belong together"),
        ({"hours": 0, "images": 5}, "is not above 0"),
        ({"keep_rates": [1.5]}, "keep_rate 1.5"),
        ({"bench": Path("none.json")}, r"none\.json is not what mammo-pd bench writes"),
    ],
)
def test_what_budget_cannot_answer_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        budget(**{"memory": "24GB", **NOTHING, **WHAT, **given})  # type: ignore[arg-type]
