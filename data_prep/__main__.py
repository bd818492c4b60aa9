"""`python -m data_prep COMMAND`: the ways into a prepared dataset."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from deepcoro.errors import UserError

COMMANDS = {
    "dicom": "data_prep.dicom.cli:dicom",
    "phantom": "data_prep.phantom.cli:phantom",
    "overview": "data_prep.overview.cli:overview",
    "annotations": "data_prep.annotations.cli:annotations_command",
    "classes": "data_prep.classes.cli:classes_command",
    "predecessor": "data_prep.predecessor.cli:predecessor",
    "reports": "data_prep.reports.cli:reports",
}


class Rooms(click.Group):
    """Imports a command's room only when that command is asked for, so that one room never breaks another."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands whose room is there."""
        here = Path(__file__).parent
        return [name for name in COMMANDS if (here / name / "cli.py").is_file()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None (click then says which names there are)."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        return getattr(importlib.import_module(module), attribute)


@click.group(cls=Rooms)
def cli() -> None:
    """Prepare data for training: from DICOM files, or from simulated angiograms."""


def main() -> None:
    """Run the command line; a user's mistake ends with one message on stderr and exit code 2."""
    try:
        cli(prog_name="python -m data_prep")
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
