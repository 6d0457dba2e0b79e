"""Expectations of documents: met ones pass, broken ones say where and why."""

import pytest

import dataplane
from dataplane import DataplaneError, prove

LAB = """
nodes:
  - name: a
    underlay: {address: 192.0.2.1}
    host_port: {address: 198.51.100.1, peer: 198.51.100.2, tap: {name: dp0}}
    networks:
      - name: blue
        vni: 4096
        prefixes: [10.1.0.0/16]
        dr_mac: "02:00:00:00:0a:00"
        outbound_nat: {}
        remote_subnets:
          - {prefix: 10.1.2.0/24, provider_address: 192.0.2.2, dr_mac: "02:00:00:00:0b:00"}
          - {prefix: 10.1.3.0/24, provider_address: 192.0.2.3, dr_mac: "02:00:00:00:0c:00"}
        endpoints:
          - name: web
            addresses: [10.1.1.2]
            acls:
              - {name: no-ssh, direction: out, action: block, protocol: tcp, remote_ports: [22]}
              - {name: rest, direction: out, action: allow, priority: 2000}
          - {name: cache, addresses: [10.1.1.3]}
  - name: b
    underlay: {address: 192.0.2.2}
    networks:
      - name: blue
        vni: 4096
        prefixes: [10.1.0.0/16]
        dr_mac: "02:00:00:00:0b:00"
        remote_subnets:
          - {prefix: 10.1.1.0/24, provider_address: 192.0.2.1, dr_mac: "02:00:00:00:0a:00"}
        endpoints:
          - name: db
            addresses: [10.1.2.2]
            acls:
              - {name: sql, direction: in, action: allow, protocol: tcp, local_ports: [5432]}
expect:
"""

MET = [
    "{packet: 'tcp 10.1.1.2:1 > 10.1.2.2:5432 syn', at: web, verdict: forward, to: db,"
    " encap: 192.0.2.2, vni: 4096, rule: db/sql, headers: {ttl: 63}, reply: forward}",
    "{packet: 'tcp 10.1.1.2:1 > 10.1.2.2:80 syn', at: web, verdict: drop, reason: acl_deny}",
    "{packet: 'tcp 10.1.1.2:1 > 10.1.2.2:22 syn', at: web, verdict: drop, rule: web/no-ssh}",
    "{packet: 'udp 10.1.1.2:1 > 10.1.1.3:9', at: a/blue/web, verdict: forward, to: blue/cache,"
    " reply: forward}",
    "{packet: 'udp 10.1.1.2:1 > 203.0.113.9:53', at: web, verdict: forward, to: host,"
    " headers: {src: 198.51.100.1}, reply: forward}",
    "{packet: 'icmp 10.1.1.2 > 10.1.0.1 echo id 3', at: web, verdict: answer,"
    " headers: {src: 10.1.0.1, dst: 10.1.1.2, id: 3}}",
    "{packet: 'udp 10.1.1.2:1 > 10.1.3.9:9', at: web, verdict: forward, to: underlay,"
    " encap: 192.0.2.3, headers: {dmac: '02:00:00:00:0c:00'}, reply: forward}",
]


def findings(*expectations: str):
    text = LAB + "".join(f"  - {line}\n" for line in expectations)
    return prove(dataplane.loads(text))


@pytest.mark.parametrize("line", MET)
def test_met(line):
    (finding,) = findings(line)
    assert finding.passed, str(finding)
    assert str(finding).startswith("ok    $.expect[0]")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (
            "{packet: 'tcp 10.1.1.2:1 > 10.1.2.2:80 syn', at: web, verdict: forward}",
            "verdict: expected forward, found drop for acl_deny at b",
        ),
        (
            "{packet: 'udp 10.1.1.2:1 > 10.1.9.9:9', at: web, verdict: drop, reason: acl_deny}",
            "reason: expected acl_deny, found drop for no_such_endpoint",
        ),
        (
            "{packet: 'tcp 10.1.1.2:1 > 10.1.2.2:22 syn', at: web, verdict: drop, rule: web/rest}",
            "rule: expected web/rest, found blue/web/no-ssh",
        ),
        (
            "{packet: 'udp 10.1.1.2:1 > 10.1.1.3:9', at: web, verdict: forward, to: db}",
            "to: expected db, found a/blue/cache",
        ),
        (
            "{packet: 'udp 10.1.1.2:1 > 10.1.1.3:9', at: web, verdict: forward, encap: 192.0.2.2}",
            "encap: expected 192.0.2.2, found no encapsulation",
        ),
        (
            "{packet: 'udp 10.1.1.2:1 > 10.1.3.3:9', at: web, verdict: forward, vni: 7}",
            "vni: expected 7, found 4096",
        ),
        (
            "{packet: 'udp 10.1.1.2:1 > 10.1.1.3:9', at: web, verdict: forward, headers: {ttl: 9}}",
            "headers.ttl: expected 9, found 63",
        ),
        (
            "{packet: 'udp 10.1.1.2:1 > 10.1.1.3:9', at: web, verdict: forward, reply: drop}",
            "reply: expected drop, found forward to blue/web",
        ),
    ],
)
def test_broken(line, fault):
    (finding,) = findings(line)
    assert not finding.passed
    assert fault in str(finding)
    assert finding.to_dict()["path"] == "$.expect[0]"


def test_order_means_nothing():
    there, back = MET[0], MET[1]
    assert all(f.passed for f in findings(back, there, back, there, *MET))


def test_a_document_that_was_not_checked_is_refused():
    from dataplane.model import Document, Expect

    expect = Expect(packet="nonsense", at="nobody", verdict="drop")
    node = dataplane.loads(LAB.replace("expect:\n", "")).nodes[0]
    with pytest.raises(DataplaneError, match=r"\$.expect\[0\]"):
        prove(Document(node=node, expect=(expect,)))
