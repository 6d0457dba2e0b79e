"""The plugin as a file of its own, run by the interpreter that this is."""

import os
import sys
from pathlib import Path

from dataplane.errors import PortError

NAME = "dataplane"


def install(directory: str | os.PathLike[str]) -> Path:
    """Puts the plugin there, in place of an older one, as a whole. Raises PortError."""
    place = Path(directory) / NAME
    text = Path(__file__).with_name("plugin.py").read_text()
    interpreter = os.path.realpath(sys.executable)
    fresh = place.with_name(f".{NAME}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(f"#!{interpreter} -IS\n" + text.partition("\n")[2])
        fresh.chmod(0o755)
        fresh.replace(place)
    except OSError as error:
        raise PortError(f"{place}: {error.strerror}") from error
    return place
