"""A request as handlers see it."""

from starlette.requests import Request

from dataplane.errors import DataplaneError


class Call:
    """The whole body, the path, the query and the headers of one."""

    def __init__(self, request: Request, body: bytes) -> None:
        self.body = body
        self.path = request.path_params
        self.method = request.method
        self.target = request.url.path
        self.query = request.query_params
        self.headers = request.headers

    def flag(self, name: str) -> bool:
        """Whether a query parameter says yes. Raises DataplaneError."""
        value = self.query.get(name, "false")
        if value not in ("true", "false", "1", "0", ""):
            raise DataplaneError(f"{name}={value!r}: true or false")
        return value in ("true", "1", "")

    def choice(self, name: str, known: tuple[str, ...], default: str) -> str:
        """Raises DataplaneError."""
        value = self.query.get(name, default)
        if value not in known:
            raise DataplaneError(f"{name}={value!r}: one of {', '.join(known)}")
        return value

    def number(self, name: str, default: int, most: int) -> int:
        """Raises DataplaneError."""
        text = self.query.get(name, str(default))
        if not (text.isascii() and text.isdecimal() and int(text[:20]) <= most):
            raise DataplaneError(f"{name}={text!r}: a number from 0 to {most}")
        return int(text)

    @property
    def base(self) -> int | None:
        """The generation of `If-Match`, if there is one. Raises DataplaneError."""
        text = self.headers.get("if-match")
        if text is None or text == "*":
            return None
        tag = text.strip().strip('"')
        if not (tag.isascii() and tag.isdecimal()):
            raise DataplaneError(f"If-Match {text!r} is no generation: as the ETag said it")
        return int(tag)

    def words(self, name: str, known: tuple[str, ...], default: tuple[str, ...]) -> tuple[str, ...]:
        """A list with commas, of such words. Raises DataplaneError."""
        text = self.query.get(name)
        if text is None:
            return default
        found = tuple(word.strip() for word in text.split(","))
        for word in found:
            if word not in known:
                raise DataplaneError(f"{name}: no {word!r}; there are: {', '.join(known)}")
        return found
