"""The API on the socket: the identity of peers (peer), the routes, and the handling of requests (exchange, server)."""

from dbguardd.api.exchange import Limits
from dbguardd.api.server import Running, serve
from dbguardd.api.service import Actor, Service

__all__ = ["Actor", "Limits", "Running", "Service", "serve"]
