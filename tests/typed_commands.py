import re

import pytest


def next_command(capsys: pytest.CaptureFixture[str]) -> str:
    """What a command suggested to type next; empties what was captured."""
    printed = capsys.readouterr().out
    found = re.search(r"^next: (.*)$", printed, re.MULTILINE)
    assert found is not None, printed
    return found.group(1)
