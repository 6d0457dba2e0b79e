"""A slow, obviously right twin of the engine: the oracle of equivalence, read as the specification.

Top down: twin (one frame), guard (ingress), walk (a new flow's layers), rewrite (each packet);
below them acl, nat, flows, answer, nd, related, outer, wire, site (the policy, looked up), edit,
checksum.
Apart: build (frames from fields, for strategies).
"""

from tests.reference.flows import Timers
from tests.reference.twin import Twin
from tests.reference.verdict import Outcome

__all__ = ["Outcome", "Timers", "Twin"]
