import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pydicom
import pytest

from mammo_pd.cli import app as cli
from mammo_pd.cli.app import _run_folder, main

ROOT = Path(__file__).parents[1]
COMMANDS = ("preprocess", "split", "train", "evaluate", "compare", "bench", "budget", "demo")
HEAVY = ("torch", "timm", "monai", "lightning", "sklearn", "pandas", "numpy", "mlflow", "pydicom")


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    """Counted in modules, not in seconds."""
    program = (
        "import sys\n"
        "from mammo_pd.cli.app import main\n"
        "try:\n"
        f"    main({words!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print(len(sys.modules), heavy, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "usage: mammo-pd" in done.stdout
    count, _, heavy = done.stderr.strip().partition(" ")
    assert heavy == "[]"
    assert int(count) < 200


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert re.fullmatch(r"mammo-pd \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_whole_job_by_the_three_commands(
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each command names what it wrote and the next command, which is then typed."""
    monkeypatch.chdir(tmp_path)
    assert main(["preprocess", str(phantoms), "--labels", str(phantoms / "labels.csv")]) == 0
    assert next_command(capsys) == "mammo-pd train --res 1024 --keep 0.25"
    small = "--res 128 --keep 0.25 --model vit_tiny_patch16_224 --epochs 1 --batch-size 8"
    assert main(["train", *small.split(), "--set", "data.workers=1"]) == 0
    command = next_command(capsys)
    assert command.startswith("mammo-pd evaluate runs/")
    assert main([*command.split()[1:], "--resamples", "50"]) == 0
    report = next_command(capsys).removeprefix("open ")
    assert Path(report).is_file()
    page = Path(report).read_text()
    assert "phantom" in page.lower()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "store"]
    # Nothing but the owner's own folder holds what went in: no name, identifier or path.
    table = pd.read_csv(phantoms / "labels.csv", dtype=str)
    columns = ("patient_id", "sop_instance_uid", "exam_id", "path")
    forbidden = {value for name in columns for value in table[name]} | {"PHANTOM^"}
    for file in tmp_path.rglob("*"):
        if file.is_file() and "private" not in file.relative_to(tmp_path).parts:
            content = file.read_bytes()
            if file.suffix == ".parquet":
                content = pd.read_parquet(file).to_csv().encode()
            assert not [value for value in forbidden if value.encode() in content], file


def test_nothing_printed_holds_an_identifier(
    phantoms: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is printed ends in a cluster's log; file names are often a UID or a name."""
    folder = tmp_path / "archive"
    folder.mkdir()
    woman = sorted(phantoms.glob("PHANTOM*"))[0]
    forbidden = {"Jane_Doe"}
    for number, file in enumerate(sorted(woman.rglob("*.dcm"))):
        dataset = pydicom.dcmread(file)
        forbidden |= {str(dataset.PatientID), str(dataset.PatientName), dataset.SOPInstanceUID}
        if number == 0:
            # Too long for their kind, of which pydicom warns.
            dataset.AccessionNumber = dataset.StudyID = "Jane_Doe, born in 1950, of this address"
        dataset.save_as(folder / f"{dataset.SOPInstanceUID}.dcm")
    content = next(folder.glob("*.dcm")).read_bytes()
    (folder / "Jane_Doe.dcm").write_bytes(content[: len(content) // 2])
    (folder / "Jane_Doe_2.dcm").write_bytes(content)
    assert main(["preprocess", str(folder), "--out", str(tmp_path / "s")]) == 0
    printed = capfd.readouterr()
    assert "duplicate_image" in printed.out
    assert "failed" in printed.out
    assert not [value for value in forbidden if value in printed.out + printed.err]


def next_command(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr().out
    found = re.search(r"^next: (.*)$", printed, re.MULTILINE)
    assert found is not None, printed
    return found.group(1)


def test_default_places_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MAMMO_PD_STORE", str(tmp_path / "here"))
    assert main(["split"]) == 2
    assert str(tmp_path / "here") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["preprocess", "nowhere"], "nowhere"),
        (["preprocess", ".", "--positive", "D"], "--labels"),
        (["preprocess", ".", "--labels", "none.csv"], "none.csv does not exist"),
        (["split"], "mammo-pd preprocess DICOM_DIR"),
        (["train"], "mammo-pd preprocess DICOM_DIR"),
        (["train", "--keep", "0"], r"--keep 0.0 is not in \(0, 1\]"),
        (["train", "--set", "training.epoch=3"], "training.epoch"),
        (["train", "--resume", "--lr", "1"], "--resume takes the run's own configuration"),
        (["train", "--resume"], "there is no run in runs"),
        (["evaluate"], "there is no run in runs"),
        (["evaluate", "--predictions", "none.csv"], "none.csv"),
        (["compare", "one"], "two or more"),
        (["compare", "one.csv", "two.csv"], "one.csv has no predictions yet"),
        (["preprocess", ".", "--scheduler", "tcp://127.0.0.1:9"], "holds no images"),
        (["evaluate", "run", "--predictions", "none.csv"], "not both"),
    ],
)
def test_bad_input_is_one_sentence_and_a_status(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("mammo-pd: error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert not list(tmp_path.iterdir())


def test_full_disk_says_so_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "_split", fill)
    assert main(["split"]) == 2
    assert "the disk is full; what was done is kept" in capsys.readouterr().err


def test_mismatched_torchvision_says_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mismatch(options: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(cli, "_train", mismatch)
    assert main(["train"]) == 2
    assert "pip install --force-reinstall" in capsys.readouterr().err


def test_demo_is_the_commands_themselves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mammo_pd import phantoms

    typed = []
    monkeypatch.setattr(phantoms, "write_phantoms", lambda folder, *_, **__: folder / "labels.csv")
    for name in ("_preprocess", "_split", "_train", "_evaluate"):
        monkeypatch.setattr(cli, name, lambda options, name=name: typed.append((name, options)))
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert [name for name, _ in typed] == ["_preprocess", "_split", "_train", "_evaluate"]
    assert typed[0][1].out == typed[1][1].store == typed[2][1].store == tmp_path / "store"


def commands_in(text: str) -> list[str]:
    blocks = re.findall(r"```(?:sh|bash|console)?\n(.*?)```", text, re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [
        line.split("#")[0].strip().removeprefix("$ ")
        for line in joined.splitlines()
        if line.strip().removeprefix("$ ").startswith("mammo-pd")
    ]


@pytest.mark.parametrize("file", ["README.md", "docker/README.md", "data_manifests/README.md"])
def test_commands_in_the_pages_are_understood(file: str) -> None:
    found = commands_in((ROOT / file).read_text())
    if file == "README.md":
        assert len(found) >= 4
    for command in found:
        cli._parser().parse_args(command.split()[1:])


def test_the_pages_make_targets_exist() -> None:
    targets = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    if shutil.which("make"):
        for target in targets:
            subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_next_command_of_bench_and_of_preprocess_can_be_typed(
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where settings are not the default, and on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    tiny = [
        "--res",
        "64x48",
        "--keep",
        "0.5",
        "--model",
        "vit_tiny_patch16_224",
        "--batch-size",
        "2",
    ]
    assert main(["bench", *tiny]) == 0
    command = next_command(capsys)
    assert command.startswith("mammo-pd budget --bench bench/bench.json")
    assert main(command.split()[1:]) == 0
    assert next_command(capsys).startswith("mammo-pd train --res ")
    assert main(["preprocess", str(phantoms), "--frames", "each", "--voi", "raw"]) == 0
    command = (
        next_command(capsys).split("   (")[0].replace("TABLE.csv", str(phantoms / "labels.csv"))
    )
    assert main(command.split()[1:]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--batch-size", "x"], "x is neither a number nor auto"),
        (["train", "--draw", "crop"], "'uniform', 'tissue', 'grid'"),
        (["preprocess", "x", "--voi", "y"], "'auto', 'lut'"),
    ],
)
def test_words_that_are_no_choice_are_refused_in_plain_words(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    printed = capsys.readouterr().err
    assert said.replace("'", "") in printed.replace("'", "")
    assert "<" not in printed.split("error:")[1]


def test_interrupted_training_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mammo_pd.training.train.train", interrupted)
    assert main(["train", "--runs", "elsewhere"]) == 130
    assert "mammo-pd train --runs elsewhere --resume goes on with it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", "abc"], "error: --keep abc is not understood"),
        (["--batch-size", "0"], "error: --batch-size is 0; allowed is 1 and above"),
        (["--devices", "0"], "error: --devices is 0"),
        (["--set", "training.lr=-1"], "error: the configuration: training.lr is -1"),
    ],
)
def test_error_speaks_of_the_flag_that_was_typed(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_run_can_be_named_by_its_id(tmp_path: Path) -> None:
    (tmp_path / "20261125-000000-abcd").mkdir()
    by_id = _run_folder(tmp_path, Path("20261125-000000-abcd"))
    assert by_id == tmp_path / "20261125-000000-abcd"
    assert _run_folder(tmp_path / "elsewhere", by_id) == by_id
    assert _run_folder(tmp_path, Path("none")) == Path("none")
