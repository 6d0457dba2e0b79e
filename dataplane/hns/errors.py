"""What HNS calls its errors (winerror.h), each with a plain sentence."""

from typing import Any

from dataplane.errors import DataplaneError

CODES = {
    "ERROR_NOT_FOUND": 0x80070490,
    "HCN_E_NETWORK_NOT_FOUND": 0x803B0001,
    "HCN_E_ENDPOINT_NOT_FOUND": 0x803B0002,
    "HCN_E_INVALID_NETWORK": 0x803B000A,
    "HCN_E_INVALID_NETWORK_TYPE": 0x803B000B,
    "HCN_E_INVALID_ENDPOINT": 0x803B000C,
    "HCN_E_INVALID_POLICY": 0x803B000D,
    "HCN_E_INVALID_POLICY_TYPE": 0x803B000E,
    "HCN_E_NETWORK_ALREADY_EXISTS": 0x803B0010,
    "HCN_E_POLICY_ALREADY_EXISTS": 0x803B0012,
    "HCN_E_PORT_ALREADY_EXISTS": 0x803B0013,
    "HCN_E_REQUEST_UNSUPPORTED": 0x803B0015,
    "HCN_E_GUID_CONVERSION_FAILURE": 0x803B0019,
    "HCN_E_INVALID_JSON": 0x803B001B,
    "HCN_E_INVALID_JSON_REFERENCE": 0x803B001C,
    "HCN_E_INVALID_IP": 0x803B001E,
    "HCN_E_NAMESPACE_ATTACH_FAILED": 0x803B002E,
}
STATUS = {  # of HTTP; else 400
    "ERROR_NOT_FOUND": 404,
    "HCN_E_NETWORK_NOT_FOUND": 404,
    "HCN_E_ENDPOINT_NOT_FOUND": 404,
    "HCN_E_NETWORK_ALREADY_EXISTS": 409,
    "HCN_E_POLICY_ALREADY_EXISTS": 409,
    "HCN_E_PORT_ALREADY_EXISTS": 409,
    "HCN_E_NAMESPACE_ATTACH_FAILED": 409,
}


class HcnError(DataplaneError):
    """An error of HNS: `symbol` of CODES, and a sentence that names the place and the fix."""

    def __init__(self, symbol: str, message: str) -> None:
        super().__init__(symbol, message)
        self.symbol = symbol
        self.message = message

    @property
    def code(self) -> int:
        """The HRESULT, unsigned."""
        return CODES[self.symbol]

    @property
    def status(self) -> int:
        return STATUS.get(self.symbol, 400)

    def record(self) -> dict[str, Any]:
        """The error as HNS answers it."""
        told = f"{self.message} ({self.symbol})"
        return {"Success": False, "Error": told, "ErrorCode": self.code}

    def __str__(self) -> str:
        return f"{self.message} ({self.symbol}, 0x{self.code:08x})"


def not_found(kind: str, name: str) -> HcnError:
    symbol = {"networks": "HCN_E_NETWORK_NOT_FOUND", "endpoints": "HCN_E_ENDPOINT_NOT_FOUND"}
    found = symbol.get(kind, "ERROR_NOT_FOUND")
    return HcnError(found, f"there is none of {kind} with the ID {name}")
