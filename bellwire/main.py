"""The `bellwire` command."""

import typer

app = typer.Typer()
