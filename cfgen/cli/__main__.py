"""`python -m cfgen.cli` is `cfgen`."""

from cfgen.cli.app import main

main()
