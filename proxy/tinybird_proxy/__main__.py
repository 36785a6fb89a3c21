"""``python -m tinybird_proxy``."""

from tinybird_proxy.cli import main

main()
