"""`python -m mae` is the same as `mae`."""

from mae.cli import main

main()
