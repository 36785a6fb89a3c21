"""The command line: ``tinybird-proxy run | demo | emulator | check``."""

from tinybird_proxy.cli.main import main

__all__ = ["main"]
