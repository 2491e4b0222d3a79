"""The command line ``gas-ext``."""

from gas_ext.cli.app import app

__all__ = ["app"]
