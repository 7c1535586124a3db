"""``python -m probatum``."""

from probatum.cli.main import main

main()
