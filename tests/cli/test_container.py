from pathlib import Path

import pytest

from mammo_pd.cli import container
from mammo_pd.cli.app import main
from mammo_pd.cli.container import is_mounted

# Of Docker, shortened; the root is an overlay, and a folder of the host has a space in its name.
MOUNTINFO = r"""
688 521 0:62 / / ro,relatime - overlay overlay rw,lowerdir=/graph/l/A:/graph/l/B
689 688 0:65 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
694 688 0:67 / /tmp rw,nosuid,nodev,relatime - tmpfs tmpfs rw
696 688 254:0 /data/store /store rw,relatime - ext4 /dev/vda rw
697 688 254:0 /data/my\040runs /my\040runs rw,relatime - ext4 /dev/vda rw
""".strip()


@pytest.mark.parametrize(
    ("folder", "kept"),
    [
        ("/store", True),
        ("/store/deeper/still", True),
        ("/my runs/one", True),
        ("/tmp/runs", True),
        ("/runs", False),
        ("/stores", False),
        ("/", False),
    ],
)
def test_a_folder_is_mounted_or_lies_in_the_container(folder: str, kept: bool) -> None:
    assert is_mounted(Path(folder), MOUNTINFO) is kept


def test_the_kernel_of_this_machine_is_understood() -> None:
    assert is_mounted(Path("/proc/self"), Path("/proc/self/mountinfo").read_text())


@pytest.mark.parametrize(
    ("words", "variable"),
    [
        (["preprocess", "nowhere"], "MAMMO_PD_STORE"),
        (["train", "--resume"], "MAMMO_PD_RUNS"),
        (["evaluate"], "MAMMO_PD_RUNS"),
    ],
)
def test_in_our_image_what_would_be_lost_is_said_before_the_work(
    words: list[str],
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTINFO.replace(" /store ", " /elsewhere "))
    monkeypatch.setattr(container, "_MOUNTS", mounts)
    monkeypatch.setenv(variable, "/lost")
    assert main(words) == 2
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setenv(container.CONTAINER_VARIABLE, "1")
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()[0]
    assert said.startswith("warning: no host folder is mounted at /lost")
    assert said.endswith("--volume FOLDER:/lost")
    monkeypatch.setenv(variable, "/elsewhere/folder")
    assert main(words) == 2
    assert "warning" not in capsys.readouterr().err
