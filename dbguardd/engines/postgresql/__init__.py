"""PostgreSQL: a cluster behind its server.

Modules, in reading order: connect (what it says), tools, child and confine (its programs), server (a throw-away one).
"""
