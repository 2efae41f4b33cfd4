"""The policy: what is protected, how often, where, for how long. It is immutable once loaded."""

from dbguardd.policy.load import Host, Loaded, check, load
from dbguardd.policy.policy import Guarded, Policy

__all__ = ["Guarded", "Host", "Loaded", "Policy", "check", "load"]
