"""A slow, obviously right twin of the engine: the oracle of equivalence, read as the specification.

Top down: twin (one frame), guard (ingress), walk (a new flow's layers), rewrite (each packet);
below them acl, nat, flows, answer, nd, related, outer, wire, limit, site (the policy, looked up),
services, maglev, pool, keyed, edit, checksum.
Apart: build (frames from fields, for strategies).
"""

from tests.reference.flows import Timers
from tests.reference.twin import Choices, Twin
from tests.reference.verdict import Outcome

__all__ = ["Choices", "Outcome", "Timers", "Twin"]
