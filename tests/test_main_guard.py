"""A script that starts processes from its own lines is refused, and not run by each of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from mammo_pd.main_guard import is_guarded, refuse_unguarded_script

GUARD = 'if __name__ == "__main__":\n'


@pytest.mark.parametrize(
    ("source", "line", "guarded"),
    [
        ("preprocess()\n", 1, False),
        (GUARD + "    preprocess()\n", 2, True),
        (GUARD + "    main()\nmain()\n", 3, False),
        ("def main():\n    preprocess()\nmain()\n", 3, False),
        ("with a:\n    if '__main__' == __name__ and True:\n        main()\n", 3, True),
        ("if sys.argv:\n    main()\n", 2, False),
        ("not Python(", 1, True),
    ],
)
def test_guarded(source: str, line: int, guarded: bool) -> None:
    assert is_guarded(source, line) == guarded


def test_whoever_runs_the_tests_is_no_unguarded_script() -> None:
    refuse_unguarded_script()


@pytest.mark.parametrize("tool", ["cProfile", "trace"])
def test_guarded_script_may_be_run_by_a_tool(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which stands in for the script as what processes import, and has other lines."""
    script, runner = tmp_path / "job.py", tmp_path / f"{tool}.py"
    script.write_text(
        "from mammo_pd.main_guard import refuse_unguarded_script\n"
        f"{GUARD}    refuse_unguarded_script()\n    done = True\n"
    )
    runner.write_text("import sys\n" * 9)
    # A worker of pytest-xdist has none.
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(runner), raising=False)
    names = {"__name__": "__main__"}
    exec(compile(script.read_text(), str(script), "exec"), names)
    assert names["done"]


def test_script_without_a_guard_is_told_once_and_nothing_is_written(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "from pathlib import Path\n"
        "from mammo_pd.ingest.preprocess import preprocess\n"
        "preprocess(Path('.'), Path('store'), workers=2)\n"
    )
    ran = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 1 and ran.stderr.count("Traceback") == 1
    assert "job.py starts worker processes on line 3" in ran.stderr
    assert 'if __name__ == "__main__":' in ran.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["job.py"]
