import json
from pathlib import Path

import pytest

from mammo_pd.errors import InputError
from mammo_pd.perf.budget import budget, choose
from mammo_pd.perf.calibration import read_calibration
from mammo_pd.perf.cost import shape_of

TINY = "test_vit"
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


def test_budget_reckons_with_the_disk() -> None:
    text, _ = budget("24GB", hours=12, images=100_000, bench=None, **WHAT)  # type: ignore[arg-type]
    lines = [line.split("|") for line in text.splitlines() if line.startswith("| vit_small")]
    assert len(lines) == 2
    for cells in lines:
        # A level of 1024x473 pixels of 2 bytes.
        speed, read, epoch = (float(cell) for cell in cells[7:10])
        assert read == pytest.approx(speed * 1024 * 473 * 2 / 1e6, rel=0.01)
        assert epoch == pytest.approx(100_000 * 1024 * 473 * 2 / 1e9, rel=0.01)
    text, _ = budget("24GB", hours=None, images=None, bench=None, **WHAT)  # type: ignore[arg-type]
    assert "GB an epoch" not in text


def test_less_memory_or_time_leaves_less() -> None:
    def best(memory: str, hours: float) -> str:
        options = {**WHAT, "resolutions": ["512", "1024", "3328x2560"]}
        return budget(memory, hours=hours, images=100_000, bench=None, **options)[1]  # type: ignore[arg-type]

    assert "--res 3328x2560" in best("80GB", 48)
    assert "--res 1024x816" in best("8GB", 48)
    assert "--res 1024x816" in best("80GB", 1)
    assert "--epochs" not in best("80GB", 48)
    # 79 images/s, as measured (benchmarks/results), see 100,000 images and validate on 14,286, each
    # at .43 of the time, 13 times in 5 hours.
    assert "--epochs 13" in best("80GB", 5)
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
    assert near.is_measured(calibration)
    assert not far.is_measured(calibration)
    text, _ = budget("24GB", hours=1, images=100_000, bench=measured / "b" / "bench.json", **WHAT)  # type: ignore[arg-type]
    assert "to measure them: mammo-pd bench --res 1024" in text


def test_budget_says_whether_memory_or_time_is_short() -> None:
    in_time, _ = budget("24GB", hours=0.001, images=100_000, bench=None, **WHAT)  # type: ignore[arg-type]
    assert "completes 10 epochs in time" in in_time
    assert "grad_accum_steps" not in in_time
    in_memory, _ = budget("1GB", hours=1000, images=100_000, bench=None, **WHAT)  # type: ignore[arg-type]
    assert "training.grad_accum_steps=4" in in_memory


def test_budget_takes_no_larger_batch_than_there_are_images() -> None:
    _, command = budget("80GB", hours=100, images=100, bench=None, **WHAT)  # type: ignore[arg-type]
    assert "--batch-size 96" in command


def test_bench_of_an_earlier_version_is_read(measured: Path, tmp_path: Path) -> None:
    """Its rows name the image size ``canvas``."""
    file, old = measured / "b" / "bench.json", tmp_path / "old.json"
    record = json.loads(file.read_text())
    for row in record["rows"]:
        row["peak_gib"] = 1.0
    (tmp_path / "new.json").write_text(json.dumps(record))
    for row in record["rows"]:
        row["canvas"] = row.pop("img_size")
    old.write_text(json.dumps(record))
    assert read_calibration(old) == read_calibration(tmp_path / "new.json")


@pytest.mark.parametrize("record", ["[]", "{}", '{"rows": [1]}', '{"rows": []}', "no JSON"])
def test_file_that_is_no_bench_is_refused(record: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(record)
    with pytest.raises(InputError, match=r"other\.json is not .* make one with: mammo-pd bench"):
        read_calibration(tmp_path / "other.json")


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
        ({"hours": 3}, "go together"),
        ({"hours": 0, "images": 5}, "is not above 0"),
        ({"keep_rates": [1.5]}, "keep_rate 1.5"),
        ({"bench": Path("none.json")}, r"none\.json is not a file that mammo-pd bench"),
    ],
)
def test_what_budget_cannot_answer_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        budget(**{"memory": "24GB", **NOTHING, **WHAT, **given})  # type: ignore[arg-type]


def test_full_is_refused_since_it_depends_on_a_split() -> None:
    with pytest.raises(InputError, match="depends on a split"):
        budget("8GB", resolutions=["full"], keep_rates=[1], models=[TINY], **NOTHING)
