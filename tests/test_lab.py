"""The lab, as the quick start shows it, and what it promises."""

import pytest

import dataplane
from dataplane import DataplaneError, Lab, Reason, Verdict
from dataplane.model import OutboundNat
from dataplane.packet import build, describe, parse
from dataplane.stats import adds_up


def two_nodes(lab: Lab):
    a = lab.node("a", underlay="192.0.2.1", host=("198.51.100.1", "198.51.100.2"))
    b = lab.node("b", underlay="192.0.2.2")
    lab.network("blue", vni=4096, cidr="10.1.0.0/16", nodes=[a, b])
    return a.endpoint("web", network="blue", ip="10.1.1.2"), b.endpoint(
        "db", network="blue", ip="10.1.2.2"
    )


def frame(endpoint, words: str) -> bytes:
    return build(parse(words), endpoint.mac, endpoint.gateway_mac)


def test_quick_start():
    scapy = pytest.importorskip("scapy.all")
    with Lab() as lab:
        web, db = two_nodes(lab)
        web.send(scapy.Ether() / scapy.IP(dst=db.ip) / scapy.TCP(dport=5432))
        received = db.recv().scapy()
        assert received["IP"].src == web.ip and received["TCP"].dport == 5432
        assert received["IP"].ttl == 63
        assert "node  a" in str(lab.last_walk()) and "flowchart" in lab.last_walk().mermaid()


def test_answers_come_back():
    with Lab() as lab:
        web, db = two_nodes(lab)
        web.send(frame(web, "icmp 10.1.1.2 > 10.1.2.2 echo id 7 seq 1"))
        assert describe(db.recv())["id"] == 7
        db.send(frame(db, "icmp 10.1.2.2 > 10.1.1.2 reply id 7 seq 1"))
        assert describe(web.recv())["type"] == 0
        web.send(frame(web, "arp who-has 10.1.0.1 tell 10.1.1.2"))
        assert describe(web.recv())["sha"] == web.gateway_mac
        web.send(frame(web, "icmp 10.1.1.2 > 10.1.0.1 echo id 7 seq 1"))
        assert describe(web.recv())["src"] == "10.1.0.1"


def test_a_drop_says_why():
    with Lab() as lab:
        web, db = two_nodes(lab)
        journey = web.send(frame(web, "udp 10.1.1.2:1 > 203.0.113.9:53"))
        assert journey.verdict is Verdict.DROP
        assert journey.last.outcome.reason is Reason["NO_ROUTE"]
        with pytest.raises(DataplaneError, match="no_route"):
            db.recv()


def test_endpoints_may_come_and_change_while_it_runs():
    with Lab() as lab:
        web, db = two_nodes(lab)
        words = "udp 10.1.1.2:1 > 10.1.2.3:53"
        assert web.send(frame(web, words)).last.outcome.reason is Reason["NO_SUCH_ENDPOINT"]
        late = db.node.endpoint("late", network="blue", ip="10.1.2.3")
        web.send(frame(web, words))
        assert str(late.recv()).startswith("udp 10.1.1.2:1 > 10.1.2.3:53")


def test_the_outside_is_a_queue():
    with Lab() as lab:
        web, _ = two_nodes(lab)
        web.node.change("blue", outbound_nat=OutboundNat())
        web.send(frame(web, "udp 10.1.1.2:1 > 203.0.113.9:53"))
        sent = web.node.outside.popleft()
        headers = describe(sent)
        assert headers["src"] == "198.51.100.1"
        answer = parse(f"udp 203.0.113.9:53 > 198.51.100.1:{headers['sport']}")
        web.node.host_send(build(answer, headers["dmac"], headers["smac"]))
        assert describe(web.recv())["dport"] == 1


def test_the_engines_law_holds_on_every_node():
    with Lab() as lab:
        web, db = two_nodes(lab)
        for words in ("udp 10.1.1.2:1 > 10.1.2.2:53", "udp 10.1.1.3:1 > 10.1.2.2:53"):
            web.send(frame(web, words))
        for node in (web.node, db.node):
            totals = node.engine.stats().totals
            assert adds_up(totals)


def test_frames_to_nobody_are_kept():
    document = dataplane.loads(
        """
        node:
          name: a
          underlay: {address: 192.0.2.1}
          networks:
            - name: blue
              vni: 5
              prefixes: [10.1.0.0/16]
              remote_subnets:
                - {prefix: 10.1.2.0/24, provider_address: 192.0.2.9, dr_mac: "02:00:00:00:00:09"}
              endpoints: [{name: web, addresses: [10.1.1.2]}]
        """
    )
    with Lab.from_document(document) as lab:
        web = lab.nodes["a"].endpoint("web", network="blue")
        web.send(frame(web, "udp 10.1.1.2:1 > 10.1.2.2:53"))
        outer = describe(lab.lost.popleft())["outer"]
        assert (outer["dst"], outer["vni"]) == ("192.0.2.9", 5)


def test_closing_twice_is_harmless():
    lab = Lab()
    two_nodes(lab)
    lab.settle()
    lab.close()
    lab.close()
