import errno
import importlib
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from cyclopts import CycloptsError

from mammo_pd.cli.app import COMMANDS, app, main
from mammo_pd.cli.config_flags import ConfigFlags
from mammo_pd.training.model_card import CheckpointHeader

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "timm", "monai", "lightning", "sklearn", "pandas", "numpy", "mlflow", "pydicom")


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    """Counted in modules, not in seconds: 250 with Cyclopts and rich's console, torch has 1,000."""
    program = (
        "import sys\n"
        "from mammo_pd.cli.app import main\n"
        f"status = main({words!r})\n"
        f"heavy = [name for name in {(*HEAVY, 'pydantic', 'yaml')!r} if name in sys.modules]\n"
        "print(len(sys.modules), heavy, file=sys.stderr)\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: mammo-pd")
    count, _, heavy = done.stderr.strip().partition(" ")
    assert heavy == "[]"
    assert int(count) < 275


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_the_next(command: str) -> None:
    source = Path(importlib.import_module(f"mammo_pd.cli.{command}").__file__ or "").read_text()
    assert "next: " in source
    # Which is no command.
    assert "next: open" not in source


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option_within_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.isascii()  # neither boxes nor colours, which garble logs
    # Lines of the docstring as they are: a command that wraps cannot be copied.
    assert not re.findall(r" $", printed, re.MULTILINE)
    assert "[default: ()]" not in printed and "None" not in printed
    function = getattr(importlib.import_module(f"mammo_pd.cli.{command}"), command)
    parameters = inspect.signature(function).parameters
    names = {name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
    if "settings" in names:
        names |= {field.name for field in fields(ConfigFlags)}
    if command == "pretrain":
        names -= {"target"}  # which learns from no label
    for name in names - {"settings", "assignments"}:
        assert re.search(rf"^  --{name.replace('_', '-')}\b", printed, re.MULTILINE), name
    for line in re.findall(r"^  --?\w.*\n?.*", printed, re.MULTILINE):
        assert re.search(r"[a-z]\w+ \w+ \w+", line.split("  ", 2)[-1]), f"not explained: {line}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_part_of_a_whole_number_is_refused(command: str) -> None:
    """Of every option that takes a whole number: cyclopts by itself rounds it."""
    function = getattr(importlib.import_module(f"mammo_pd.cli.{command}"), command)
    hints = get_type_hints(function)
    hints |= get_type_hints(hints.pop("settings", object))
    options = [name for name, hint in hints.items() if int in (hint, *get_args(hint))]
    assert options or command not in ("train", "pretrain", "cv", "split", "preprocess", "bench")
    needed = [
        "x"
        for one in inspect.signature(function).parameters.values()
        if one.kind is one.POSITIONAL_ONLY and one.default is one.empty
    ]
    for name in {*options} - {"return"}:
        with pytest.raises(CycloptsError, match=r"1\.5 is (not a whole number|neither a number)"):
            app.parse_args(
                [command, *needed, f"--{name.replace('_', '-')}", "1.5"],
                exit_on_error=False,
                print_error=False,
            )


@pytest.mark.parametrize("command", COMMANDS)
def test_of_every_option_that_takes_a_list_a_second_word_is_told_how_to_write_it(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = [
        "x"
        for one in inspect.signature(
            getattr(importlib.import_module(f"mammo_pd.cli.{command}"), command)
        ).parameters.values()
        if one.kind is one.POSITIONAL_ONLY and one.default is one.empty
    ]
    seen = set()
    for argument in app[command].assemble_argument_collection():
        name, text = argument.names[0] if argument.names else "", str(argument.hint)
        if not name.startswith("--"):
            continue
        given = [command, *needed, name, "1", "2", "3"]
        with_commas = "," in (argument.parameter.metavar or "")
        if with_commas or ("list[" in text and argument.parameter.consume_multiple is None):
            assert main(given) == 2
            told = capsys.readouterr().err
            if "unexpected" in told:
                how = f"commas: {name} 1,2,3;" if with_commas else f"repeat {name} before each"
                assert how in told
                seen.add(name)
    expected = {"cv": {"--seeds"}, "preprocess": {"--carry", "--levels", "--column"}}
    assert expected.get(command, set()) <= seen


def test_help_lists_the_commands_in_the_order_of_a_project(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^  (\w+)  +[A-Z]\w+", printed, re.MULTILINE) == list(COMMANDS)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"mammo-pd \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_module_is_the_command_and_gives_its_status(tmp_path: Path) -> None:
    """As torchrun starts it."""
    command = [sys.executable, "-m", "mammo_pd", "split", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("mammo-pd: error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"no command; choose one of inspect, preprocess, split, .* --help"),
        (["trian"], r'Unknown command "trian"\. Did you mean "train"'),
        (["split", "store", "more"], r"unexpected more; see mammo-pd split --help"),
        (["train", "--batchsize", "3"], r"Unknown option: --batchsize\. Did you mean --batch-size"),
        (["cv", "--runs", "runs"], r"Unknown option: --runs\. --runs belongs to mammo-pd pre"),
        (["train", "--epochs", "x"], r"--epochs: x is not a whole number"),
        (["train", "--epochs"], r"--epochs requires an argument"),
        (["train", "--resume", "one", "two"], r"--resume accepts at most 1"),
        (["split", "--fractions", "0.7", "0.1"], r"--fractions requires 3"),
        (["split", "--fractions", "0.7", "0.1", "0.2", "--folds", "5"], r"--fractions and --folds"),
        (["split", "--val", "0.1"], r"--val needs --folds"),
        (["bench", "--res"], r"--res requires at least 1"),
        (["preprocess"], r"DICOM_DIR requires an argument"),
        (["preprocess", "nowhere"], "nowhere"),
        (["preprocess", ".", "--positive", "D"], "--labels"),
        (["preprocess", ".", "--labels", "none.csv"], "none.csv does not exist"),
        (["preprocess", ".", "--workers", "2", "--scheduler", "x"], "--workers and --scheduler"),
        (["preprocess", ".", "--scheduler", "tcp://127.0.0.1:9"], "holds no images"),
        (["preprocess", ".", "--key", "none"], "the key none does not exist"),
        (["split"], "mammo-pd preprocess DICOM_DIR"),
        (["train"], "mammo-pd preprocess DICOM_DIR"),
        (["train", "--keep", "0"], r"--keep 0.0 is not in \(0, 1\]"),
        (["train", "--set", "training.epoch=3"], "--set training.epoch: there is no key epoch"),
        (["train", "--config", "none.yaml"], "none.yaml cannot be read"),
        (["train", "--resume", "--lr", "1"], "--resume uses the run's own configuration"),
        (["train", "--resume"], "there is no run in runs"),
        (["train", "--resume", "none"], "none is not a run"),
        (["cv"], "mammo-pd preprocess DICOM_DIR"),
        (["cv", "--keep", "0"], r"--keep 0.0 is not in \(0, 1\]"),
        (["cv", "--seeds", "x"], "--seeds x is not understood; give a count"),
        (["cv", "--seeds", "0", "1"], "unexpected 1; write a list with commas: --seeds 0,1; see"),
        (["cv", "--seeds", "1", "1"], "commas: --seeds 1,1; see"),
        (["cv", "--seeds", "1,1"], "--seeds 1,1 names a seed twice"),
        (["cv", "--parallel", "0"], "--parallel 0 runs nothing"),
        (["cv", "--parallel", "2", "--batch-size", "auto"], "--batch-size auto cannot measure"),
        (["cv", "--set", "data.fold=1"], "remove data.fold 1"),
        (["cv-run", "none", "0", "0"], "none is not a cross-validation"),
        (["evaluate"], "there is no run in runs"),
        (["evaluate", "--predictions", "none.csv"], "none.csv"),
        (["evaluate", "run", "--predictions", "none.csv"], "not both"),
        (["predict", "run"], r"DICOM_DIR requires an argument"),
        (["predict", "none.safetensors", "nowhere"], "there is no checkpoint at none.safe"),
        (["export", "none.safetensors"], "--onnx FILE, --bundle DIR"),
        (["compare", "one"], "two or more"),
        (["compare", "one.csv", "two.csv"], "no run or file of predictions one.csv"),
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
    printed = capsys.readouterr()
    assert printed.err.startswith("mammo-pd: error: ")
    assert printed.err.count("\n") == 1
    assert re.search(message, printed.err)
    assert not printed.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("name", ["Gr\udcf6\udcdfe", "−"])
def test_a_folder_whose_name_the_terminal_cannot_print_is_read(
    encoding: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an archive whose names are Latin-1, where the terminal is strict about UTF-8."""
    file = tmp_path / name / "model.safetensors"
    file.parent.mkdir()
    file.touch()
    monkeypatch.setattr(CheckpointHeader, "read", lambda _: CheckpointHeader(None, {}))
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding, errors="strict"))
    assert main(["show", str(file)]) == 0
    assert b"next: mammo-pd embed" in printed.getvalue()


@pytest.mark.parametrize("control", ["\x1b]0;owned\x07", "\x1b[2K", "\r", "\x9b2K", "\n"])
def test_no_error_steers_the_terminal(
    control: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an error names may come from others: keys of their settings, their folders."""
    settings = tmp_path / "a.yaml"
    settings.write_text(json.dumps({f"x{control}y": 1}))
    for words in (["train", "--config", str(settings)], ["show", f"{tmp_path}/no{control}run"]):
        assert main(words) == 2
        told = capsys.readouterr().err
        assert told.startswith("mammo-pd: error: ")
        assert told.endswith("\n") and told[:-1].isprintable()


@pytest.mark.parametrize(
    ("words", "choices"),
    [
        (["preprocess", "x", "--voi", "y"], ("auto", "lut", "window", "raw")),
        (["preprocess", "x", "--frames", "y"], ("exclude", "middle", "mip", "each")),
        (["evaluate", "--checkpoint", "first"], ("model", "last")),
        (["evaluate", "--aggregation", "median"], ("mean", "max", "noisy_or")),
        (["train", "--batch-size", "x"], ("x is neither a number nor auto",)),
    ],
)
def test_value_that_is_no_choice_is_refused_with_the_choices(
    words: list[str], choices: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert words[-2] in printed
    assert all(choice in printed for choice in choices)


def test_full_disk_says_so_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mammo_pd.data.store.open_store", fill)
    assert main(["split"]) == 2
    error = capsys.readouterr().err
    assert "the disk is full; finished work is kept" in error
    assert error.count("\n") == 1


def test_file_without_permission_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied", "store/store.json")

    monkeypatch.setattr("mammo_pd.data.store.open_store", refuse)
    assert main(["split"]) == 2
    assert "store/store.json cannot be read or written (Perm" in capsys.readouterr().err


def test_place_on_a_read_only_file_system_is_told_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "/store/splits/default.json")

    monkeypatch.setattr("mammo_pd.data.store.open_store", refuse)
    assert main(["split"]) == 2
    told = capsys.readouterr().err
    assert "/store/splits/default.json cannot be written (Read-only file system)" in told
    assert "--volume" in told and "--tmpfs /tmp:exec" in told


def test_file_among_the_images_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be called by a woman's name."""

    def refuse(folder: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder.resolve() / "Doe^Jane" / "1.dcm"))

    monkeypatch.setattr("mammo_pd.ingest.preprocess.preprocess", refuse)
    monkeypatch.setattr("mammo_pd.ingest.survey.survey", refuse)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    for folder in (tmp_path, link):
        for words in (["preprocess"], ["inspect"]):
            assert main([*words, str(folder)]) == 2
            error = capsys.readouterr().err
            assert f"a file or folder in {folder} cannot be read" in error
            assert "Jane" not in error


def test_mismatched_torchvision_says_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mismatch(_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("mammo_pd.data.store.open_store", mismatch)
    assert main(["split"]) == 2
    assert "pip install --force-reinstall" in capsys.readouterr().err


def test_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("mammo_pd.data.store.open_store", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["split"])


def test_interrupt_is_status_130_and_says_how_to_continue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mammo_pd.data.store.open_store", interrupt)
    assert main(["split"]) == 130
    assert "the same command continues from there" in capsys.readouterr().err


def test_name_that_is_not_utf_8_is_told_with_its_remedy(
    phantom_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name of bytes, which the libraries for Parquet and for MLflow's record cannot take."""
    odd = os.fsdecode(bytes(tmp_path) + b"/caf\xe9")
    shutil.copytree(phantom_store, f"{odd}/store")
    small = ["--res", "64x48", "--model", "vit_tiny_patch16_224", "--epochs", "1"]
    for words in (
        ["train", "--store", f"{odd}/store", "--runs", str(tmp_path / "runs"), *small],
        ["train", "--store", str(phantom_store), "--runs", f"{odd}/runs", *small],
        ["split", "--store", f"{odd}/store", "--name", "other"],
    ):
        assert main(words) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith("mammo-pd: error: ") and "caf" in told
        assert "is not text in UTF-8" in told and "rename it, or name another place" in told
