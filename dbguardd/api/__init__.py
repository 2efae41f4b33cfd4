"""The socket: who asks (peer), what may be asked (routes), how it is answered (server). aiohttp lives here only."""

from dbguardd.api.server import Limits, Running, serve
from dbguardd.api.service import Actor, Service

__all__ = ["Actor", "Limits", "Running", "Service", "serve"]
