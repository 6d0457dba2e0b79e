#!/usr/bin/python3 -IS
"""CNI plugin of a dataplane node (specification 0.3.0 to 1.1.0).

One file of the standard library, since runtimes run it in places of their own, and wait for it. The
node does the work; this asks it over its control socket.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

TYPE_CHECKING = False  # typing takes longer to load than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO

    Value = dict[str, Any]
    Environment = dict[str, str]

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
SOCKETS = "/run/dataplane"
PATIENCE = 30.0  # seconds that one answer may take
TRIES, PAUSE = 20, 0.1  # while another process takes over
BAD_VERSION, UNSUPPORTED, UNKNOWN_CONTAINER, BAD_ENVIRONMENT, IO = 1, 2, 3, 4, 5
UNDECODABLE, BAD_CONFIG, BAD_NETNS, TRY_LATER, NOT_AVAILABLE = 6, 7, 8, 11, 50
REFUSED, INTERNAL = 100, 999
BY_STATUS = {400: BAD_CONFIG, 404: UNKNOWN_CONTAINER, 422: BAD_CONFIG}  # else REFUSED
NETNS_NEEDED = ("ADD", "CHECK")
ATTACHMENT_NEEDED = ("ADD", "CHECK", "DEL")
OWN = "dataplane.endpoint"  # our capability: what one container has besides `endpoint`
CAPABILITIES = ("ips", "mac", "portMappings", "dns", OWN)


class Failure(Exception):
    """What the runtime is told: a code of the specification, a message and details."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(code, message, details)


def decoded(data: bytes) -> Value:
    """The JSON object that they are. Raises ValueError."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} is no object")
    return value


# ---- the node ----------------------------------------------------------------------------------


def socket_of(config: Value) -> str:
    """The node's control socket: as configured, else the only one of this host."""
    if "socket" in config:
        return text(config, "socket")
    try:
        found = [name for name in os.listdir(SOCKETS) if name.endswith(".sock")]
    except OSError:
        found = []
    if len(found) > 1:
        raise Failure(BAD_CONFIG, 'several nodes run here: configure "socket"', ", ".join(found))
    if not found:
        raise Failure(TRY_LATER, f"no node runs here: there is no socket in {SOCKETS}")
    return f"{SOCKETS}/{found[0]}"


def ask(config: Value, method: str, path: str, value: Value | None = None) -> Value:
    """The node's answer. While another process takes the node over it is asked again."""
    for _ in range(TRIES):
        status, told = asked(socket_of(config), method, path, value)
        if status != 409 or "ask again" not in told.get("title", ""):
            break
        time.sleep(PAUSE)
    if status < 400:
        return told
    faults = told.get("faults", [])
    lines = [" ".join(filter(None, (f["path"], f["message"], f["fix"]))) for f in faults]
    title = told.get("title", f"status {status}")
    raise Failure(BY_STATUS.get(status, REFUSED), title, "; ".join(lines))


def asked(path: str, method: str, target: str, value: Value | None) -> tuple[int, Value]:
    """The status and value of one HTTP exchange."""
    body = b"" if value is None else json.dumps(value).encode()
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(path)
            sock.sendall(head.encode() + body)
            with sock.makefile("rb") as stream:
                answer = stream.read()
        told, _, value_told = answer.partition(b"\r\n\r\n")
        return int(told.split(b" ", 2)[1]), decoded(value_told)
    except OSError as error:
        raise Failure(TRY_LATER, f"{path}: no node answers", str(error)) from None
    except (ValueError, IndexError):
        raise Failure(IO, f"{path}: no answer of a node", "is this its control socket?") from None


def quoted(word: str) -> str:
    """As it may stand in a URL."""
    plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
    return "".join(chr(b) if chr(b) in plain else f"%{b:02X}" for b in word.encode())


def attachment(env: Environment) -> str:
    return f"/v1/attachments/{quoted(env['CNI_CONTAINERID'])}/{quoted(env['CNI_IFNAME'])}"


# ---- what is asked for -------------------------------------------------------------------------


def text(config: Value, key: str) -> str:
    value = config.get(key)
    if not isinstance(value, str) or not value:
        raise Failure(BAD_CONFIG, f'"{key}" is no text: {json.dumps(value)}')
    return value


def mapping(config: Value, key: str) -> Value:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise Failure(BAD_CONFIG, f'"{key}" is no object: {json.dumps(value)}')
    return value


def items(config: Value, key: str, kind: type) -> list[Any]:
    value = config.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise Failure(BAD_CONFIG, f'"{key}" is no list of such: {json.dumps(value)}')
    return value


def endpoint_of(config: Value, env: Environment, addresses: list[str]) -> Value:
    """The endpoint that the node shall make; `addresses` are those of an IPAM plugin, if any."""
    runtime = mapping(config, "runtimeConfig")
    for name in runtime:
        if name not in CAPABILITIES:
            raise Failure(UNSUPPORTED, f'runtimeConfig "{name}" is not supported')
    wanted = laid(mapping(config, "endpoint"), mapping(runtime, OWN))
    conventional = mapping(mapping(config, "args"), "cni")  # others of them may be ignored
    words = dict(w.partition("=")[::2] for w in env.get("CNI_ARGS", "").split(";") if w)
    asked_for = items(runtime, "ips", str) or items(conventional, "ips", str)
    if given := addresses or asked_for or list(filter(None, [words.get("IP")])):
        wanted["addresses"] = [address.partition("/")[0] for address in given]
    if mac := runtime.get("mac") or words.get("MAC"):
        wanted["mac"] = mac
    if mapped := items(runtime, "portMappings", dict):
        wanted["port_mappings"] = [
            *items(wanted, "port_mappings", dict),
            *map(port_mapping, mapped),
        ]
    wanted["tap"] = {"name": env["CNI_IFNAME"], "netns": env["CNI_NETNS"]}
    if "mtu" in config:
        wanted["tap"]["mtu"] = config["mtu"]
    return wanted


def laid(lower: Value, upper: Value) -> Value:
    """One container's words over those for all of the network. Lists are joined, its own first: so
    faults have the positions it gave, and its ACLs win where priorities are equal. One of its ACLs
    takes the place of another of that name."""
    made = lower | upper
    for key in ("acls", "port_mappings"):
        if key in lower and key in upper:
            own = items(upper, key, dict)
            names = [item["name"] for item in own if "name" in item]
            made[key] = own + [i for i in items(lower, key, dict) if i.get("name") not in names]
    return made


def port_mapping(asked_for: Value) -> Value:
    """In our words: an outside port that leads to the container."""
    made = {
        "protocol": asked_for.get("protocol") or "tcp",
        "port": asked_for.get("hostPort"),
        "target_port": asked_for.get("containerPort"),
    }
    host = asked_for.get("hostIP")
    return made | ({"vip": host} if host and host not in ("0.0.0.0", "::") else {})


# ---- what is told ------------------------------------------------------------------------------


def result(config: Value, env: Environment, told: Value) -> Value:
    """Of ADD, in the shape of the version asked for, behind what plugins before this made."""
    version = config["cniVersion"]
    before = mapping(config, "prevResult")
    interface = {"name": env["CNI_IFNAME"], "mac": told["mac"], "sandbox": env["CNI_NETNS"]}
    if version == "1.1.0":
        interface["mtu"] = told["mtu"]
    interfaces = [*items(before, "interfaces", dict), interface]
    ips, routes = items(before, "ips", dict), items(before, "routes", dict)
    for each in told["addresses"]:
        six = ":" in each["address"]
        ip = {"address": each["address"], "interface": len(interfaces) - 1}
        if version < "1":
            ip["version"] = "6" if six else "4"
        if each["gateway"]:
            ip["gateway"] = each["gateway"]
            routes = [*routes, {"dst": "::/0" if six else "0.0.0.0/0", "gw": each["gateway"]}]
        ips = [*ips, ip]
    dns = mapping(mapping(config, "runtimeConfig"), "dns") or mapping(config, "dns")
    return before | {
        "cniVersion": version,
        "interfaces": interfaces,
        "ips": ips,
        "routes": routes,
        "dns": mapping(before, "dns") or dns,
    }


# ---- another plugin's addresses ----------------------------------------------------------------


def delegated(config: Value, env: Environment, command: str) -> Value | None:
    """What the IPAM plugin says to this command; None: none is configured."""
    kind = mapping(config, "ipam").get("type")
    if kind is None:
        return None
    if not isinstance(kind, str) or "/" in kind:
        raise Failure(BAD_CONFIG, f"ipam.type is no plugin's name: {json.dumps(kind)}")
    import subprocess

    places = [f"{place}/{kind}" for place in env.get("CNI_PATH", "").split(":") if place]
    path = next((place for place in places if os.access(place, os.X_OK)), None)
    if path is None:
        raise Failure(BAD_CONFIG, f"there is no IPAM plugin {kind} in CNI_PATH")
    try:
        done = subprocess.run(
            [path],
            input=json.dumps(config).encode(),
            stdout=subprocess.PIPE,
            env={**env, "CNI_COMMAND": command},
            check=False,
        )
        told = decoded(done.stdout) if done.stdout.strip() else {}
    except OSError as error:
        raise Failure(IO, f"IPAM plugin {kind} does not run", str(error)) from None
    except ValueError as error:
        raise Failure(
            UNDECODABLE, f"IPAM plugin {kind}: its answer is no JSON object", str(error)
        ) from None
    if done.returncode:
        code, why = told.get("code"), told.get("msg", f"exit status {done.returncode}")
        known = code if isinstance(code, int) and code > 0 else IO
        raise Failure(known, f"{kind}: {why}", str(told.get("details", "")))
    return told


def leased(config: Value, env: Environment) -> list[str]:
    """The addresses, with lengths, that the IPAM plugin gives; none where there is no such."""
    told = delegated(config, env, "ADD")
    if told is None:
        return []
    ips = told.get("ips")
    if not isinstance(ips, list) or not ips:
        raise Failure(UNDECODABLE, "the IPAM plugin's answer has no ips", json.dumps(told))
    if not all(isinstance(ip, dict) and isinstance(ip.get("address"), str) for ip in ips):
        raise Failure(UNDECODABLE, "one of the IPAM plugin's ips has no address", json.dumps(ips))
    return [ip["address"] for ip in ips]


# ---- commands ----------------------------------------------------------------------------------


def add(config: Value, env: Environment) -> Value:
    """All of it or nothing: what fails takes back what was made before."""
    network = text(config, "network")
    asked_for = f"{attachment(env)}?network={quoted(network)}&config={quoted(config['name'])}"
    try:
        endpoint = endpoint_of(config, env, leased(config, env))
        told = ask(config, "PUT", asked_for, endpoint)
        try:
            return result(config, env, told)
        except Exception:
            taken_back(ask, config, "DELETE", attachment(env))
            raise
    except Exception:
        taken_back(delegated, config, env, "DEL")
        raise


def taken_back(step: Callable[..., object], *words: object) -> None:
    """As far as it can be: the failure that led here is what the runtime is told."""
    from contextlib import suppress

    with suppress(Failure):
        step(*words)


def delete(config: Value, env: Environment) -> None:
    delegated(config, env, "DEL")
    ask(config, "DELETE", attachment(env))


def check(config: Value, env: Environment) -> None:
    """Raises Failure where something of what ADD made is gone, or is another."""
    before = mapping(config, "prevResult")
    if not before:
        raise Failure(BAD_CONFIG, "CHECK needs prevResult")
    delegated(config, env, "CHECK")
    told = ask(config, "GET", attachment(env))
    own = {ip.get("address") for ip in items(before, "ips", dict)}
    faults = told["faults"] + [
        f"{each['address']} is not in prevResult"
        for each in told["addresses"]
        if each["address"] not in own
    ]
    if faults:
        raise Failure(REFUSED, f"{env['CNI_IFNAME']} is not as it was made", "; ".join(faults))


def status(config: Value, env: Environment) -> None:
    delegated(config, env, "STATUS")
    try:
        _, told = asked(socket_of(config), "GET", "/readyz", None)
    except Failure as failure:
        raise Failure(NOT_AVAILABLE, *failure.args[1:]) from None
    if not told.get("ready"):
        title = told.get("title", "the node is not ready")
        raise Failure(NOT_AVAILABLE, title, "; ".join(told.get("faults", [])))


def collect(config: Value, env: Environment) -> None:
    """What is not listed goes; IPAM is asked to do so, too, whatever became of that."""
    valid = items(config, "cni.dev/valid-attachments", dict)
    known = {"valid": [[v.get("containerID"), v.get("ifname")] for v in valid]}
    try:
        ask(config, "POST", f"/v1/attachments?config={quoted(config['name'])}", known)
    finally:
        delegated(config, env, "GC")


COMMANDS: dict[str, Callable[[Value, Environment], Value | None]] = {
    "ADD": add,
    "DEL": delete,
    "CHECK": check,
    "STATUS": status,
    "GC": collect,
}


# ---- the call ----------------------------------------------------------------------------------


def check_environment(command: str, env: Environment) -> None:
    """Raises Failure."""
    if command in ATTACHMENT_NEEDED:
        container, ifname = word(env, "CNI_CONTAINERID"), word(env, "CNI_IFNAME")
        if not container[0].isalnum():
            message = f"CNI_CONTAINERID {container} begins with no letter or digit"
            raise Failure(BAD_ENVIRONMENT, message)
        if len(ifname) > 15 or ifname in (".", ".."):
            raise Failure(BAD_ENVIRONMENT, f"CNI_IFNAME {ifname} is no name of 1 to 15 characters")
    if command in NETNS_NEEDED:
        netns = env.get("CNI_NETNS")
        if not netns:
            raise Failure(BAD_ENVIRONMENT, "CNI_NETNS is not set")
        if netns[:1] != "/" or "/proc/self" in netns or "/proc/thread-self" in netns:
            raise Failure(BAD_NETNS, f"{netns}: the node would take it for its own")
        if not os.path.exists(netns):
            raise Failure(BAD_NETNS, f"{netns}: there is no such network namespace")


def word(env: Environment, name: str) -> str:
    """What ID and interface name have in common. Raises Failure."""
    value = env.get(name)
    if not value:
        raise Failure(BAD_ENVIRONMENT, f"{name} is not set")
    if not all(c.isascii() and (c.isalnum() or c in "_.-") for c in value):
        raise Failure(BAD_ENVIRONMENT, f"{name} has other characters than A-Za-z0-9_.-")
    return value


def read(stream: BinaryIO) -> Value:
    """The network configuration. Raises Failure."""
    try:
        return decoded(stream.read())
    except ValueError as error:
        raise Failure(UNDECODABLE, "the configuration is no JSON object", str(error)) from None


def answer(config: Value, env: Environment) -> Value | None:
    """What goes to the standard output, None for nothing. Raises Failure."""
    command = env.get("CNI_COMMAND")
    if command == "VERSION":
        return {"cniVersion": VERSIONS[-1], "supportedVersions": VERSIONS}
    if command not in COMMANDS:
        raise Failure(BAD_ENVIRONMENT, f"CNI_COMMAND {command!r} is not one of {list(COMMANDS)}")
    check_environment(command, env)
    if config.setdefault("cniVersion", VERSIONS[0]) not in VERSIONS:
        supported = ", ".join(VERSIONS)
        raise Failure(BAD_VERSION, f"version {config['cniVersion']}", f"supported: {supported}")
    text(config, "name")
    return COMMANDS[command](config, env)


def main() -> int:
    config = {}
    try:
        if os.environ.get("CNI_COMMAND") != "VERSION":
            config = read(sys.stdin.buffer)
        told, code = answer(config, dict(os.environ)), 0
    except Exception as error:
        known = error.args if isinstance(error, Failure) else (INTERNAL, repr(error), "")
        version = config.get("cniVersion")
        told, code = dict(zip(("code", "msg", "details"), known, strict=True)), 1
        told["cniVersion"] = version if version in VERSIONS else VERSIONS[-1]
    if told is not None:
        print(json.dumps(told))
    return code


if __name__ == "__main__":
    sys.exit(main())
