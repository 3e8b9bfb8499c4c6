"""The command line ``mammo-pd COMMAND``: registers the commands and turns errors into sentences.

Each command is a module of this package with a function of the same name, whose signature and
docstring become its options and its ``--help``. Heavy imports go inside that function.
"""

import errno
import io
import os
import select
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_origin

from cyclopts import App, CycloptsError, Parameter, UnknownOptionError, UnusedCliTokensError

from mammo_pd import __version__
from mammo_pd.cli.help_page import HelpPage
from mammo_pd.cli.options import is_first_process
from mammo_pd.cores import keep_threads_within_quota
from mammo_pd.errors import InputError
from mammo_pd.stopping import FollowedError, TerminatedError, sigterm_interrupts
from mammo_pd.wording import on_one_line

# In the order in which a project uses them; --help lists them in this order.
COMMANDS = (
    "inspect",
    "preprocess",
    "split",
    "pretrain",
    "train",
    "cv",
    "evaluate",
    "predict",
    "export",
    "compare",
    "embed",
    "show",
    "sync",
    "forget",
    "bench",
    "budget",
    "doctor",
    "demo",
)
# Commands that take minutes at most and keep nothing to resume from.
_BEGIN_ANEW = ("inspect", "export", "compare", "show", "budget", "doctor")

app = App(
    name="mammo-pd",
    help="""Train vision transformers on full-resolution mammograms with PatchDropout.

The whole job:

    mammo-pd preprocess DICOM_DIR --labels TABLE.csv
    mammo-pd train --res 1024 --keep 0.25
    mammo-pd evaluate

Research use only, not a medical device.""",
    version=f"mammo-pd {__version__}",
    # Plain text: rich's Markdown and boxes would double the start-up time and garble logs.
    help_format="plaintext",
    version_format="plaintext",
    help_formatter=HelpPage(),
    # No --no-x for every --x.
    default_parameter=Parameter(negative=()),
    # `main` reports errors and makes the exit status.
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
for _position, _command in enumerate(COMMANDS):
    app.command(f"mammo_pd.cli.{_command}:{_command}", sort_key=_position)
# One run of `cv`, which starts it in a process of its own.
app.command("mammo_pd.cli.cv_run:cv_run", name="cv-run", show=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after ``mammo-pd``; by default those of this process.

    Returns:
        The exit status: 0; 2 after an error that the user can fix; 3 if some images could not be
        read and the others are done (``predict``); 130 after Ctrl-C; 143 after SIGTERM; 141 if the
        reader of the output has gone, as after ``| head``.

    Raises:
        FollowedError: as the training that it was did, in a process that is not the first.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr is from the start: names of folders need not be text in the terminal's encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    with sigterm_interrupts():
        try:
            status = _main(arguments)
            # Flush here: if it fails while the interpreter exits, Python prints its own error.
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            return status
        except BrokenPipeError:
            if not _drop_output_without_a_reader():
                raise
            return 141


def _drop_output_without_a_reader() -> bool:
    """Whether the reader of a stream has gone; further output to it is then discarded."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            handle = stream.fileno()
        except (AttributeError, OSError, ValueError):  # closed, or not a file
            continue
        poll = select.poll()
        poll.register(handle, 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), handle)
            gone = True
    return gone


def _main(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Threads that busy-wait would take cores from other work on a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if not words:
            raise InputError(
                f"no command; choose one of {', '.join(COMMANDS)} (mammo-pd --help explains them)."
            )
        if words[0] in app.help_flags:
            # Commands are imported lazily; the list of commands needs all of their docstrings.
            for command in COMMANDS:
                app[command]
        elif not {*app.help_flags, *app.version_flags} & {*words}:
            keep_threads_within_quota()
        status = app(words)
    except FollowedError:
        raise
    except KeyboardInterrupt as interrupt:
        terminated = isinstance(interrupt, TerminatedError)
        if words[0] in _BEGIN_ANEW:
            kept = "nothing is left half-written; run the same command to start again."
        else:
            # `train` names its own command, which needs --resume.
            again = str(interrupt) or "the same command"
            kept = f"finished work is kept, and {again} continues from there."
        if is_first_process():
            what = "terminated" if terminated else "interrupted"
            print(f"\nmammo-pd: {what}; {kept}", file=sys.stderr)
        return 143 if terminated else 130
    except BrokenPipeError:
        raise
    except Exception as error:
        message = explain(error, _folders_of_images(words), words)
        if message is None:
            raise
        # Names of folders and keys of configurations come from others, too.
        print(f"mammo-pd: error: {on_one_line(message)}", file=sys.stderr)
        return 2
    return status if isinstance(status, int) else 0


def _folders_of_images(words: Sequence[str]) -> list[Path]:
    """The folders of images that a command was given."""
    if words[:1] not in (["preprocess"], ["predict"], ["inspect"], ["doctor"]):
        return []
    return [Path(word) for word in words[1:] if word[:1] != "-" and Path(word).is_dir()]


def explain(error: Exception, images: Sequence[Path] = (), words: Sequence[str] = ()) -> str | None:
    """A sentence for an error caused by the user or the machine; None for a bug of ours.

    Args:
        error: what was raised.
        images: folders whose file names may contain patients' names and must not be shown.
        words: that were typed, for errors about them.
    """
    text = str(error)
    if isinstance(error, InputError):
        return text
    if isinstance(error, UnusedCliTokensError):
        command = " ".join(["mammo-pd", *(error.command_chain or ())])
        unused = error.unused_tokens or []
        hint = _several_values(unused, words)
        return f"unexpected {' '.join(unused)}; {hint}see {command} --help."
    if isinstance(error, UnknownOptionError):
        # An option that another command has was not misspelt.
        known = _where_else(error)
        return text.partition(" Did you mean")[0] + known if known else text
    if isinstance(error, CycloptsError):
        return text
    if _is_disk_full(error):
        return (
            "the disk is full; finished work is kept. Free some space and run the same command "
            "again (training: add --resume)."
        )
    if "torchvision::" in text:
        return (
            "torch and torchvision do not match (both must come from the same index); reinstall "
            "them, for instance with: pip install --force-reinstall 'torch>=2.11' "
            "'torchvision>=0.26'"
        )
    if isinstance(error, UnicodeEncodeError) and _is_undecoded(error.object):
        named = next((word for word in words if _is_undecoded(word)), "a folder's or file's name")
        shown = named.encode("utf-8", "backslashreplace").decode("utf-8")
        return (
            f"{shown} is not text in UTF-8, as the libraries for Parquet and MLflow need it; "
            "rename it, or name another place."
        )
    if isinstance(error, sqlite3.OperationalError) and "locked" in text:
        return (
            f"another program has the store's record open ({text}); close it and run the same "
            "command again."
        )
    if isinstance(error, sqlite3.DatabaseError):
        # Opening the record already checks where it begins: this is damage further in.
        return (
            f"the record of the store, private/images.sqlite, is damaged ({text}); restore it from "
            "a copy, or rebuild the store under another --out with this store's --key."
        )
    if isinstance(error, OSError) and error.filename is not None:
        name = error.filename
        file = Path(os.fsdecode(name)).absolute()
        for folder in images:
            # Commands resolve links to the folder before reading it.
            if any(map(file.is_relative_to, (folder.absolute(), folder.resolve()))):
                name = f"a file or folder in {folder}"
        if error.errno == errno.EROFS:
            return (
                f"{name} cannot be written ({error.strerror}); name another place, or mount a "
                "folder there that can be written to (in a container: --volume without :ro, and "
                "--tmpfs /tmp:exec)."
            )
        return (
            f"{name} cannot be read or written ({error.strerror}); check that it exists "
            "and that you have permission."
        )
    return None


def _is_undecoded(text: str) -> bool:
    """Whether it holds bytes of a name that Python could not decode."""
    return any("\udc80" <= character <= "\udcff" for character in text)


def _several_values(unused: Sequence[str], words: Sequence[str]) -> str:
    """How to give several values to the option that the unused words follow; empty if none can."""
    count = len(unused)
    ends = [at for at in range(3, len(words)) if [*words[at : at + count]] == [*unused]]
    if not unused or not ends:
        return ""
    option, given = words[ends[-1] - 2 : ends[-1]]
    for one in app[words[0]].assemble_argument_collection() if option[:2] == "--" else ():
        if option not in one.names:
            continue
        if "," in (one.parameter.metavar or ""):
            return f"write a list with commas: {option} {','.join([given, *unused])}; "
        if any(get_origin(hint) is list for hint in (one.hint, *get_args(one.hint))):
            return f"repeat {option} before each value; "
    return ""


def _where_else(error: UnknownOptionError) -> str:
    """Which other commands have an option that this one does not know; empty if none does."""
    option = error.token.keyword if error.token else None
    others = [
        command
        for command in COMMANDS
        if option
        in {name for one in app[command].assemble_argument_collection() for name in one.names}
    ]
    if not others:
        return ""
    named = ", ".join(f"mammo-pd {command}" for command in others)
    return f" {option} belongs to {named}."


def _is_disk_full(error: Exception) -> bool:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    # numpy, SQLite and safetensors raise their own errors with their own wording.
    words = ("No space left", "disk is full", "requested and", "File too large", "quota exceeded")
    return any(word in str(error) for word in words)
