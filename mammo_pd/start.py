"""Entry point of ``mammo-pd``: Ctrl-C during imports ends without a traceback."""

import contextlib
import faulthandler
import os
import signal
import sys
import time

from mammo_pd.stopping import (
    FollowedError,
    end_at_once,
    outlive_terminal,
    pass_over_interrupts,
    pass_over_save_requests,
    repeat_swallowed_interrupts,
)

# For the checkpoint that the first of several processes writes.
_SAVING_SECONDS = 10.0


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
        from mammo_pd.cli.options import is_first_process
    except KeyboardInterrupt:
        print("\nmammo-pd: interrupted during start-up.", file=sys.stderr)
        return 130
    try:
        status = app.main()
    except FollowedError:
        # The first process has the status. To whoever started this one, as Lightning, another than
        # 0 is a failure, for which it would kill the first before that has ended.
        _pass_over_ends()
        end_at_once(0)
    if status in (130, 143):
        if not is_first_process():
            _let_the_first_process_save()
        end_at_once(status)
    pass_over_interrupts()
    return status


def _let_the_first_process_save() -> None:
    """Of several processes that are interrupted wherever they are, as in validation, end later.

    Lightning or torchrun, which started them, ends the first as soon as another has ended with an
    error, which the status of an interrupt is to them. If it was Lightning, the kernel ends this
    one when the first has gone. That one may also hang, waiting for this one, so not for long.
    """
    _pass_over_ends()
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(_SAVING_SECONDS)


def _pass_over_ends() -> None:
    """Ignore SIGTERM and SIGHUP, which this process has answered, and by which it would fail."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
