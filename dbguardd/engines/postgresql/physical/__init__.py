"""Physical backups of a cluster: its files, copied while the server runs, plus the WAL that makes the copy consistent.

Modules, in reading order: cluster (what the server says), configuration (configuration files outside the data
directory), datadir (what is in the data directory), segments and records (the WAL), slot (the replication slot that
keeps WAL), mode (backup mode), tarred (archives), copy (a backup whose files are read here), sent and received (a
backup that the server sends), way (which of the two is used), snapshot_place (a snapshot that is a position in the
WAL), names and content (the fingerprint), facts (what is stored with a backup), pages (the backup method, built on all
of these), local (whether a server can be backed up this way), stream and follow (continuous shipping of the WAL),
roll_forward and recovery_target (recovery to a moment), rebuild (the restore), check (checks of tables and B-trees),
queries (proof queries of the policy), prove (the proof).
"""
