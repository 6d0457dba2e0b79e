"""Metrics for Prometheus."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from dataplane.api.health import unready
from dataplane.api.peers import STATES, peers
from dataplane.daemon import Daemon
from dataplane.stats import GAUGES

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PORT_COUNTERS = ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes", "dropped")


def text(daemon: Daemon) -> bytes:
    """All of them; names begin with `dataplane_`, those of counters end in `_total`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(daemon))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def collect(self) -> Iterator[Metric]:
        stats = self._daemon.engine.stats()
        info = GaugeMetricFamily("dataplane_info", "The node.", labels=["node"])
        info.add_metric([self._daemon.policy.name], 1)
        yield info
        yield GaugeMetricFamily(
            "dataplane_ready", "1 where /readyz says so.", value=not unready(self._daemon)
        )
        yield CounterMetricFamily(
            "dataplane_observer_lost",
            "Records of events and captures that found no room.",
            value=self._daemon.engine.unseen,
        )
        for name, value in stats.totals.items():
            kind = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
            yield kind(f"dataplane_{name}", f"Of the engine: {name}.", value=value)
        drops = CounterMetricFamily(
            "dataplane_drops", "Packets dropped, by layer and reason.", labels=["layer", "reason"]
        )
        for reason, count in stats.reasons.items():
            drops.add_metric([reason.layer, str(reason)], count)
        yield drops
        yield _counter("rule_flows", "Flows that a rule decided.", "rule", stats.rules.items())
        yield _counter("layer_walks", "New flows that met a layer.", "layer", stats.layers.items())
        yield from _per_port("port", PORT_COUNTERS, stats.ports)
        io = self._daemon.forwarder.stats()
        yield from _per_port("io", tuple(next(iter(io.values()), {})), io)
        yield from self._peers()

    def _peers(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "dataplane_peer_state", "1 for the state a peer is in.", labels=["peer", "state"]
        )
        heard = GaugeMetricFamily(
            "dataplane_peer_last_receive_seconds",
            "Since a peer's last packet of a flow that is alive.",
            labels=["peer"],
        )
        for peer in peers(self._daemon.engine):
            if peer["last_rx"] is not None:
                heard.add_metric([peer["name"]], peer["last_rx"])
            for state in STATES:
                family.add_metric([peer["name"], state], peer["state"] == state)
        yield family
        yield heard


def _counter(
    name: str, help_text: str, label: str, samples: Iterable[tuple[str, int]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"dataplane_{name}", help_text, labels=[label])
    for value, count in samples:
        family.add_metric([value], count)
    return family


def _per_port(
    name: str, fields: Iterable[str], ports: Mapping[str, Mapping[str, int]]
) -> Iterator[Metric]:
    for field in fields:
        samples = [(port, counters[field]) for port, counters in ports.items()]
        yield _counter(f"{name}_{field}", f"Of each port: {field}.", "port", samples)
