"""Where ``mammo-pd`` starts: a Ctrl-C while it is still being imported is no traceback."""

import sys


def main() -> int:
    """Run the command line; see `mammo_pd.cli.app.main`."""
    try:
        from mammo_pd.cli import app
    except KeyboardInterrupt:
        print("\nmammo-pd: interrupted before it began.", file=sys.stderr)
        return 130
    return app.main()
