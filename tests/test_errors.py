"""An error of the operating system reaches a user in words, without numbers and paths."""

import ast
import json
from pathlib import Path

import pytest

import mammo_pd
from mammo_pd.errors import cause_of
from mammo_pd.files import load_json

# What catches errors whose text begins with [Errno 2].
_OF_THE_SYSTEM = {"OSError", "FileNotFoundError", "PermissionError", "Exception", "_UNREADABLE"}


def test_cause_is_one_line_without_errno_and_path(tmp_path: Path) -> None:
    with pytest.raises(OSError) as missing:
        (tmp_path / "none").open()
    with pytest.raises(UnicodeDecodeError) as binary:
        b"\xff".decode()
    with pytest.raises(json.JSONDecodeError) as damaged:
        json.loads("{")
    with pytest.raises(KeyError) as lacking:
        {}["hash"]
    told = [cause_of(raised.value) for raised in (missing, binary, damaged, lacking)]
    assert told[:2] == ["no such file or directory", "it is not text in UTF-8"]
    assert told[2].startswith("Expecting property name") and told[3] == "it has no 'hash'"
    assert cause_of(OSError("a\nlibrary's own. And more.")) == "a library's own"
    assert cause_of(ValueError()) == "ValueError"


def test_no_message_quotes_an_error_of_the_system_as_python_prints_it() -> None:
    files = sorted(Path(mammo_pd.__file__).parent.rglob("*.py"))
    quoted = [(file.name, line) for file in files for line in _quoting(file)]
    assert len(files) > 200 and not quoted


def _quoting(file: Path) -> list[str]:
    """Handlers that put such an error into a message as it is."""
    found = []
    for handler in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(handler, ast.ExceptHandler) or handler.type is None:
            continue
        caught = {getattr(one, "id", None) for one in ast.walk(handler.type)}
        told = (node.value for node in ast.walk(handler) if isinstance(node, ast.FormattedValue))
        if caught & _OF_THE_SYSTEM and any(getattr(n, "id", 0) == handler.name for n in told):
            found.append(ast.unparse(handler))
    return found


# What they read was written by this program into this installation, or a moment before.
_READ_THEIR_OWN = {"doctor/codecs.py", "data/record.py", "perf/bench.py", "files.py"}


def test_json_that_may_be_anothers_is_read_by_what_bears_any_depth() -> None:
    package = Path(mammo_pd.__file__).parent
    plain = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if any(call in file.read_text(encoding="utf-8") for call in ("json.loads(", "json.load("))
    }
    assert plain == _READ_THEIR_OWN
    assert load_json('{"a": [1]}') == {"a": [1]}
    for nested in ("[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(ValueError, match="it is nested too deeply"):
            load_json(nested)
