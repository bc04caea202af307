"""An operator's file: the broker, and credentials that may write the fleet's configuration."""

import os
import tomllib
from pathlib import Path

import tomli_w
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from bellwire.config.private_file import write_private
from bellwire.signaling.errors import InvalidInput

USERNAME_PREFIX = "operator:"
"""No device id holds a colon, so no device is ever taken for an operator."""


class OperatorSettings(BaseModel):
    """Where the broker is, and how this operator logs in to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    username: str
    password: SecretStr
    ca_file: Path | None = None

    @property
    def name(self) -> str:
        """The operator's name, as layers say it."""
        return self.username.removeprefix(USERNAME_PREFIX)


_HEADER = """\
# Written by `bellwire fleet operator add`. It holds a password that may configure all devices:
# keep it mode 600, and never in version control.

"""


def default_operator_file() -> Path:
    """Where the operator's file is unless told otherwise (XDG Base Directory)."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "bellwire/operator.toml"


def write_operator_file(path: Path, settings: OperatorSettings) -> None:
    """Writes the file, password included, mode 600; makes its folder."""
    document = settings.model_dump(mode="json", exclude_none=True)
    document["password"] = settings.password.get_secret_value()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, _HEADER + tomli_w.dumps(document))


def load_operator_settings(path: Path) -> OperatorSettings:
    """The settings in a file.

    Raises:
        InvalidInput: it cannot be read or is none, or others can read it.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise InvalidInput(
                f"{path} holds a password and others can read it: run `chmod 600 {path}`"
            )
        return OperatorSettings.model_validate(tomllib.loads(path.read_text()))
    except FileNotFoundError as error:
        raise InvalidInput(
            f"{path} does not exist: have `bellwire fleet operator add NAME --out {path}` run where the"
            " relay is, or name your file with --operator FILE"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        raise InvalidInput(
            f"{path} is not an operator's file: {'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        ) from error
