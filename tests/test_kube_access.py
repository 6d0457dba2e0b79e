"""Where the API server is: kubeconfigs of all forms, and a pod's service account."""

import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from dataplane.kubernetes.access import Access, KubeError, in_cluster, kubeconfig
from dataplane.kubernetes.client import Client
from tests.kube_objects import node
from tests.kube_server import Server

Table = dict[str, Any]


def config(cluster: Table, user: Table | None = None) -> Table:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [
            {"name": "other", "context": {"cluster": "nowhere", "user": "nobody"}},
            {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "x"}},
        ],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user or {}}],
    }


def written(place: Path, told: Any) -> str:
    file = place / "kubeconfig"
    file.write_text(told if isinstance(told, str) else yaml.safe_dump(told))
    return str(file)


def nodes(access: Access) -> list[str]:
    return [item["metadata"]["name"] for item in Client(access, 2.0).list("/api/v1/nodes")[0]]


# ---- that work -----------------------------------------------------------------------------------


def test_a_token(tmp_path: Path) -> None:
    with Server(token="secret") as server:
        server.put("nodes", node("us", "10.244.1.0/24"))
        place = written(tmp_path, config({"server": server.url + "/"}, {"token": "secret"}))
        assert nodes(kubeconfig(place)) == ["us"]
        place = written(tmp_path, config({"server": server.url}))
        with pytest.raises(KubeError, match="401"):
            nodes(kubeconfig(place))


def test_a_token_of_a_file_is_read_again(tmp_path: Path) -> None:
    """It is beside the kubeconfig, is preferred to one that stands there, and changes."""
    with Server(token="first") as server:
        (tmp_path / "token").write_text("first\n")
        user = {"tokenFile": "token", "token": "stale"}
        access = kubeconfig(written(tmp_path, config({"server": server.url}, user)))
        assert nodes(access) == []
        server.token = "second"
        with pytest.raises(KubeError, match="401"):
            nodes(access)
        (tmp_path / "token").write_text("second")
        assert nodes(access) == []
        (tmp_path / "token").unlink()
        with pytest.raises(KubeError, match="token: No such file"):
            nodes(access)


@pytest.mark.parametrize("inline", [False, True])
def test_certificates(tmp_path: Path, certificate: tuple[Path, Path], inline: bool) -> None:
    """As files beside the kubeconfig, or in it; nothing of them is left on the disk."""
    pem, key = certificate
    texts = {"certificate-authority": pem, "client-certificate": pem, "client-key": key}
    told: Table = {name: file.name for name, file in texts.items()}
    if inline:
        told = {f"{n}-data": base64.b64encode(f.read_bytes()).decode() for n, f in texts.items()}
    ca, own = dict(list(told.items())[:1]), dict(list(told.items())[1:])
    with Server(certificate=certificate) as server:
        whole = {"server": server.url}
        place = written(tmp_path, config(whole | ca, own))
        if inline:
            pem.unlink(), key.unlink()
        before = set(tmp_path.iterdir())
        assert nodes(kubeconfig(place)) == []
        assert set(tmp_path.iterdir()) == before
        with pytest.raises(KubeError, match="https://"):
            nodes(kubeconfig(written(tmp_path, config(whole | ca))))
        with pytest.raises(KubeError, match="certificate verify failed"):
            nodes(kubeconfig(written(tmp_path, config(whole, own))))
        skipping = {"insecure-skip-tls-verify": True}
        assert nodes(kubeconfig(written(tmp_path, config(whole | skipping, own)))) == []


def test_a_server_below_a_path(tmp_path: Path) -> None:
    """As behind a proxy of several clusters."""
    with Server() as server:
        place = written(tmp_path, config({"server": f"{server.url}/k8s/clusters/c-1/"}))
        with pytest.raises(KubeError, match="404"):
            nodes(kubeconfig(place))
        assert server.requests[0].startswith("GET /k8s/clusters/c-1/api/v1/nodes?")


def test_a_context_by_name(tmp_path: Path) -> None:
    told = config({"server": "https://[2001:db8::1]:6443"})
    told["contexts"].append({"name": "third", "context": {"cluster": "c"}})
    place = written(tmp_path, told)
    assert kubeconfig(place, "third").server == "https://[2001:db8::1]:6443"
    assert kubeconfig(place, "third").headers() == {}
    with pytest.raises(KubeError, match="there is no 'nowhere'"):
        kubeconfig(place, "other")


def test_a_pods_account(
    tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, _ = certificate
    (tmp_path / "ca.crt").write_bytes(pem.read_bytes())
    (tmp_path / "token").write_text("secret")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(KubeError, match="KUBERNETES_SERVICE_HOST is not set"):
        in_cluster(tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00:96::1")
    monkeypatch.delenv("KUBERNETES_SERVICE_PORT", raising=False)
    access = in_cluster(tmp_path)
    assert access.server == "https://[fd00:96::1]:443"
    assert access.headers() == {"Authorization": "Bearer secret"}
    assert access.tls is not None and access.tls.verify_mode == ssl.CERT_REQUIRED
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(KubeError, match=r"ca\.crt: cannot be used"):
        in_cluster(tmp_path)


# ---- that are refused ----------------------------------------------------------------------------

SERVER = {"server": "https://192.0.2.1:6443"}
LESS = "contexts", "clusters", "users"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("", "current-context is missing"),
        ("[]", "current-context is missing"),
        ("a: b: c", "mapping values are not allowed"),
        ("\x00", "unacceptable character"),
        *(({k: v for k, v in config(SERVER).items() if k != less}, f"{less}: there is no")
          for less in LESS),
        (config(SERVER) | {"clusters": 7}, "clusters: there is no 'c'"),
        (config(SERVER) | {"users": [7]}, "users: there is no 'u'"),
        (config({}), "server is missing"),
        (config({"server": "192.0.2.1:6443"}), "is no http or https address"),
        (config({"server": "https://"}), "is no http or https address"),
        (config({"server": "https://192.0.2.1:x"}), "is no http or https address"),
        (config({"server": "https://[192.0.2.1"}), "is no http or https address"),
        (config(SERVER | {"proxy-url": "http://p"}), "cluster: 'proxy-url' is not supported"),
        (config(SERVER | {"tls-server-name": "x"}), "'tls-server-name' is not supported"),
        *((config(SERVER, {key: "x"}), f"user: '{key}' is not supported")
          for key in ("exec", "auth-provider", "username", "as", "as-groups")),
        (config(SERVER | {"certificate-authority": "none.pem"}), r"none\.pem: cannot be used"),
        (config(SERVER | {"certificate-authority-data": "!"}), "is not base64"),
        (config(SERVER | {"certificate-authority-data": 7}), "is not base64"),
        (config(SERVER | {"certificate-authority-data": "eA=="}), "authority: cannot be"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(told: Any, why: str, tmp_path: Path) -> None:
    """With the file; nothing is asked of any server."""
    place = written(tmp_path, told)
    with pytest.raises(KubeError, match=why) as caught:
        kubeconfig(place)
    assert str(caught.value).startswith(place)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(KubeError, match="missing: No such file"):
        kubeconfig(str(tmp_path / "missing"))
    with pytest.raises(KubeError, match="Is a directory"):
        kubeconfig(str(tmp_path))
