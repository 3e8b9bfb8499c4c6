"""Detect scripts that start processes at top level, which every worker would run again."""

import ast
import inspect
import sys
from pathlib import Path

from mammo_pd.errors import InputError


def refuse_unguarded_script() -> None:
    """Refuse to start processes from a script's top level.

    Python imports the script again in every worker. If importing it starts workers, each of them
    dies with a traceback and is replaced by another that does the same.

    Raises:
        InputError: the line of the script that is being run is not below
            ``if __name__ == "__main__":``.
    """
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    frame = inspect.currentframe()
    while frame is not None and not (
        frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__"
    ):
        frame = frame.f_back
    if file is None or frame is None:
        return  # a console, a notebook, or another thread than the main one
    if Path(frame.f_code.co_filename).absolute() != Path(file).absolute():
        return  # a profiler or tracer runs the script, and is what the workers import
    try:
        source = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if not is_guarded(source, frame.f_lineno):
        raise InputError(
            f"{Path(file).name} starts worker processes on line {frame.f_lineno}, and each of them "
            "imports the script and would reach that line again; move what the script runs "
            'below a line if __name__ == "__main__":'
        )


def is_guarded(source: str, line: int) -> bool:
    """Whether a line runs only if the script itself is run, judging by the enclosing ``if``.

    Args:
        source: of the script; what cannot be parsed counts as guarded.
        line: from 1.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return True
    return any(
        node.lineno <= line <= (node.end_lineno or node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
    )
