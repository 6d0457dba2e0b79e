"""Dependencies point downward: tiers as data, low to high; a file uses only lower ones."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

C_TIERS = (
    ("dp", "reason", "status"),
    ("base", "dp_io", "dp_offload", "dp_bench"),
    ("wire", "cursor", "checksum", "hash", "array", "interval", "counters"),
    ("packet",),
    ("services", "balance", "share", "store", "grace", "observe"),
    (
        "trie",
        "parse",
        "encap",
        "group",
        "binding",
        "flow",
        "respond",
        "trace",
        "limit",
        "fragment",
        "path",
        "split",
    ),
    ("parse_outer", "parse_quote", "routes", "tcp", "vteps"),
    ("snapshot",),
    ("transpose", "nd", "arp", "segment", "coalesce"),
    ("layer",),
    ("nat",),
    ("lb",),
    ("walk",),
    ("state",),
    ("pass",),
    ("express", "note"),
    ("engine",),
    ("api", "names", "bench", "io", "offload", "save"),
    ("io_ways", "io_xdp_program", "io_xsk"),
    ("io_icmp", "io_loop", "io_tap", "io_udp", "io_udp_send", "io_xdp"),
)

PYTHON_TIERS = (
    (
        "_engine",
        "cni.plugin",
        "clock",
        "errors",
        "garbage",
        "logs",
        "memo",
        "service",
        "standing",
        "tables",
    ),
    ("sandbox", "cni.install"),
    ("address", "regions", "tree"),
    ("model", "ids", "jsontree", "yamltree", "netns", "pcap", "packet_spec", "reasons", "records"),
    (
        "convert",
        "defaults",
        "graph",
        "merge",
        "names",
        "schema",
        "shares",
        "packet_build",
        "validate_values",
        "version",
        "vips",
    ),
    ("draft", "hns.errors", "hns"),
    ("hns.values",),
    ("hns.v1", "hns.flags"),
    ("hns.normal",),
    ("hns.store", "hns.rules", "hns.balancers"),
    ("hns.calls", "hns.translate", "hns.export"),
    ("packet_describe", "graph_svg"),
    (
        "packet",
        "ping",
        "graph_forms",
        "validate_expect",
        "validate_flannel",
        "validate_remotes",
        "validate_services",
    ),
    ("validate_host",),
    ("validate",),
    ("document", "ipam", "rows"),
    ("encoder",),
    ("state_dir",),
    ("routing",),
    ("groups", "services"),
    ("rules",),
    ("lint", "remotes", "snapshot"),
    ("layers", "plan"),
    ("batch", "flows", "offload", "saved", "stats", "trace"),
    ("observe",),
    ("engine",),
    ("next_hops",),
    ("xdp",),
    ("lab", "link", "port"),
    ("tap", "vxlan_socket"),
    ("ports",),
    ("direct", "expect", "forwarder", "handover", "host_nat", "report"),
    ("node_ports",),
    ("adapters.scapy", "adapters.pytap2", "adapters"),
    ("daemon", "api.mtus", "api.peers", "ingress", "bench_traffic", "demo_base", "demo_net"),
    ("hns.door", "cni", "cni.attachments", "cni.check"),
    ("flannel", "flannel.access", "flannel.documents"),
    ("flannel.etcd",),
    (
        "flannel.keeper",
        "flannel.link",
        "flannel.peers",
        "flannel.subnet_env",
    ),
    ("flannel.follower", "flannel.translate", "etcd_policy", "etcd_policy.common"),
    ("etcd_policy.door", "flannel.door", "kubernetes", "kubernetes.access", "kubernetes.objects"),
    ("kubernetes.back_off",),
    ("kubernetes.client", "kubernetes.endpoints", "kubernetes.nodes", "kubernetes.policies"),
    ("kubernetes.peers", "kubernetes.services"),
    ("kubernetes.announcer", "kubernetes.reflector"),
    ("kubernetes.door",),
    (
        "commands",
        "api.edits",
        "api.filters",
        "api.finding",
        "api.resources",
        "api.sockets",
        "api.page",
        "api",
    ),
    ("api.flow_table", "api.host", "api.client"),
    ("api.health",),
    ("api.reach",),
    ("api.metrics", "api.aio", "api.events", "api.call", "api.shapes"),
    ("api.openapi", "api.hub"),
    ("api.streams",),
    ("api.server",),
    ("api.serve",),
    ("run", "api.bridge"),
    ("bench_play", "demo_lab", "demo_node", "demo_traffic"),
    (
        "bench_attack",
        "bench_batch",
        "bench_commit",
        "bench_counters",
        "bench_stages",
        "bench_workers",
    ),
    ("bench_latency", "bench_memory"),
    ("bench",),
    ("demo_live",),
    ("demo",),
    ("columns", "bundle"),
    ("top",),
    ("top_screen",),
    ("verbs", "verbs.base", "manual"),
    (
        "verbs.change",
        "verbs.follow",
        "verbs.health",
        "verbs.look",
        "verbs.page",
        "verbs.push",
        "verbs.reach",
    ),
    ("verbs.counters", "verbs.windows"),
    ("cli_options", "cli_words"),
    ("cli_windows",),
    ("cli_cni", "cli_flannel", "cli_kubernetes", "cli_node"),
    ("cli_policy",),
    ("cli",),
    ("__main__", "__init__"),
)


def c_uses(path: Path) -> Iterator[str]:
    for name in re.findall(r'^#include "(\w+)\.(?:h|def)"', path.read_text(), re.MULTILINE):
        if name != path.stem:
            yield name


def python_uses(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (_module(alias.name) for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            if node.module == "dataplane":
                yield from (_module(f"dataplane.{alias.name}") for alias in node.names)
            elif _is_ours(node.module or ""):
                yield _module(node.module or "")


def _is_ours(name: str) -> bool:
    return name == "dataplane" or name.startswith("dataplane.")


def _module(name: str) -> str:
    return name.removeprefix("dataplane").removeprefix(".") or "__init__"


def _name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT / "dataplane").with_suffix("").parts)
    return name.removesuffix(".__init__")


C_FILES = {p: p.stem for p in sorted((ROOT / "csrc").glob("*")) if p.suffix in (".c", ".h", ".def")}
PYTHON_FILES = {p: _name(p) for p in sorted((ROOT / "dataplane").rglob("*.py"))}


def upward(
    tiers: tuple[tuple[str, ...], ...], user: str, used: Iterator[str]
) -> list[tuple[str, str]]:
    height = {name: i for i, tier in enumerate(tiers) for name in tier}
    assert user in height, f"{user} has no tier yet"
    return [(user, name) for name in used if height.get(name, 0) >= height[user]]


@pytest.mark.parametrize("path", C_FILES, ids=lambda p: p.name)
def test_c_files_include_only_lower_ones(path: Path) -> None:
    assert upward(C_TIERS, C_FILES[path], c_uses(path)) == []


@pytest.mark.parametrize("path", PYTHON_FILES, ids=PYTHON_FILES.get)
def test_modules_import_only_lower_ones(path: Path) -> None:
    assert upward(PYTHON_TIERS, PYTHON_FILES[path], python_uses(path)) == []


@pytest.mark.parametrize(
    ("tiers", "names"),
    [(C_TIERS, C_FILES.values()), (PYTHON_TIERS, [*PYTHON_FILES.values(), "_engine"])],
    ids=["csrc", "dataplane"],
)
def test_every_file_has_its_tier(tiers: tuple[tuple[str, ...], ...], names: list[str]) -> None:
    listed = [name for tier in tiers for name in tier]
    assert len(listed) == len(set(listed))
    assert set(names) - set(listed) == set()  # files without a tier
    assert set(listed) - set(names) == set()  # tiers of files that are gone


def test_an_upward_edge_is_found() -> None:
    assert upward(C_TIERS, "base", iter(["dp", "packet"])) == [("base", "packet")]
