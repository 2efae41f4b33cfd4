"""The daemon: lifecycle, scheduling, jobs, the policy in force, and the answers to the API. asyncio lives here."""

from dbguardd.daemon.clock import Clock, system_clock
from dbguardd.daemon.log import setup as setup_log
from dbguardd.daemon.service import Service
from dbguardd.daemon.supervisor import Setup, run, this_host

__all__ = ["Clock", "Service", "Setup", "run", "setup_log", "system_clock", "this_host"]
