"""The configuration file of the command line: defaults for the environment variables, in TOML.

An option on the command line comes before an environment variable, and that before the file. The file is read by the
command line alone; a Python program configures its calls itself.
"""

import os
import tomllib
from pathlib import Path

from platformdirs import user_config_path

from .errors import SeenitError, first_line, os_reason

VARIABLES = {  # keys of the file, and the variables that they stand for
    "index": "SEENIT_INDEX",
    "state": "SEENIT_STATE",
    "cache": "SEENIT_CACHE",
    "offline": "SEENIT_OFFLINE",
    "download_base": "SEENIT_DOWNLOAD_BASE",
}


def configuration_file() -> Path:
    return Path(os.environ.get("SEENIT_CONFIG") or user_config_path("seenit", appauthor=False) / "config.toml")


def apply_configuration() -> None:
    """Set the environment variables that the file names and that are not set; SeenitError for a file that is wrong."""
    file = configuration_file()
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return
    except OSError as error:
        raise SeenitError(
            f"cannot read {file}: {os_reason(error)}; make it readable, or name another by SEENIT_CONFIG"
        ) from None
    except ValueError as error:
        raise SeenitError(f"{file} is no TOML ({first_line(error)}); mend it or remove it") from None
    for key, value in values.items():
        if key not in VARIABLES:
            raise SeenitError(f"{file} has an unknown key {key!r}; those that are known: {', '.join(VARIABLES)}")
        if not isinstance(value, bool if key == "offline" else str):
            raise SeenitError(
                f"{file}: {key} is {'true or false' if key == 'offline' else 'a text in quotes'}; mend it"
            )
        text = str(int(value)) if isinstance(value, bool) else value
        os.environ.setdefault(VARIABLES[key], os.path.expanduser(text) if key != "download_base" else text)
