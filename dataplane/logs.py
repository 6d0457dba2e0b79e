"""The log of a running node, to stderr: lines for people, or a JSON object each for machines."""

import json
import logging
import time

FORMS = ("text", "json")


class JsonLines(logging.Formatter):
    """`{"time": …, "level": …, "message": …}`; time in UTC, as RFC 3339 has it."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)


def begin(form: str) -> None:
    """From now on everything from INFO on is told in that form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
