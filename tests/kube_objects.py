"""Objects of Kubernetes as an API server has them, in few words."""

from typing import Any

Object = dict[str, Any]

CONFIG = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 1, "Port": 4789}}
FLANNEL = "flannel.alpha.coreos.com/"


def meta(name: str, namespace: str = "", **labels: str) -> Object:
    made: Object = {"name": name}
    made |= {"namespace": namespace} if namespace else {}
    return made | ({"labels": labels} if labels else {})


def node(name: str, cidr: str, public: str = "", mac: str = "", vni: int = 1) -> Object:
    """With a public address: one that flannel has annotated."""
    made: Object = {"metadata": meta(name), "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}
    if public:
        made["metadata"]["annotations"] = {
            f"{FLANNEL}kube-subnet-manager": "true",
            f"{FLANNEL}backend-type": "vxlan",
            f"{FLANNEL}backend-data": f'{{"VNI":{vni},"VtepMAC":"{mac}"}}',
            f"{FLANNEL}public-ip": public,
        }
    return made


def service(name: str, *ips: str, namespace: str = "default", **spec: Any) -> Object:
    """Port 80 of TCP, where `ports` are not given."""
    ports = spec.pop("ports", [{"port": 80, "protocol": "TCP"}])
    whole = {"type": "ClusterIP", "clusterIPs": list(ips), "ports": ports, **spec}
    return {"metadata": meta(name, namespace), "spec": whole}


def endpoint(address: str, **conditions: bool) -> Object:
    return {"addresses": [address], "conditions": {"ready": True} | conditions}


def endpoint_slice(
    of: str, *endpoints: Object | str, name: str = "", namespace: str = "default", port: int = 8080,
    family: str = "IPv4", ports: list[Object] | None = None,
) -> Object:  # fmt: skip
    made = [endpoint(e) if isinstance(e, str) else e for e in endpoints]
    return {
        "metadata": {
            "name": name or f"{of}-1",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": of},
        },
        "addressType": family,
        "ports": ports or [{"name": "", "protocol": "TCP", "port": port}],
        "endpoints": made,
    }


def pod(
    name: str, address: str, at: str = "us", *, namespace: str = "default", **labels: str
) -> Object:
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
    return {
        "metadata": meta(name, namespace, **labels),
        "spec": {"nodeName": at, "containers": [{"name": "c"}]},
        "status": status,
    }


def network_policy(name: str, namespace: str = "default", **spec: Any) -> Object:
    return {"metadata": meta(name, namespace), "spec": {"podSelector": {}, **spec}}
