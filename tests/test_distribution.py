"""The wheel and the sdist hold what mammo-pd needs, and work in an empty environment."""

import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from prediction_tables import made_up

ROOT = Path(__file__).parents[1]
BACKEND = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return listed.stdout.splitlines()


def build(kind: str, source: Path, out: Path) -> Path:
    """By the backend itself: pip would fetch it anew."""
    done = subprocess.run(
        [sys.executable, "-c", BACKEND, kind, str(out)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.split()[-1]


def test_extras_are_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cluster", "docs", "gpu"} <= set(project["optional-dependencies"])


@pytest.mark.slow
def test_wheel_of_the_sdist_works_in_an_empty_environment(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists() or int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("needs a git checkout, and setuptools 77 or newer (no network is used)")
    # A copy of what is tracked: building writes beside the sources.
    source = tmp_path / "source"
    for name in tracked():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path / "dist"
    out.mkdir()
    with tarfile.open(build("build_sdist", source, out)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    for needed in ("configs/schema.json", "CITATION.cff", "docs/first-run.md", "mkdocs.yml"):
        assert (unpacked / needed).is_file(), needed
    wheel = build("build_wheel", unpacked, out)

    # Every file of the package is in it, and no other folder.
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in tracked() if name.startswith("mammo_pd/")}
    assert package <= names
    assert "mammo_pd/py.typed" in names
    assert any(name.endswith("templates/page.html") for name in names)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"mammo_pd"}

    # Empty but for pip, and what it installs is this file alone.
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "pip", "install", "--no-deps", "--no-index", "--quiet", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    (folder,) = (environment / "lib").glob("python*/site-packages")
    installed = subprocess.run(
        [environment / "bin" / "pip", "list", "--format=freeze"], capture_output=True, text=True
    ).stdout
    assert {line.split("==")[0] for line in installed.split()} <= {"mammo-pd", "pip", "setuptools"}

    # What it depends on, from here; and no mammo-pd of another place.
    (folder / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    made_up(40).to_csv(tmp_path / "own.csv", index=False)
    command = environment / "bin" / "mammo-pd"

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env={})
        assert done.returncode == 0, done.stderr
        return done.stdout

    python = str(environment / "bin" / "python")
    where = run(python, "-c", "import mammo_pd; print(mammo_pd.__file__)")
    assert Path(where.strip()).is_relative_to(environment)
    assert run(str(command), "--version").startswith("mammo-pd ")
    # The report's templates and its schema, and the configuration's.
    run(str(command), "evaluate", "--predictions", "own.csv", "--out", "report")
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
    assert (tmp_path / "report" / "metrics.schema.json").is_file()
    schema = run(python, "-c", "from mammo_pd.config import dump_schema; print(dump_schema())")
    assert schema.strip() == (ROOT / "configs" / "schema.json").read_text().strip()
