"""Documents: what is right is read the same by every way, what is wrong is told all at once."""

import gc
import json
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane import defaults, document, jsontree, schema, tree, yamltree
from dataplane.convert import encode
from dataplane.document import dump, load, loads
from dataplane.errors import DocumentError, Fault
from dataplane.model import Document, PortRange
from dataplane.names import find_endpoint
from tests.strategies import nodes

POLICIES = Path(__file__).parent.parent / "policies"
FILES = sorted(POLICIES.glob("*.yaml"))

SOUND = """\
version: 1
node:
  name: a
  underlay: {address: 192.0.2.1}
  host_port: {address: 169.254.7.1, peer: 169.254.7.2, tap: {name: dp-host}}
  networks:
    - name: blue
      vni: 4096
      prefixes: [10.1.0.0/16]
      remote_subnets:
        - {prefix: 10.1.2.0/24, provider_address: 192.0.2.2, dr_mac: "02:00:5e:00:00:0b"}
      endpoints:
        - name: web
          addresses: [10.1.1.2]
          acls:
            - {name: http, direction: in, action: allow, protocol: tcp, local_ports: [80]}
"""


def faults_of(text: str | bytes, name: str = "node.yaml", **kwargs: Any) -> tuple[Fault, ...]:
    with pytest.raises(DocumentError) as caught:
        loads(text, name, **kwargs)
    return caught.value.faults


def changed(*changes: tuple[str, str]) -> str:
    text = SOUND
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def as_json(doc: Document) -> str:
    return msgspec.json.encode(doc, enc_hook=encode).decode()


# ---- right ones ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_policies_load_and_dump(path: Path) -> None:
    doc = load(path)
    assert doc.expect
    assert loads(dump(doc)) == doc
    assert loads(as_json(doc), "x.json") == doc


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(nodes().thrown())
def test_dump_and_both_ways_of_reading_agree(node: Any) -> None:
    doc = Document(node=node)
    assert loads(dump(doc)) == doc
    text = as_json(doc)
    assert document._fast(text.encode()) == doc
    assert document._slow(text, True, "x.json", None) == doc
    assert loads(text, "x.yaml") == doc


@given(st.text(max_size=12))
def test_any_text_survives_yaml(text: str) -> None:
    assert _plain(dump(_named(text)))["node"]["name"] == text


def _named(name: str) -> Document:
    doc = loads(SOUND)
    assert doc.node is not None
    return msgspec.structs.replace(doc, node=msgspec.structs.replace(doc.node, name=name))


def test_a_bare_value_is_a_list_of_one() -> None:
    bare = changed(("local_ports: [80]", "local_ports: 80"), ("[10.1.0.0/16]", "10.1.0.0/16"))
    assert loads(bare) == loads(SOUND)
    assert loads(json.dumps(_plain(bare)), "x.json") == loads(SOUND)


def _plain(text: str) -> Any:
    return _bare(yamltree.read(text)[0])


def _bare(node: tree.Tree) -> Any:
    if isinstance(node.value, dict):
        return {key: _bare(item) for key, item in node.value.items()}
    return [_bare(item) for item in node.value] if isinstance(node.value, list) else node.value


@pytest.mark.parametrize(
    ("written", "first", "last"),
    [("80", 80, 80), ('"80"', 80, 80), ("8000-8100", 8000, 8100), ("0-65535", 0, 65535)],
)
def test_port_ranges(written: str, first: int, last: int) -> None:
    doc = loads(changed(("[80]", written)))
    assert doc.node is not None
    acl = doc.node.networks[0].endpoints[0].acls[0]
    assert acl.local_ports == (PortRange(first, last),)
    assert loads(dump(doc)) == doc


@pytest.mark.parametrize("mac", ["10:20:30:40:50:55", '"10:20:30:40:50:55"', "10-20-30-40-50-55"])
def test_an_unquoted_mac_is_a_mac(mac: str) -> None:
    doc = loads(changed(("addresses: [10.1.1.2]", f"addresses: [10.1.1.2]\n          mac: {mac}")))
    assert doc.node is not None
    assert doc.node.networks[0].endpoints[0].mac == "10:20:30:40:50:55"


@pytest.mark.parametrize(
    ("plain", "meaning"),
    [
        ("on", "on"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("1e3", "1e3"),
        ("12:30:45", "12:30:45"),
        ("2026-11-23", "2026-11-23"),
        ("0x1000", 4096),
        ("-5", -5),
        ("1.5", 1.5),
        ("true", True),
        ("~", None),
        ("", None),
    ],
)
def test_plain_scalars(plain: str, meaning: object) -> None:
    read = yamltree.read(f"a: {plain}\n")[0].value
    assert isinstance(read, dict)
    assert read["a"].value == meaning and type(read["a"].value) is type(meaning)


# ---- wrong ones ------------------------------------------------------------------------------

ONE_FAULT = [  # what is changed, the path, part of the line that says so
    ("vni: 4096", "vni: 16777216", "networks[0].vni", "16777216 is not a VNI (0-16777215)"),
    ("vni: 4096", "vni: '4096'", "networks[0].vni", "'4096' is not a VNI"),
    ("vni: 4096", "vni: 010", "networks[0].vni", "'010' is not a VNI"),
    ("[80]", "[70000]", "acls[0].local_ports[0]", "70000 is not a port (0-65535)"),
    ("[80]", "[http]", "acls[0].local_ports[0]", "'http' is not a port or range (as 80"),
    ("[80]", "[90-80]", "acls[0].local_ports[0]", "90-80 is no range of ports (write 80-90)"),
    ("[80]", "", "acls[0].local_ports", "nothing stands where a list should ([] for none)"),
    ("10.1.0.0/16", "10.1.1.0/16", "prefixes[0]", "has host bits set (write 10.1.0.0/16)"),
    ("10.1.0.0/16", "10.1.0.0/255.255.0.0", "prefixes[0]", "netmask (write 10.1.0.0/16)"),
    ("10.1.0.0/16", "010.1.0.0/16", "prefixes[0]", "leading zeros are ambiguous"),
    ("address: 192.0.2.1}", "address: 192.0.2.256}", "underlay.address", "not an IP address"),
    ("address: 192.0.2.1}", "address: '::ffff:1.2.3.4'}", "underlay.address", "IPv4-mapped"),
    ("address: 192.0.2.1}", "address: 5}", "underlay.address", "5 is not an IP address"),
    ('"02:00:5e:00:00:0b"', "8041827055", "remote_subnets[0].dr_mac",
     'is a number, not a MAC address (quote the MAC: "10:20:30:40:50:55")'),
    ('"02:00:5e:00:00:0b"', '"02:00"', "remote_subnets[0].dr_mac", "not a MAC address"),
    ('"02:00:5e:00:00:0b"', '"03:00:5e:00:00:0b"', "remote_subnets[0].dr_mac", "multicast MAC"),
    ("action: allow", "action: alow", "acls[0].action", "did you mean allow?"),
    ("action: allow", "acton: allow", "acls[0].acton", "'acton' (did you mean action?)"),
    ("name: blue", "name: 10", "networks[0].name", 'is not text (quote it: "10")'),
    ("name: blue", "name: a/b", "networks[0].name", "is not a name"),
    ("name: web", "name: underlay", "endpoints[0].name", "is reserved"),
    ("name: web", "name: a-long-name-for-a-tap", "endpoints[0].name", "too long for a TAP"),
    ("{name: dp-host}", "{name: dp-host, persist: yes}", "tap.persist", "(write true)"),
    ("{name: dp-host}", "{name: dp-host, owner: 010}", "tap.owner", "write 10, without"),
    ("{name: dp-host}", "{name: dp/host}", "tap.name", "no device name"),
    ("{name: dp-host}", "{name: web}", "endpoints[0]", "TAP web is taken"),
    ("{name: dp-host}", "[dp-host]", "host_port.tap", "a list stands where a mapping should"),
    ("peer: 169.254.7.2", "peer: 169.254.7.1", "host_port.peer", "both sides"),
    ("vni: 4096", "vni: 4096\n      mtu: 1451", "networks[0].mtu", "at most 1450, or auto"),
    ("vni: 4096", "vni: 4096\n      mtu: 67", "networks[0].mtu", "less than IP needs (68)"),
    ("vni: 4096", "vni: 4096\n      mtu: big", "networks[0].mtu", "not a whole number or 'auto'"),
    ("vni: 4096", "vni: 4096\n      mtu: 1.5", "networks[0].mtu", "1.5 is not a whole number"),
    ("vni: 4096", "vni: 4096\n      gateways: [10.2.0.1]", "gateways[0]", "lies outside"),
    ("[10.1.0.0/16]", "[10.1.0.0/16, 10.1.1.0/24]", "prefixes[1]", "overlaps 10.1.0.0/16"),
    ("[10.1.0.0/16]", "[10.1.0.0/16, 'fd00::/64']\n      mtu: 1200", "mtu", "needs (1280)"),
    ("[10.1.0.0/16]", "[]", "networks[0].prefixes", "a network needs a prefix"),
    ("[10.1.1.2]", "[10.1.0.1]", "addresses[0]", "address 10.1.0.1 is taken"),
    ("[10.1.1.2]", "[10.2.1.2]", "addresses[0]", "its prefixes: 10.1.0.0/16"),
    ("prefixes: [10.1.0.0/16]", "prefixes: [10.1.0.0/16]\n      pool: [10.2.0.9/32]", "pool[0]",
     "outside"),
    ("[10.1.1.2]", "[10.1.1.2, 10.1.1.2]", "addresses[1]", "address 10.1.1.2 is taken"),
    ("10.1.2.0/24", "10.1.1.2/32", "remote_subnets[0].prefix", "address of a local endpoint"),
    ("provider_address: 192.0.2.2", "provider_address: 192.0.2.1", "provider_address", "own"),
    ("provider_address: 192.0.2.2", "provider_address: 224.0.0.1", "provider_address", "no host"),
    ("provider_address: 192.0.2.2", "provider_address: '2001:db8::1'", "provider_address",
     "(set underlay.address6)"),
    ("{address: 192.0.2.1}", "{address: 192.0.2.1, port: 0}", "underlay.port", "(1-65535)"),
    ("{address: 192.0.2.1}", "{address: 192.0.2.1, mtu: 70000}", "underlay.mtu", "possible MTU"),
    ("{address: 192.0.2.1}", "{address: 192.0.2.1, address6: 192.0.2.9}", "address6", "not IPv6"),
    ("protocol: tcp", "protocol: tpc", "acls[0].protocol", "'tpc' is no protocol"),
    ("protocol: tcp", "protocol: 256", "acls[0].protocol", "(0-255)"),
    ("protocol: tcp", "protocol: any", "acls[0].local_ports", "ports need protocol: tcp or udp"),
    ("protocol: tcp", "protocol: tcp, icmp_type: 8", "acls[0].icmp_type", "has no icmp_type"),
    ("protocol: tcp", "protocol: tcp, priority: 65536", "acls[0].priority", "(0-65535)"),
    ("protocol: tcp", "protocol: tcp, idle: -1", "acls[0].idle", "-1 is not a possible"),
    ("protocol: tcp", "protocol: tcp, local: 10.0.0.0/8, remote: '::/0'", "acls[0].remote",
     "can never match"),
    ("version: 1", "version: 2", "$.version", "2 is not 1"),
    ("version: 1", "version: 1\nnodes: []\nnode_: 1", "$.node_", "unknown key"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "path", "says"), ONE_FAULT)
def test_one_fault(old: str, new: str, path: str, says: str) -> None:
    text = changed((old, new))
    (fault,) = faults_of(text)
    assert fault.path.endswith(path), fault
    assert says in str(fault)
    key = path.rpartition(".")[2].partition("[")[0]
    line = text.splitlines()[fault.line - 1]
    assert path.endswith("]") or key in line or new.splitlines()[0] in line
    (in_json,) = faults_of(json.dumps(_plain(text), indent=1), "x.json")
    assert (in_json.path, in_json.message) == (fault.path, fault.message)


def test_all_faults_at_once_in_order_with_place_and_fix() -> None:
    text = changed(
        ("192.0.2.1}", "192.0.2.1, prot: 4789}"),
        ("vni: 4096", "vni: 99999999"),
        ('dr_mac: "02:00:5e:00:00:0b"', "dr_mac: 8041827055"),
        ("[10.1.1.2]", "[10.1.1.300]"),
        ("action: allow", "action: alow"),
        ("[80]", "[70000, 80]"),
    )
    faults = faults_of(text)
    assert [f.line for f in faults] == [4, 8, 11, 14, 16, 16]
    assert str(faults[-1]) == (
        "node.yaml:16 $.node.networks[0].endpoints[0].acls[0].local_ports[0]: "
        "70000 is not a port (0-65535)"
    )
    assert str(faults[0]).endswith("$.node.underlay.prot: unknown key 'prot' (did you mean port?)")


def test_faulty_items_do_not_hide_what_is_wrong_elsewhere() -> None:
    text = changed(("local_ports: [80]}", "local_ports: [80]}\n            - {name: x}")) + (
        "        - {name: web, addresses: [10.9.9.9]}\n"
        "expect:\n  - {packet: nonsense, at: nowhere, verdict: forward}\n"
    )
    told = "\n".join(map(str, faults_of(text)))
    assert "acl lacks direction" in told and "acl lacks action" in told
    assert "endpoint web is taken" in told and "10.9.9.9 lies outside" in told
    assert "nowhere" not in told  # left-out objects may be what it names


def test_twins_of_every_kind() -> None:
    network = SOUND.partition("networks:\n")[2]
    told = "\n".join(map(str, faults_of(SOUND + network)))
    for what in ("network blue", "VNI 4096", "TAP web"):
        assert f"{what} is taken" in told
    remote = next(line for line in SOUND.splitlines() if "provider_address" in line)
    (fault,) = faults_of(SOUND.replace(remote, f"{remote}\n{remote}"))
    assert "remote subnet 10.1.2.0/24 is taken" in str(fault)
    assert fault.fix == "also at $.node.networks[0].remote_subnets[0]"
    nested = remote.replace("10.1.2.0/24", "10.1.2.128/25")
    loads(SOUND.replace(remote, f"{remote}\n{nested}"))
    (fault,) = faults_of(SOUND.replace(remote, f"{remote}\n{nested.replace(':0b', ':0c')}"))
    assert "one DR MAC a VTEP" in fault.fix


def test_nat_needs_a_way_out() -> None:
    line = next(line for line in SOUND.splitlines() if "host_port" in line)
    text = changed((line + "\n", ""), ("vni: 4096", "vni: 4096\n      outbound_nat: {}"))
    (fault,) = faults_of(text)
    assert fault.path.endswith("outbound_nat") and fault.fix == "add host_port"


def test_node_and_nodes_exclude_each_other() -> None:
    assert "exactly one" in str(faults_of("version: 1\n")[0])
    both = SOUND + "nodes: [{name: b, underlay: {address: 192.0.2.2}}]\n"
    assert any("exactly one" in str(f) for f in faults_of(both))


def test_nodes_of_a_lab_must_agree() -> None:
    text = (POLICIES / "two-hosts.yaml").read_text()
    for old, new, says in (
        ("name: b\n", "name: a\n", "node a is taken"),
        ("underlay: {address: 192.0.2.2}", "underlay: {address: 192.0.2.1}", "underlay address"),
        ("addresses: [10.1.2.2,", "addresses: [10.1.1.3,", "address 10.1.1.3 of VNI 4096"),
        ('dr_mac: "02:00:5e:10:00:0b"\n', 'dr_mac: "02:00:5e:10:00:0c"\n', "is not the DR MAC"),
    ):
        assert old in text
        assert any(says in str(f) for f in faults_of(text.replace(old, new))), says


@pytest.mark.parametrize(
    ("expect", "path", "says"),
    [
        ("{packet: tcp x, at: web, verdict: drop}", "packet", "usage: tcp SRC:PORT > DST:PORT"),
        ("{packet: P, at: wbe, verdict: drop}", "at", "no endpoint 'wbe'"),
        ("{packet: P, at: b/blue/web, verdict: drop}", "at", "no endpoint"),
        ("{packet: P, at: web, verdict: forward, to: wbe}", "to", "no endpoint 'wbe'"),
        ("{packet: P, at: web, verdict: drop, rule: web/htp}", "rule", "did you mean web/http?"),
        ("{packet: P, at: web, verdict: drop, reason: acl_dney}", "reason", "mean acl_deny?"),
        ("{packet: P, at: web, verdict: answer, reason: acl_deny}", "reason", "only what is"),
        ("{packet: P, at: web, verdict: drop, to: host}", "to", "drop and to exclude"),
        ("{packet: P, at: web, verdict: drop, headers: {ttl: 1}}", "headers", "does not leave"),
        ("{packet: P, at: web, verdict: forward, headers: {tll: 1}}", "tll", "did you mean ttl?"),
        ("{packet: P, at: web, verdict: forward, headers: {ttl: [1]}}", "ttl", "a list is not"),
        ("{packet: P, at: web, verdict: maybe}", "verdict", "one of forward, drop, answer, held"),
    ],
)
def test_expectations_that_cannot_be_met(expect: str, path: str, says: str) -> None:
    line = expect.replace("packet: P", "packet: 'udp 10.1.1.2:1 > 10.1.2.2:2'")
    (fault,) = faults_of(f"{SOUND}expect:\n  - {line}\n", reasons=["acl_deny", "no_route"])
    assert fault.path.startswith("$.expect[0]") and fault.path.endswith(path)
    assert says in str(fault)
    assert fault.line == SOUND.count("\n") + 2


def test_expectations_are_judged_beside_faults_of_type() -> None:
    told = faults_of(
        SOUND.replace("protocol: tcp", "protocol: tcp, priority: high")
        + "expect:\n  - {packet: tcp x, at: nowhere, verdict: drop}\n"
    )
    assert [f.path.rpartition(".")[2] for f in told] == ["priority", "packet"]


def test_names_are_found_by_as_much_as_is_needed() -> None:
    doc = load(POLICIES / "overlapping-tenants.yaml")
    assert str(find_endpoint(doc, "only-green")) == "a/green/only-green"
    assert str(find_endpoint(doc, "red/web")) == "a/red/web"
    with pytest.raises(LookupError, match="ambiguous: a/red/web, a/green/web"):
        find_endpoint(doc, "web")


# ---- hostile ones ----------------------------------------------------------------------------

HOSTILE: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (b"a: \xff", "not UTF-8"),
    ("node: 1".encode("utf-16"), "not UTF-8"),
    (b"node:\n  \0", "holds a NUL"),
    (b"a: \x01", "control characters"),
    (b" " * (tree.MAX_BYTES + 1), "larger than 64 MiB"),
    (b"[" * 1_000_000, "nested deeper"),
    (b"- " * 1_000_000, "nested deeper"),
    (b'{"a":' * 1_000_000, "nested deeper"),
    (b"{" * 10_000, "a key is a list or mapping|nested deeper"),  # whoever sees it first
    (b"a: &x [1]\nb: *x", "anchor &x is not accepted"),
    (b"a: &a [*b]", "undefined alias|alias \\*b"),
    (b"!!python/object/apply:os.system [id]", "tag .* is not accepted"),
    (b"version: !!str 1", "tag .* is not accepted"),
    (b"version: 1\nversion: 1", "key 'version' stands twice \\(first in line 1"),
    (b"version: 1\n---\nversion: 1", "second document"),
    (b"version:\n\t1", "not YAML"),
    (b"? [1]\n: 2", "a key is a list"),
    (b"version: " + b"9" * 100_000, "is not 1"),
    (b"node: [" + b"{}, " * 5000 + b"]", "a list stands where a mapping should"),
    (b"nodes: [" + b"{}, " * 5000 + b"]", "given up after 1000 faults"),
]


@pytest.mark.parametrize(("text", "says"), HOSTILE, ids=[says[:20] for _, says in HOSTILE])
def test_hostile_yaml_ends_in_a_clear_error(text: bytes, says: str) -> None:
    started = time.monotonic()
    with pytest.raises(DocumentError, match=says):
        loads(text)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "end of text"),
        ('{"version": 1,}', "unexpected ',}'"),
        ('{"version": 1, "version": 1}', "key 'version' stands twice"),
        ('{"version": 01}', "unexpected '01'"),
        ('{"version": NaN}', "unexpected 'NaN'"),
        ('{"a" 1}', "unexpected '1'"),
        ('{"version": 1}\nx', ":2 .*unexpected 'x'"),
        ('{"\\ud800": 1}', "unknown key"),
        ('{"a": "\\x"}', "not JSON"),
        ('{"a": "' + "x" * 100, "not JSON"),
        ("// comment", "not JSON"),
        ('{"node": ' + "9" * 10_000 + "}", "where a mapping should"),
        ('{"node": 1e999}', "where a mapping should"),
    ],
)
def test_hostile_json_ends_in_a_clear_error(text: str, says: str) -> None:
    with pytest.raises(DocumentError, match=says):
        loads(text, "x.json")


def test_too_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for reader in (yamltree, jsontree):
        monkeypatch.setattr(reader, "MAX_VALUES", 100)
    for name in ("x.yaml", "x.json"):
        assert "values (write large states as JSON)" in str(faults_of(b"[" + b"1," * 200, name)[0])


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(DocumentError, match="cannot be read"):
            load(path)


@given(st.text() | st.text(alphabet="{}[]:,-&*!|>'\"#%@ \n\tab1", max_size=80))
def test_nothing_but_document_errors(text: str) -> None:
    for name in ("x.yaml", "x.json"):
        with pytest.raises(DocumentError):
            loads(text, name)


@settings(deadline=None)
@given(st.data())
def test_damaged_documents_fail_with_a_line(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(SOUND) - 1))
    noise = data.draw(st.text(alphabet="{}[]:,-&*!'\" \n0a", max_size=4))
    text = SOUND[:at] + noise + SOUND[at + data.draw(st.integers(0, 6)) :]
    try:
        loads(text)
    except DocumentError as error:
        lines = text.count("\n") + 1
        assert all(1 <= fault.line <= lines and fault.message for fault in error.faults)


def test_json_follows_the_grammar_where_yaml_would_not() -> None:
    assert _texts('{"a": "\\ud83d\\ude00", "b": "a\\/b",\n\t"c": [-1, 2.5e1, true, null]}') == {
        "a": "\N{GRINNING FACE}",
        "b": "a/b",
        "c": [-1, 25.0, True, None],
    }


def _texts(text: str) -> Any:
    return _bare(jsontree.read(text)[0])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=20,
)


@given(json_values, st.sampled_from([None, 1, "\t"]))
def test_the_json_reader_reads_what_json_writes(value: object, indent: Any) -> None:
    assert _texts(json.dumps(value, indent=indent)) == value


# ---- defaults, size, schema ------------------------------------------------------------------


def test_defaults_are_filled_in() -> None:
    doc = loads(changed(("vni: 4096", "vni: 4096\n      outbound_nat: {}")))
    assert doc.node is not None
    node = defaults.resolve(doc.node)
    network = node.networks[0]
    endpoint = network.endpoints[0]
    assert network.gateways == (ip_address("10.1.0.1"),)
    assert network.mtu == 1450
    assert network.dr_mac is not None and network.dr_mac.packed[0] & 3 == 2
    assert endpoint.mac == "0e:2a:0a:01:01:02"
    assert endpoint.tap is not None and (endpoint.tap.name, endpoint.tap.mtu) == ("web", 1450)
    assert (endpoint.default_in, endpoint.default_out) == ("block", "allow")
    assert endpoint.outbound_nat is not None
    assert endpoint.outbound_nat.vip == ip_address("169.254.7.1")
    assert defaults.resolve(node) == node
    assert defaults.resolve(doc.node) == node


def test_defaults_over_ipv6() -> None:
    doc = loads(
        changed(
            ("{address: 192.0.2.1}", "{address: 192.0.2.1, address6: '2001:db8::1'}"),
            ("provider_address: 192.0.2.2", "provider_address: '2001:db8::2'"),
            ("[10.1.0.0/16]", "['fd00::/64', 10.1.0.0/32, 'fd01::/127']"),
            ("[10.1.1.2]", "['fd00::2']"),
        )
    )
    assert doc.node is not None
    network = defaults.resolve(doc.node).networks[0]
    assert network.mtu == 1430
    assert list(map(str, network.gateways)) == ["fd00::1", "fd01::"]
    mac = network.endpoints[0].mac
    assert mac is not None and mac.startswith("0e:2b:")


def _large(count: int) -> str:
    def remote(i: int) -> dict[str, Any]:
        vtep = i // 100
        return {
            "prefix": f"10.{i >> 8 & 255}.{i & 255}.{(i >> 16) * 64}/26",
            "provider_address": f"198.18.{vtep // 250}.{vtep % 250 + 1}",
            "dr_mac": f"02:01:00:00:{vtep >> 8:02x}:{vtep & 255:02x}",
        }

    network = {"name": "big", "vni": 9, "prefixes": ["10.0.0.0/8"]}
    network["remote_subnets"] = [remote(i) for i in range(count)]
    node = {"name": "a", "underlay": {"address": "192.0.2.1"}, "networks": [network]}
    return json.dumps({"version": 1, "node": node})


def test_a_hundred_thousand_remote_subnets_load_fast() -> None:
    text = _large(100_000)
    best = min(_timed(text) for _ in range(2))
    assert best < 1.5
    assert gc.isenabled()


def _timed(text: str) -> float:
    started = time.process_time()
    doc = loads(text, "x.json")
    taken = time.process_time() - started
    assert doc.node is not None
    remotes = doc.node.networks[0].remote_subnets
    assert len(remotes) == 100_000 and remotes[257].prefix == ip_network("10.1.1.0/26")
    return taken


def test_a_fault_in_large_json_is_found_with_its_line() -> None:
    text = _large(2000).replace(', {"prefix"', ',\n{"prefix"').replace("10.1.1.0/26", "10.1.1.9/26")
    (fault,) = faults_of(text, "x.json")
    assert (fault.line, fault.fix) == (258, "write 10.1.1.0/26")


def test_the_schema_is_the_committed_one() -> None:
    assert schema.text() == (POLICIES / "schema.json").read_text(), "run: dataplane schema"


def test_the_schema_knows_every_key() -> None:
    known = schema.schema()["$defs"]

    def walk(plain: Any, definition: dict[str, Any]) -> Iterator[str]:
        options = [definition, *definition.get("anyOf", ())]
        refs = [o["$ref"] for o in options if "$ref" in o]
        if isinstance(plain, dict) and refs:
            properties = known[refs[0].rpartition("/")[2]]["properties"]
            for key, value in plain.items():
                yield key
                yield from walk(value, properties[key])
        items = [o["items"] for o in options if isinstance(o.get("items"), dict)]
        for item in plain if isinstance(plain, list) and items else ():
            yield from walk(item, items[0])

    for path in FILES:
        assert "vni" in set(walk(_plain(path.read_text()), {"$ref": "#/$defs/Document"}))


def test_starting_up_does_not_pay_for_yaml() -> None:
    import subprocess
    import sys

    code = "import dataplane.document, sys; print('yaml' in sys.modules, 'numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
