"""The command `sce`: compare, check, bench, train, info. Needs the extra `cli`, and says so without it."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without typer and rich print one line and exit with status 2."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as exc:
        print(
            f"sce: the command line needs typer and rich ({exc}). Try: pip install 'sce[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    from .app import app

    app()
