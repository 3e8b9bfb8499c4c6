"""How ``--help`` looks: two aligned columns of plain text."""

import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

_MAX_LABEL = 26  # characters; a longer label gets a line of its own


class HelpPage:
    """Cyclopts' help formatter: it hands over the console and what to show on it."""

    def __call__(self, console: "Console", options: "ConsoleOptions", panel: "HelpPanel") -> None:
        """Print one panel: the commands, the arguments or the options."""
        rows = [(_label(entry), _explanation(entry, console)) for entry in panel.entries]
        if not rows:
            return
        width = min(_MAX_LABEL, max(len(label) for label, _ in rows))
        lines = [f"{panel.title}:"]
        for label, explanation in rows:
            room = max(20, console.width - width - 4)
            wrapped = textwrap.wrap(explanation, room, break_on_hyphens=False) or [""]
            if len(label) > width:
                lines.append(f"  {label}")
                label = ""
            lines += [f"  {label:<{width}}  {wrapped[0]}".rstrip()]
            lines += [f"{'':{width + 4}}{line}" for line in wrapped[1:]]
        console.out("\n".join(lines) + "\n", highlight=False)

    def render_usage(self, console: "Console", options: "ConsoleOptions", usage: Any) -> None:
        """Print the line that says what a command takes."""
        if usage:
            console.out(f"Usage: {usage}", highlight=False)


def _label(entry: "HelpEntry") -> str:
    return ", ".join(entry.display_labels_with_metavar)


def _explanation(entry: "HelpEntry", console: "Console") -> str:
    # Unwrapped: the caller wraps it together with what follows.
    wide = console.options.update(width=10_000)
    segments = console.render(entry.description, wide) if entry.description else ()
    words = ["".join(segment.text for segment in segments).strip()]
    if entry.choices:
        words.append(f"[choices: {', '.join(entry.choices)}]")
    if entry.env_var:
        words.append(f"[environment: {', '.join(entry.env_var)}]")
    # A flag that takes no value is off by default.
    if entry.default is not None and (entry.metavar or entry.positional_label):
        words.append(f"[default: {entry.default}]")
    return " ".join(filter(None, words))
