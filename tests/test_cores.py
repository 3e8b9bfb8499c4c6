import builtins
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mammo_pd
from mammo_pd.cores import available_cores, keep_threads_within_quota

QUOTA = {
    "v2": {"/sys/fs/cgroup/cpu.max": "{quota} 100000\n"},
    "v1": {
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "{quota}\n",
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    },
}


@pytest.fixture
def in_container(monkeypatch: pytest.MonkeyPatch):
    """Sets what the kernel would tell: a machine's cores, and a container's quota of them."""

    def enter(cores: int, version: str, quota: int | str) -> None:
        told = {name: text.format(quota=quota) for name, text in QUOTA[version].items()}
        exists, read = os.path.exists, builtins.open

        def there(path: object) -> bool:
            return str(path) in told if str(path).startswith("/sys/fs/cgroup") else exists(path)

        def opened(path: object, *rest: object, **named: object) -> object:
            if str(path) in told:
                return io.StringIO(told[str(path)])
            return read(path, *rest, **named)

        monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
        monkeypatch.setattr(os.path, "exists", there)
        monkeypatch.setattr(builtins, "open", opened)

    return enter


@pytest.mark.parametrize("version", QUOTA)
@pytest.mark.parametrize(("quota", "cores"), [(400_000, 4), (150_000, 2), (10_000, 1)])
def test_a_quota_limits_cores_and_threads(
    in_container, version: str, quota: int, cores: int
) -> None:
    in_container(64, version, quota)
    assert available_cores() == cores
    keep_threads_within_quota()
    assert os.environ.pop("OMP_NUM_THREADS") == str(cores)


@pytest.mark.parametrize(("version", "none"), [("v2", "max"), ("v1", -1)])
def test_without_a_quota_the_affinity_counts(in_container, version: str, none: str | int) -> None:
    in_container(64, version, none)
    assert available_cores() == 64
    keep_threads_within_quota()
    assert "OMP_NUM_THREADS" not in os.environ


def test_the_users_number_of_threads_stays(in_container, monkeypatch: pytest.MonkeyPatch) -> None:
    in_container(64, "v2", 400_000)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    keep_threads_within_quota()
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_nothing_counts_cores_by_itself() -> None:
    """The machine's cores, or the affinity's, are not those of a container with a quota."""
    package = Path(mammo_pd.__file__).parent
    assert (package / "cores.py").is_file()
    assert not [
        file
        for file in package.rglob("*.py")
        if file.name != "cores.py"
        and any(word in file.read_text() for word in ("cpu_count", "sched_getaffinity"))
    ]


def test_torch_takes_no_more_threads_than_that() -> None:
    program = (
        "import os\n"
        "os.environ.pop('OMP_NUM_THREADS', None)\n"
        "os.environ['LOKY_MAX_CPU_COUNT'] = '1'\n"
        "os.sched_getaffinity = lambda _: {0, 1, 2, 3}\n"
        "from mammo_pd.cores import keep_threads_within_quota\n"
        "keep_threads_within_quota()\n"
        "import torch\n"
        "print(torch.get_num_threads())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "1\n"
