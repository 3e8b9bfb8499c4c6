"""Entry point of ``mammo-pd``: Ctrl-C during imports ends without a traceback."""

import faulthandler
import os
import sys

from mammo_pd.stopping import (
    end_at_once,
    outlive_terminal,
    pass_over_interrupts,
    pass_over_save_requests,
    repeat_swallowed_interrupts,
)


def main() -> int:
    """Run the command line; see `mammo_pd.cli.app.main`."""
    if sys.__stderr__ is not None:
        # A crash in a driver's or a library's code would otherwise end without a word.
        faulthandler.enable(sys.__stderr__)
    outlive_terminal()
    pass_over_save_requests()
    repeat_swallowed_interrupts()
    # Arrow's own allocator keeps the memory of text columns; the C library's returns it. The
    # setting is read once, when pandas is imported.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        from mammo_pd.cli import app
    except KeyboardInterrupt:
        print("\nmammo-pd: interrupted during start-up.", file=sys.stderr)
        return 130
    status = app.main()
    if status in (130, 143):
        end_at_once(status)
    pass_over_interrupts()
    return status
