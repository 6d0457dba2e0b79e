"""Where the API server is, and as whom it is asked: by a kubeconfig, or a pod's service account."""

import base64
import os
import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from dataplane.errors import DataplaneError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# what a kubeconfig may ask for, and is not done
NO_USER = {"exec", "auth-provider", "username", "as", "as-uid", "as-groups", "as-user-extra"}
NO_CLUSTER = {"proxy-url", "tls-server-name"}


class KubeError(DataplaneError):
    """The API server does not answer, refuses, or says what nobody understands. Try again later."""


class Access(NamedTuple):
    """`token_file` is read again at each request: tokens of service accounts change."""

    server: str
    tls: ssl.SSLContext | None = None
    token: str = ""
    token_file: str = ""

    def headers(self) -> dict[str, str]:
        """Raises KubeError."""
        token = self.token
        if self.token_file:
            try:
                token = Path(self.token_file).read_text().strip()
            except OSError as error:
                raise KubeError(f"{self.token_file}: {error.strerror}") from error
        return {"Authorization": f"Bearer {token}"} if token else {}


def in_cluster(account: Path = ACCOUNT) -> Access:
    """As a pod is told. Raises KubeError."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise KubeError("no pod of a cluster: KUBERNETES_SERVICE_HOST is not set (--kubeconfig)")
    where = f"[{host}]" if ":" in host else host
    tls = _context(str(account / "ca.crt"))
    return Access(f"https://{where}:{port}", tls, token_file=str(account / "token"))


def kubeconfig(place: str, context: str | None = None) -> Access:
    """Of a file, its current context or another one. Raises KubeError."""
    import yaml

    try:
        told = yaml.safe_load(Path(place).read_bytes())
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise KubeError(f"{place}: {getattr(error, 'strerror', None) or error}") from error
    name = context or _field(told, "current-context", place)
    chosen = _named(told, "contexts", name, "context", place)
    cluster = _named(told, "clusters", _field(chosen, "cluster", place), "cluster", place)
    user = _named(told, "users", chosen.get("user"), "user", place) if chosen.get("user") else {}
    for what, held, keys in (("user", user, NO_USER), ("cluster", cluster, NO_CLUSTER)):
        for key in keys & held.keys():
            fix = "use a token or certificate" if held is user else "name the server itself"
            raise KubeError(f"{place}: {what}: {key!r} is not supported ({fix})")
    server = _server(str(_field(cluster, "server", place)), place)
    return Access(
        server,
        _tls(cluster, user, place) if server.startswith("https") else None,
        token=str(user.get("token") or ""),
        token_file=_path(user, "tokenFile", Path(place).resolve().parent) or "",
    )


def _server(url: str, place: str) -> str:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise KubeError(f"{place}: server: {url} is no http or https address")
    return url.rstrip("/")


def _tls(cluster: Mapping[str, Any], user: Mapping[str, Any], place: str) -> ssl.SSLContext:
    here = Path(place).resolve().parent
    with tempfile.TemporaryDirectory() as made_in:  # ssl reads a certificate from files only
        try:
            ca, cert, key = (
                _file(table, name, here, Path(made_in))
                for table, name in (
                    (cluster, "certificate-authority"),
                    (user, "client-certificate"),
                    (user, "client-key"),
                )
            )
            made = _context(ca, cert, key)
        except KubeError as error:
            words = str(error).replace(f"{made_in}/", "")
            raise KubeError(f"{place}: {words}") from error
    if cluster.get("insecure-skip-tls-verify"):
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def _context(ca: str | None, cert: str | None = None, key: str | None = None) -> ssl.SSLContext:
    try:
        made = ssl.create_default_context(cafile=ca)
        if cert:
            made.load_cert_chain(cert, key)
    except (OSError, ValueError) as error:
        names = ", ".join(filter(None, (ca, cert, key)))
        raise KubeError(f"{names}: cannot be used for TLS: {error}") from error
    return made


def _file(table: Mapping[str, Any], name: str, here: Path, place: Path) -> str | None:
    """Of what stands in the file itself, or in another one."""
    data = table.get(f"{name}-data")
    if not data:
        return _path(table, name, here)
    made = place / name
    try:
        made.write_bytes(base64.b64decode(data, validate=True))
    except (ValueError, TypeError) as error:
        raise KubeError(f"{name}-data: is not base64: {error}") from error
    return str(made)


def _path(table: Mapping[str, Any], name: str, here: Path) -> str | None:
    """Beside the kubeconfig, if it is not absolute."""
    value = table.get(name)
    return str(here / str(value)) if value else None


def _named(told: Any, kind: str, name: Any, field: str, place: str) -> dict[str, Any]:
    entries = told.get(kind) if isinstance(told, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name:
            value = entry.get(field)
            if isinstance(value, dict):
                return value
    raise KubeError(f"{place}: {kind}: there is no {name!r}")


def _field(table: Any, name: str, place: str) -> Any:
    if not isinstance(table, dict) or not table.get(name):
        raise KubeError(f"{place}: {name} is missing")
    return table[name]
