"""Each check of the doctor, on this machine and on machines that lack something."""

import base64
import errno
import fcntl
import json
import tempfile
import tomllib
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import numpy as np
import psutil
import pytest
import torch
from pydicom import uid

from mammo_pd.cli.app import main
from mammo_pd.doctor import codecs, machine, storage
from mammo_pd.doctor.finding import Finding, State, run_check
from mammo_pd.imaging.decode import LOSSY_SYNTAXES
from mammo_pd.imaging.decoders import imagecodecs_plugin
from mammo_pd.ingest import workers
from mammo_pd.terms import Reason

ROOT = Path(__file__).parents[2]


def states(findings: Iterator[Finding]) -> set[State]:
    found = list(findings)
    # A remedy for each that needs one, and for no other.
    assert all(bool(one.remedy) == (one.state != State.OK) for one in found)
    return {one.state for one in found}


def test_every_transfer_syntax_that_decodes_is_tried() -> None:
    found = list(codecs.check_codecs())
    assert {one.state for one in found} == {State.OK}
    tried = {one.name.rpartition("(")[2].rstrip(")") for one in found}
    assert tried == {
        *map(str, codecs._NATIVE),
        *imagecodecs_plugin.DECODER_DEPENDENCIES,
    } and len(LOSSY_SYNTAXES & tried) == len(LOSSY_SYNTAXES)


def test_damaged_or_wrong_codestream_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.loads(codecs.CODESTREAMS.read_text())
    frame = base64.b64decode(text[uid.JPEG2000Lossless])
    cut = base64.b64encode(frame[: len(frame) // 2]).decode()
    file = tmp_path / "streams.json"
    monkeypatch.setattr(codecs, "CODESTREAMS", file)
    monkeypatch.setattr(codecs, "_NATIVE", ())
    file.write_text(json.dumps({uid.JPEG2000Lossless: cut}))
    assert states(codecs.check_codecs()) == {State.FAILS}
    # A decoder that gives other values, as a lossless one must not.
    file.write_text(json.dumps({uid.JPEG2000Lossless: text[uid.JPEG2000Lossless]}))
    assert states(codecs.check_codecs()) == {State.OK}
    other = codecs.drawn_image() + np.uint16(1)
    monkeypatch.setattr(codecs, "drawn_image", lambda: other)
    assert states(codecs.check_codecs()) == {State.FAILS}


def test_slower_decoder_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mammo_pd.imaging.decode.DECODERS", ("pylibjpeg",))
    monkeypatch.setattr(codecs, "_NATIVE", ())
    found = {one.name: one.state for one in codecs.check_codecs()}
    assert State.WARNING in found.values()
    # What nothing else decodes fails.
    assert all(state == State.FAILS for name, state in found.items() if "JPEG XL" in name)


Card = namedtuple("Card", "name total_memory major minor")


@pytest.mark.parametrize(
    ("driver", "built", "available", "state"),
    [
        (None, None, False, State.OK),
        (("570.1", (12, 8), ["H100"]), None, False, State.FAILS),  # torch for the CPU
        (("535.1", (12, 2), ["H100"]), "13.0", False, State.FAILS),  # an old driver
        (("570.1", (12, 8), ["H100"]), "12.6", False, State.FAILS),  # hidden by the container
    ],
)
def test_driver_and_torch_against_each_other(
    driver: object,
    built: str | None,
    available: bool,
    state: State,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "_driver", lambda: driver)
    monkeypatch.setattr(machine, "_has_nvidia_device", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert states(machine.check_gpu()) == {state}


def test_device_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_driver", lambda: None)
    monkeypatch.setattr(machine, "_has_nvidia_device", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert states(machine.check_gpu()) == {State.FAILS}


def test_card_that_torch_has_no_kernels_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card("K80", 2**34, 3, 7))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])

    def ones(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch, "ones", ones)
    found = machine._check_card(0)
    assert found.state == State.FAILS
    assert "sm_90" in found.remedy


def test_package_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(machine.check_packages()) == {State.OK}
    true = machine.metadata.version
    monkeypatch.setattr(
        machine.metadata, "version", lambda name: "2.4.0" if name == "pydicom" else true(name)
    )
    (found,) = machine.check_packages()
    assert found.state == State.FAILS
    assert "pydicom>=" in found.remedy


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(storage.check_places(("store", tmp_path / "not" / "yet"))) == {State.OK}
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert states(storage.check_places(("store", tmp_path / "file" / "store"))) == {State.FAILS}

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refused)
        (found,) = storage.check_places(("store", tmp_path))
        assert (found.state, "locks" in found.detail) == (State.WARNING, True)
    with monkeypatch.context() as patch:
        patch.setattr(storage.shutil, "disk_usage", lambda _: namedtuple("U", "free")(10))
        assert states(storage.check_places(("store", tmp_path))) == {State.WARNING}


def no_folder() -> str:
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")


def test_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert states(storage.check_temporary()) == {State.OK}
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    there, cache = storage.check_temporary()
    assert (there.state, cache.state) == (State.OK, State.FAILS)

    # As in a container on a read-only root to which nobody gave a /tmp.
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryDirectory", refused)
        there, _ = storage.check_temporary()
    assert (there.state, "--tmpfs /tmp:exec" in there.remedy) == (State.FAILS, True)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", no_folder)
    found, _ = storage.check_temporary()
    assert (found.state, "--tmpfs /tmp:exec" in found.remedy) == (State.FAILS, True)


def test_doctor_without_any_folder_for_temporary_files_ends_its_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", no_folder)
    monkeypatch.chdir(tmp_path)
    # Each of these takes seconds, and is tried elsewhere.
    for name in ("check_codecs", "check_torch", "check_gpu", "check_workers", "check_mlflow"):
        module = next(one for one in (codecs, machine, storage) if hasattr(one, name))
        monkeypatch.setattr(module, name, lambda *_: iter(()))
    assert main(["doctor"]) == 2
    printed = capsys.readouterr().out
    assert "fails    temporary files: no folder takes any" in printed
    assert "shared memory" in printed


def test_workers_of_which_none_lives_fail_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of other commands sends one to this command, which must not do so itself."""

    def break_off(*_: object) -> NoReturn:
        raise BrokenProcessPool

    monkeypatch.setattr(workers, "_start_pool", lambda _: ProcessPoolExecutor(1))
    monkeypatch.setattr(ProcessPoolExecutor, "submit", break_off)
    (finding,) = storage.check_workers()
    assert (finding.name, finding.state) == ("workers", State.FAILS)
    assert "die before they read any file" in finding.detail
    assert "free memory" in finding.remedy
    assert "doctor" not in finding.detail + finding.remedy


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.EROFS, "Read-only file system", "/tmp/cache"), "fix what is said about fol"),
        (OSError("libtorch_cuda.so: cannot open shared object file"), "install both from one ind"),
        (RuntimeError("operator torchvision::nms does not exist"), "install both from one index"),
    ],
)
def test_torchvision_that_cannot_make_its_caches_is_not_called_a_misfit(
    error: Exception, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("torchvision.ops.nms", refuse)
    (found,) = run_check("torch and torchvision", machine.check_torch)
    assert found.state == State.FAILS
    assert found.remedy.startswith(remedy)


GROUP = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("limits", "free", "total"),
    [
        # By the path of the group below the base: its limit in GB, what is used, what of it is
        # cached. In a container the base is the group itself; a job's limit is on a group above.
        ({"": (3, 2, 0.5)}, 1.5, 3),
        ({"": (3, 4, 0.5)}, 0, 3),
        ({"jobs/7": (4, 1, 0)}, 3, 4),
        ({"jobs": (5, 1, 0), "jobs/7": (None, 1, 0)}, 4, 5),
        ({"jobs": (5, 4.5, 0), "jobs/7": (4, 1, 0)}, 0.5, 4),
        ({"jobs": (50, 1, 0)}, 8, 16),
        ({"jobs/8": (1, 1, 0)}, 8, 16),
        ({}, 8, 16),
    ],
)
def test_memory_is_that_of_the_container_or_job(
    version: int,
    limits: dict[str, tuple[float | None, float, float]],
    free: float,
    total: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tmp_path / "groups" / ("memory" if version == 1 else "")
    for path, (limit, used, cached) in limits.items():
        (folder := base / path).mkdir(parents=True, exist_ok=True)
        # As the two say that there is none.
        none = "9223372036854771712" if version == 1 else "max"
        (folder / GROUP[version][0]).write_text(f"{limit * 1e9:.0f}" if limit else none)
        (folder / GROUP[version][1]).write_text(f"{used * 1e9:.0f}\n")
        (folder / "memory.stat").write_text(f"anon 1\n{GROUP[version][2]} {cached * 1e9:.0f}\n")
    own = tmp_path / "own"
    own.write_text("0::/jobs/7\n" if version == 2 else "9:cpu,cpuacct:/x\n4:memory:/jobs/7\n0::/\n")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "_OWN_GROUPS", own)
    of_machine = namedtuple("Memory", "available total")(int(8e9), int(16e9))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: of_machine)
    monkeypatch.setattr(machine, "available_cores", lambda: 2)
    found = next(machine.check_memory())
    assert f"{free:.1f} of {total:.1f} GB free" in found.detail
    assert found.state == (State.OK if free >= 3 else State.WARNING)


def test_private_folder_that_others_may_enter(tmp_path: Path) -> None:
    assert states(storage.check_private(tmp_path)) == set()
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "private" / "key").touch(mode=0o600)
    assert states(storage.check_private(tmp_path)) == {State.OK}
    (tmp_path / "private").chmod(0o755)
    (found,) = storage.check_private(tmp_path)
    assert found.state == State.FAILS
    assert found.remedy.startswith("chmod -R go-rwx ")


def test_room_for_a_folder(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(storage.check_room(phantoms, tmp_path / "store")) == {State.OK}
    assert states(storage.check_room(tmp_path, tmp_path / "store")) == {State.FAILS}
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: namedtuple("U", "free")(10))
    assert states(storage.check_room(phantoms, tmp_path / "store")) == {State.FAILS}


def test_check_that_breaks_is_a_finding() -> None:
    def broken() -> Iterator[Finding]:
        raise ImportError("libcudart.so.13: cannot open shared object file")

    (found,) = run_check("GPU", broken)
    assert (found.name, found.state) == ("GPU", State.FAILS)


def test_server_that_is_away_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (found,) = storage.check_mlflow(tmp_path)
    assert found.state == State.FAILS
    assert "MLFLOW_TRACKING_URI" in found.remedy
    assert states(storage.check_time_outs()) == {State.OK}
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    assert states(storage.check_time_outs()) == {State.WARNING}


def test_overstaying_is_noticed() -> None:
    assert storage.overstay(0.05) == "ended"
    assert Reason.TOO_SLOW.may_pass


def test_command_prints_json_and_its_status_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"python": State.OK}

    def checks(_: object) -> list[tuple[str, object]]:
        return [("Python", lambda: iter([Finding("Python", one["python"], "3.11", "")]))]

    monkeypatch.setattr("mammo_pd.cli.doctor._checks", checks)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "next: mammo-pd inspect DICOM_DIR"
    one["python"] = State.FAILS
    assert main(["doctor", "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out) == [
        {"name": "Python", "state": "fails", "detail": "3.11", "remedy": ""}
    ]
    assert "1 of 1 check failed" in printed.err


def test_every_extra_is_told_with_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(machine.EXTRAS) == set(extras) - {"dev"}
    required = [f'{one}; extra == "{name}"' for name in extras for one in extras[name]]
    required += project["dependencies"]
    monkeypatch.setattr(machine.metadata, "requires", lambda _: required)
    version = metadata.version

    def here(name: str) -> str:
        if name == "distributed":
            return "2000.1"
        if name.startswith(("nvidia", "onnx")):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(machine.metadata, "version", here)
    found = {finding.name: finding for finding in machine.check_extras()}
    assert list(found) == [f"extra {extra}" for extra in machine.EXTRAS]
    assert "pip install 'mammo-pd[gpu]'" in found["extra gpu"].detail
    assert found["extra gpu"].state == found["extra onnx"].state == State.OK
    assert found["extra cluster"].state == State.WARNING
    assert "distributed 2000.1" in found["extra cluster"].detail
    # An editable installation that is older than an extra.
    monkeypatch.setattr(machine.metadata, "requires", lambda _: project["dependencies"])
    assert states(machine.check_extras()) == {State.WARNING}


def test_a_source_tree_that_is_not_installed_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine.metadata, "requires", absent)
    found = [*machine.check_packages(), *machine.check_extras()]
    assert [(one.name, one.state) for one in found] == [("packages", State.FAILS)]
