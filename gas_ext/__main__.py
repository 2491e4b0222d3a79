"""``python -m gas_ext``: the command line."""

from gas_ext.cli import app

if __name__ == "__main__":
    app(prog_name="gas-ext")
