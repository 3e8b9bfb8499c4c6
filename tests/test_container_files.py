"""What the container image is built from agrees with the package, and fetches nothing unnamed."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from mlflow.environment_variables import MLFLOW_SERVER_ENABLE_JOB_EXECUTION
from packaging.requirements import Requirement

from mammo_pd.cli import container

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
LOCKS = ("torch.txt", "requirements.txt", "test.txt")


def requirements(lock: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package in a lock."""
    text = (ROOT / "docker" / lock).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        words = line.split()
        name, _, version = words[0].partition("==")
        assert version, f"{line[:60]}: not one version"
        found[name] = version, [word for word in words[1:] if word.startswith("--hash=sha256:")]
        assert len(words) == 1 + len(found[name][1]), f"{line[:60]}: more than hashes"
    return found


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_of_a_lock_has_hashes_and_the_version_that_is_tested(lock: str) -> None:
    tested = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    tested = {normalized(name): version for name, version in tested.items()}
    found = requirements(lock)
    assert len(found) > 20
    for name, (version, hashes) in found.items():
        assert hashes, f"{name} has no hash"
        assert tested.get(name, version) == version, f"{name}: run make lock"


def test_the_locks_agree_and_hold_all_that_the_package_needs() -> None:
    torch, others, test = map(requirements, LOCKS)
    for name in {*torch} & {*others} | {*torch} & {*test} | {*others} & {*test}:
        versions = {lock[name][0] for lock in (torch, others, test) if name in lock}
        assert len(versions) == 1, name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # Where the image runs nothing can be installed.
    extras = {*project["optional-dependencies"]} - {"dev", "docs", "gpu"}
    needed = [
        *project["dependencies"],
        *(one for extra in extras for one in project["optional-dependencies"][extra]),
    ]
    for requirement in map(Requirement, needed):
        name = normalized(requirement.name)
        assert name in torch or name in others, f"{name}: run make lock"
        version, _ = torch.get(name) or others[name]
        assert requirement.specifier.contains(version), f"{requirement}, not {version}: make lock"
    # Another PyTorch brings other CUDA libraries, and no two of them.
    assert not [name for name in others if re.match(r"(torch|torchvision|triton|cuda-.*)$", name)]
    assert [name for name in others if name.startswith("nvidia-")] == ["nvidia-ml-py"]


def test_the_image_is_tested_for_the_warning_that_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = (ROOT / "docker" / "test_image.sh").read_text()
    wanted = re.search(r'\[\[ \$said == "(.+)"\* \]\]', script)[1]
    (mounts := tmp_path / "mountinfo").write_text("")
    monkeypatch.setattr(container, "_MOUNTS", mounts)
    monkeypatch.setenv(container.CONTAINER_VARIABLE, "1")
    container.warn_unless_mounted(Path("/runs"))
    assert capsys.readouterr().err.startswith(wanted)


def test_no_file_of_the_image_names_a_registry() -> None:
    for file in (ROOT / "docker").iterdir():
        text = file.read_text()
        assert not re.search(r"^\s*--?(extra-)?(index|find)", text, re.MULTILINE), file.name
        if file.suffix != ".md":
            assert "https://" not in text, file.name


def test_the_base_is_one_image_and_the_frontend_the_engines_own() -> None:
    assert not re.search(r"^#\s*syntax\s*=", DOCKERFILE, re.MULTILINE)
    base = re.search(r"^ARG BASE_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)[1]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${BASE_IMAGE}", "runtime"}


def test_what_the_builder_is_given_is_all_that_the_dockerfile_copies() -> None:
    given = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copies = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    copied = {name.split("/")[0] for names in copies for name in names.split()}
    copied -= {".", "${TORCH_CONSTRAINTS}"}
    # Podman 4 takes a layer out of its cache though what it mounts has changed.
    assert "type=bind" not in DOCKERFILE
    assert copied <= given
    assert {"pyproject.toml", "mammo_pd", "configs", "docker"} <= copied
    # In the image's own tests the package is the one that is installed.
    assert all((ROOT / name).exists() for name in given - {"mammo_pd"})


def test_every_service_is_hardened_and_the_page_of_runs_is_on_this_machine_alone() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    assert set(services) == {"mammo-pd", "cpu", "mlflow"}
    for service in services.values():
        assert service["read_only"] and service["init"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["tmpfs"].startswith("/tmp:exec")
    for name in ("mammo-pd", "cpu"):
        assert services[name]["network_mode"] == "${MAMMO_PD_NETWORK:-none}"
        assert [volume.get("read_only", False) for volume in services[name]["volumes"]] == [
            True,
            False,
            False,
        ]
    # Else it does not stop.
    assert services["mlflow"]["environment"] == {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    assert MLFLOW_SERVER_ENABLE_JOB_EXECUTION.name in services["mlflow"]["environment"]
    assert services["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
    assert "--allowed-hosts localhost:5000,127.0.0.1:5000" in services["mlflow"]["command"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_scripts_are_valid_shell() -> None:
    for file in [*(ROOT / "docker").glob("*.sh"), ROOT / "docker" / "train.sbatch"]:
        subprocess.run(["bash", "-n", file], check=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "there is no image mammo-pd.sif; name it in MAMMO_PD_SIF."),
        ({"MAMMO_PD_SIF": "/dev/null"}, "MAMMO_PD_STORE: names the folder for the store"),
        (
            {"MAMMO_PD_SIF": "/dev/null", "MAMMO_PD_STORE": "/none"},
            "/none is no folder; make it, or name another in MAMMO_PD_STORE.",
        ),
    ],
)
def test_apptainer_script_says_what_is_missing(
    given: dict[str, str], message: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["bash", ROOT / "docker" / "apptainer.sh", "--version"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", **given},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert message in done.stderr
