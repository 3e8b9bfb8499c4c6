"""``mammo-pd doctor``: whether this machine can do the work."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from mammo_pd.cli.options import default_runs, default_store
from mammo_pd.errors import InputError
from mammo_pd.wording import counted

if TYPE_CHECKING:
    from mammo_pd.doctor.finding import Check, Finding


def doctor(
    folder: Annotated[Path | None, Parameter(name="FOLDER", show_default=False)] = None,
    /,
    *,
    json: bool = False,
) -> None:
    """Check whether this machine can do the work, and say how to fix what fails.

    Python, packages and extras, torch, driver and card, compiler, a decoder for
    each transfer syntax, disks and permissions, MLflow. Exit status 2 if any fails.

    For example:

        mammo-pd doctor
        mammo-pd doctor DICOM_DIR --json

    Args:
        folder: A folder of images: also check that the disk has room for its store.
        json: Print the findings as JSON, for other programs to read.
    """
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name a folder of mammograms, or omit it.")
    from mammo_pd.doctor.finding import State, run_check

    findings: list[Finding] = []
    for name, check in _checks(folder):
        for finding in run_check(name, check):
            findings.append(finding)
            if not json:
                _print(finding)
    failing = sum(finding.state == State.FAILS for finding in findings)
    if json:
        _print_json(findings)
    if failing:
        raise InputError(
            f"{failing} of {counted(len(findings), 'check')} failed; the remedies are above."
        )
    if not json:
        warnings = sum(finding.state == State.WARNING for finding in findings)
        told = f", {warnings} of them with a warning" if warnings else ""
        print(f"\n{counted(len(findings), 'check')} passed{told}")
        import shlex

        given = "DICOM_DIR" if folder is None else shlex.quote(str(folder))
        print(f"next: mammo-pd inspect {given}")


def _checks(folder: Path | None) -> list[tuple[str, "Check"]]:
    from mammo_pd.doctor import codecs, machine, storage

    places = (("store", default_store()), ("runs", default_runs()))
    checks: list[tuple[str, Check]] = [
        ("Python", machine.check_python),
        # First, since most of the others need one.
        ("temporary files", storage.check_temporary),
        ("packages", machine.check_packages),
        ("extras", machine.check_extras),
        ("torch and torchvision", machine.check_torch),
        ("GPU", machine.check_gpu),
        ("compiler", machine.check_compiler),
        ("memory", machine.check_memory),
        ("decoders", codecs.check_codecs),
        ("workers", storage.check_workers),
        ("time-outs", storage.check_time_outs),
        ("places", lambda: storage.check_places(*places)),
        ("permissions", lambda: storage.check_private(default_store())),
        ("MLflow", lambda: storage.check_mlflow(default_runs())),
    ]
    if folder is not None:
        checks.append(("room", lambda: storage.check_room(folder, default_store())))
    return checks


def _print(finding: "Finding") -> None:
    print(f"{finding.state:<8} {finding.name}: {finding.detail}")
    if finding.remedy:
        print(f"{'':<8} remedy: {finding.remedy}")


def _print_json(findings: list["Finding"]) -> None:
    import json
    from dataclasses import asdict

    print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
