"""A bundle is for others to read: no secret is in it, wherever one may stand."""

import json
import tarfile
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane import bundle, model
from dataplane.api.client import Client
from dataplane.bundle import REDACTED, redacted
from dataplane.document import dump, loads
from dataplane.model import Document, Flannel
from tests.live_node import Process, policy

SECRET = "hunter2"
PEM = f"-----BEGIN EC PRIVATE KEY-----\n{SECRET}\n{SECRET}\n-----END EC PRIVATE KEY-----\n"
HIDING = (
    f"http://root:{SECRET}@192.0.2.1:2379/keys",
    f"https://{SECRET}@[2001:db8::1]",
    f"http://u:a@{SECRET}@x, http://u:{SECRET}@y",
    f"http://x/?a=1&token={SECRET}",
    f"http://x?client_secret={SECRET}#there",
    PEM,
    f"no such file: {PEM}",
)
NAMES = ("password", "token", "key", "secret", "etcd_password", "bearer_token", "private_key")

hiding = st.sampled_from(HIDING)
named = st.dictionaries(st.sampled_from(NAMES), st.just(SECRET) | st.just([SECRET]), min_size=1)
values = st.recursive(
    hiding | named | st.integers() | st.none(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["a", "url", "etcd"]), inner),
)


@given(values)
def test_no_secret_passes_at_any_depth(value: Any) -> None:
    assert SECRET not in json.dumps(redacted(value))


@given(st.sampled_from(["http://192.0.2.1:2379", "a@b", "blue/web", "token", "KEY-----", "x://"]))
def test_what_is_none_stays(text: str) -> None:
    assert redacted({"name": text, "key": None, "keys": [text]}) == {
        "name": text,
        "key": None,
        "keys": [text],
    }


def texts_of(kind: type[msgspec.Struct]) -> set[str]:
    """Its fields that are any text."""
    return {f.name for f in msgspec.structs.fields(kind) if "str" in str(f.type)}


def test_every_text_of_a_document_is_looked_at() -> None:
    """Whatever a field is called: as if nothing had checked its value."""
    kinds = [
        kind
        for kind in vars(model).values()
        if isinstance(kind, type) and issubclass(kind, model.Model)
    ]
    fields = {(kind.__name__, name) for kind in kinds for name in texts_of(kind)}
    assert {("Flannel", "etcd"), ("Flannel", "key"), ("Tap", "netns")} <= fields
    for kind, name in fields:
        for text in HIDING:
            assert SECRET not in json.dumps(redacted({kind: [{name: text}, {name: [text]}]}))


def test_none_is_in_a_whole_bundle(
    netns: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In options, environment and document of a node, as far as they are taken."""
    monkeypatch.setenv("FLANNELD_ETCD_PASSWORD", SECRET)
    for name, text in (("cert.pem", "cert"), ("key.pem", PEM)):
        (tmp_path / name).write_text(text)
    overlay = Flannel(
        etcd=(f"http://127.0.0.1:1?token={SECRET}",),
        key=PEM,
        cert=PEM,
        ca=f"/{PEM}",
        username="root",
        env=f"http://u:{SECRET}@x/env",
    )
    full = replace(policy("web"), flannel=overlay)
    (node,) = netns("n")
    words = ["--etcd-policy", "http://127.0.0.1:1", "--etcd-username", "root"]
    words += ["--flannel", "http://127.0.0.1:1", "--flannel-env", str(tmp_path / "env")]
    process = Process(node, tmp_path, *words, "--etcd-password", SECRET)
    process.file.write_text(dump(Document(node=full)))
    process.start(ready=False)  # nobody is at these addresses
    try:
        with Client(process.socket) as client:
            assert SECRET in client.export()
            parts = bundle.write(client, str(tmp_path / "bundle.tar.gz"))
    finally:
        process.end()
    with tarfile.open(tmp_path / "bundle.tar.gz") as tar:
        files = {name: tar.extractfile(name) for name in tar.getnames()}
        found = {name: file.read() for name, file in files.items() if file is not None}
    assert {name.partition("/")[2] for name in found} == {*parts}
    assert [name for name, text in found.items() if SECRET.encode() in text] == []
    told = loads(found["dataplane-a/policy.json"]).node
    assert told is not None and told.flannel is not None
    assert told.flannel.key == REDACTED and told.flannel.username == "root"
    assert told.networks == full.networks and told.underlay.address == ip_address("127.0.0.1")
