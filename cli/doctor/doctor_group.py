"""`bellwire doctor`, and what it looks at more closely when it is asked to."""

import typer

from bellwire.cli.doctor.audio import audio, doctor_audio_epilog
from bellwire.cli.doctor.group import doctor as look_at_all

doctor = typer.Typer()
doctor.callback(
    invoke_without_command=True, epilog="Example: `bellwire doctor --config desk.toml`"
)(look_at_all)
doctor.command("audio", epilog=doctor_audio_epilog)(audio)
