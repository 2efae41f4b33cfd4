"""The socket: who asks (peer), what may be asked (routes), how it is answered (exchange, server)."""

from dbguardd.api.exchange import Limits
from dbguardd.api.server import Running, serve
from dbguardd.api.service import Actor, Service

__all__ = ["Actor", "Limits", "Running", "Service", "serve"]
