"""Physical backups of a cluster: its files, beside its users, made whole by the log that is kept with them.

Modules, in reading order: cluster (what the server says), configuration (its files elsewhere), datadir (what lies
there), segments and records (the log), slot (what holds it), mode (backup mode), tarred (archives), copy (the backup of
what is read here), sent and received (that of what a server sends), way (which of the two), snapshot_place (a snapshot
that is a place in the log), names and content (the fingerprint), facts (what is stored with a backup), pages (all of
these: the method), local (whether it can be), stream and follow (the log that goes on), roll_forward and
recovery_target (along it, to a moment), rebuild (the restore), check (its tables and trees), queries (of its policy),
prove (its proof).
"""
