"""What the pages tell a reader to type is understood, runs, or says why it is not run here."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import yaml
from documented_commands import (
    PAGES,
    ROOT,
    RUN_IN_ORDER,
    Block,
    blocks,
    commands_of,
    our_words,
    shell_lines,
    words_of,
)
from prediction_tables import made_up

from mammo_pd.backbones.build import describe_backbone
from mammo_pd.cli.app import app, main
from mammo_pd.cli.config_flags import ConfigFlags
from mammo_pd.config import resolve_img_size
from mammo_pd.data.sources import SOURCES

PIPELINES = sorted((ROOT / "pipelines").glob("*.sh"))
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
SHELL = ("sh", "bash", "console")
# The fewest commands that each is known to have; others have one or none.
LEAST = {
    "README.md": 3,
    "docs/first-run.md": 3,
    "docs/own-archive.md": 8,
    "docs/training.md": 8,
    "docs/evaluation.md": 6,
    "docs/clusters.md": 4,
    "docs/recipes.md": 6,
    "docker/README.md": 8,
}


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@cache
def patch_size_of(model: str) -> int:
    return describe_backbone(model).patch_size


def resolve(words: list[str]) -> None:
    """Raise where the command line, a configuration, a data set or a file would be refused."""
    command, bound, _ = app.parse_args(words)
    given = bound.arguments
    for value in given.values():
        if isinstance(value, ConfigFlags):
            if value.config is not None:
                # The image has the recipes elsewhere.
                file = ROOT / str(value.config).replace("/opt/mammo-pd/", "")
                if not file.is_file() and file.name in ("NAME.yaml", "study.yaml"):
                    return
                value = replace(value, config=file)
            config = value.load({"--seed": given.get("seed"), "--fold": given.get("fold")})
            resolve_img_size(config.data.res, patch_size_of(config.model.name), (3328, 2560))
    if command.__name__ == "preprocess" and given.get("source") not in (None, "NAME"):
        source = SOURCES[given["source"]]
        assert given.get("definition") in (None, "NAME", *source.definitions)


@pytest.mark.parametrize("file", [*PAGES, *RECIPES], ids=name_of)
def test_every_command_is_understood(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to the recipe that it names, its model and its input size."""
    monkeypatch.chdir(ROOT)
    count = 0
    for line in commands_of(file):
        for words in words_of(line):
            ours = our_words(words)
            if ours:
                try:
                    resolve(ours)
                except Exception as error:
                    raise AssertionError(f"{line}: {error}") from error
                count += 1
            elif words[0] == "make":
                targets = [word for word in words[1:] if "=" not in word]
                assert targets and {*targets} <= make_targets(), line
            elif words[0] in ("python", "python3") and words[-1:] != ["python"]:
                script = next((word for word in words[1:] if word.endswith(".py")), None)
                assert script is None or (ROOT / script).is_file(), line
            elif words[0].startswith(("pipelines/", "docker/", "benchmarks/")):
                assert (ROOT / words[0]).is_file(), line
    assert count >= LEAST.get(name_of(file), 0 if file.suffix == ".md" else 1)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_a_wrong_command_is_seen() -> None:
    """Of each kind that the test above is there to find."""
    for line in (
        "mammo-pd trian --res 1024",
        "mammo-pd train --ress 1024",
        "mammo-pd train --config configs/none.yaml",
        "mammo-pd train --res 1000",
        "docker run --rm mammo-pd train --keep 0",
        "torchrun --nproc-per-node 2 -m mammo_pd train --model no_such_vit",
        "sbatch docker/train.sbatch --epochs many",
        "sbatch --wrap 'docker/apptainer.sh preprocess'",
        "MAMMO_PD_STORE=x mammo-pd preprocess DIR --labels t.csv --source rsna --definition risk",
    ):
        (words,) = words_of(line)
        ours = our_words(words)
        assert ours, line
        with pytest.raises(Exception, match=r"\w"):
            resolve(ours)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        assert block.language, f"{block}: its language is missing"
        if block.language in (*SHELL, "python") and block.why_not is None:
            assert name_of(page) in RUN_IN_ORDER, (
                f"{block} is not run by any test: add the page to RUN_IN_ORDER, or write "
                "<!-- not run: WHY --> above it"
            )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        address, _, anchor = target.partition("#")
        if "://" in address or address.startswith("mailto:"):
            continue
        file = (page.parent / address).resolve() if address else page
        assert file.exists(), f"{target} does not exist"
        if anchor and file.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in known, f"{target}: no such heading"


def test_figures_of_the_readme_are_those_of_the_pages() -> None:
    def read(name: str) -> str:
        return (ROOT / name).read_text(encoding="utf-8")

    readme = read("README.md")
    for page, pattern, claim in (
        ("docs/models.md", r"## Works: (\d+)", "{} timm models"),
        ("docs/privacy.md", r"plants marks in (\d+) places", "{} planted marks"),
        ("docs/grey-scale.md", r"on the (\d+) files of our corpus", "on {} real files"),
        (
            "benchmarks/results/train_step_h200_2026-11-25.md",
            r"over timm patch_drop_rate eager, batch 128 and 256 \| ([\d.]+)x",
            "{} times the images/s of timm's `patch_drop_rate`",
        ),
        (
            "benchmarks/results/train_step_h200_2026-11-25.md",
            r"the same over timm keep 1 eager, batch 128 over 32 \| ([\d.]+?)0?x",
            "{} times keep 1",
        ),
    ):
        found = re.search(pattern, read(page))
        assert found is not None, f"{page} has no {pattern}"
        assert claim.format(found[1]) in readme, f"{page} says {found[1]}"


def test_every_page_is_in_the_navigation() -> None:
    """Which MkDocs checks, too, where it is installed."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": ([\w-]+\.md)$", text, re.MULTILINE))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= named
    assert yaml.safe_load(text)["theme"]["font"] is False


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.name)
def test_dry_run_of_a_pipeline_types_commands_that_are_understood(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bash runs all of it; programs that would do something write down their words instead."""
    head = file.read_text().split("set -euo")[0]
    for word in (f"pipelines/{file.name}", "Hardware:", "Hours:", "Expect:"):
        assert word in head
    programs, log = tmp_path / "bin", tmp_path / "typed"
    programs.mkdir()
    for name in ("mammo-pd", "python", "apptainer", "srun", "dask", "scontrol"):
        program = programs / name
        answer = "echo node1" if name == "scontrol" else ""
        program.write_text(
            # In one piece: some run in the background.
            f'#!/bin/bash\ntyped=$(printf "%q " {name} "$@")\necho "$typed" >> "$LOG"\n{answer}\n'
        )
        program.chmod(0o755)
    # Folders, weights, an image: what it is given exists, and no more is asked of it.
    given = ("mammo-pd.sif", "second", "third")
    for name in given:
        (tmp_path / name).mkdir()
    environment = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "LOG": str(log),
        "TMPDIR": str(tmp_path),
        **{"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "1"},
        **{"SLURM_CPUS_PER_TASK": "2", "SLURM_SUBMIT_DIR": str(ROOT)},
    }
    done = subprocess.run(
        ["bash", file, *given, "out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(ROOT)
    commands = []
    for line in log.read_text().splitlines():
        ours = our_words(shlex.split(line))
        if ours:
            resolve(ours)
            commands.append(ours[0])
    # From the images to a report.
    assert commands[:2] == ["preprocess", "split"]
    assert commands[-1] in ("evaluate", "cv", "compare")
    assert {"train", "cv"} & {*commands}


def test_citation_is_what_its_schema_asks_for() -> None:
    """The keys that Citation File Format 1.2.0 requires, and those that it knows."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert {"type", "title", "authors", "year"} <= set(citation["preferred-citation"])


# The slow part: everything that is not marked is typed, on phantoms.

# A page's sizes are those of real images; what is typed is otherwise as it stands there.
_SMALLER = {"--res": "64x48"}
_TINY = ["--model", "test_vit", "--epochs", "1", "--batch-size", "8"]


@pytest.mark.slow
def test_every_unmarked_block_runs(
    tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path, phantoms)
    monkeypatch.chdir(tmp_path)
    run = 0
    for page in RUN_IN_ORDER:
        for block in blocks(ROOT / page):
            if block.why_not is not None:
                continue
            if block.language in SHELL:
                run += run_shell(block)
            elif block.language == "python":
                exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
                run += 1
    assert run >= 20
    card = model_card(next((tmp_path / "runs").glob("*/report")).parent)
    # The page of the phantoms' run is this template's, filled anew after it changed.
    page = (ROOT / "docs" / "model-card.md").read_text(encoding="utf-8")
    assert (
        re.findall(r"^#+ .*$", card, re.MULTILINE)[1:]
        == re.findall(r"^#+ .*$", page, re.MULTILINE)[1:]
    )
    assert "| initial weights | random |" in card


def model_card(run: Path) -> str:
    path = ROOT / "examples" / "model_card.py"
    done = subprocess.run(
        [sys.executable, path, run, "--title", "a trial"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lay_out(folder: Path, phantoms: Path) -> None:
    """What the pages take for granted: an archive, its table, a demo, tables of predictions."""
    shutil.copytree(phantoms, folder / "DICOM_DIR")
    table = pd.read_csv(phantoms / "labels.csv").assign(hormone="none")
    table["patient_id"] = table["patient_id"].str.replace("PHANTOM", "P")
    table.to_csv(folder / "labels.csv", index=False)
    (folder / "demo").mkdir()
    (folder / "demo" / "dicom").symlink_to(phantoms)
    (folder / "demo" / "runs").symlink_to(folder / "runs")
    for seed, name in enumerate(("own", "site_b", "site_c")):
        made_up(60, seed=seed).to_csv(folder / f"{name}.csv", index=False)
    other = made_up(60, seed=0)
    other.assign(score=1 - other["score"]).to_csv(folder / "other_model.csv", index=False)
    (folder / "configs").symlink_to(ROOT / "configs")


def run_shell(block: Block) -> int:
    count = 0
    for line in shell_lines(block.text):
        for words in words_of(line):
            ours = our_words(words)
            assert ours, f"{block}: only mammo-pd is run here, not {words[0]}; mark the block"
            if ours[0] in ("train", "cv"):
                ours = [*smaller(ours), *_TINY]
            if ours[0] == "cv":
                # It starts processes of its own program, which is not pytest.
                program = [sys.executable, "-m", "mammo_pd"]
                assert subprocess.run([*program, *ours]).returncode == 0, block
            else:
                assert main(ours) == 0, f"{block}: {shlex.join(ours)}"
            count += 1
    return count


def smaller(words: list[str]) -> list[str]:
    return [_SMALLER.get(flag, word) for flag, word in pairwise(["", *words])]


@pytest.mark.slow
def test_site_is_built_and_asks_nobody_for_anything(tmp_path: Path) -> None:
    """With the mkdocs of this environment, or of the one that MAMMO_PD_MKDOCS names."""
    named = os.environ.get("MAMMO_PD_MKDOCS", Path(sys.executable).with_name("mkdocs"))
    if not Path(named).is_file():
        pytest.skip("mkdocs is not installed (make docs, or MAMMO_PD_MKDOCS)")
    from browser import browser, missing

    site = tmp_path / "site"
    built = subprocess.run(
        [named, "build", "--strict", "--site-dir", site], cwd=ROOT, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 20
    fetched = r"<(?:script|img|iframe|source)[^>]+src=[\"']?(?:\w+:)?//|<link[^>]+stylesheet[^>]+//"
    for page in pages:
        assert not re.search(fetched, page.read_text(encoding="utf-8")), page.name
    if missing() is not None:
        pytest.skip(f"{missing()}, so no page was opened")
    with browser(tmp_path / "profile") as window:
        window.open(site / "index.html")
        window.requested()  # those of the browser's own first page
        for page in pages:
            if page.name != "404.html":
                window.open(page)
        foreign = [one for one in window.requested() if not one.startswith(("file:", "data:"))]
    assert not foreign
