"""`python -m sce` is the command `sce`."""

from .cli import main

main()
