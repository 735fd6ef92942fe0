"""``python -m cfiv``, which is the command ``cfiv``."""

from cfiv.cli import main

main()
