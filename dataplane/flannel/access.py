"""Where etcd is, and as whom it is asked."""

import ssl
from typing import NamedTuple

from dataplane.errors import DataplaneError
from dataplane.validate_flannel import is_server


class EtcdError(DataplaneError):
    """etcd does not answer, refuses, or says what nobody understands. Try again later."""


class Access(NamedTuple):
    """As whom: files in PEM for HTTPS (`ca`: default the system's), and a user."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    username: str = ""
    password: str = ""

    def context(self) -> ssl.SSLContext:
        """Raises EtcdError where a file cannot be used."""
        if self.key and not self.cert:
            raise EtcdError(f"{self.key}: a key without its certificate")
        for file in filter(None, (self.ca, self.cert, self.key)):
            try:
                with open(file, "rb"):  # ssl does not say which one it is
                    pass
            except OSError as error:
                raise EtcdError(f"{file}: {error.strerror}") from error
        try:
            made = ssl.create_default_context(cafile=self.ca)
            if self.cert:
                made.load_cert_chain(self.cert, self.key)
        except (ssl.SSLError, ValueError) as error:
            names = ", ".join(filter(None, (self.ca, self.cert, self.key)))
            raise EtcdError(f"{names}: not in PEM, or do not fit: {error}") from error
        return made


def checked(url: str) -> str:
    """Raises EtcdError where it is no address of a server."""
    if not is_server(url):
        raise EtcdError(f"{url}: is no address of an etcd server (as in http://127.0.0.1:2379)")
    return url.rstrip("/")
