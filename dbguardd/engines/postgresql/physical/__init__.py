"""Physical backups of a local cluster: its files, beside its users, made whole by the log that is kept with them.

Modules, in reading order: cluster (what the server says), datadir (what lies there), mode (backup mode), copy (the
backup), segments (the log), place (a snapshot that is a place in the log), content (the fingerprint), rebuild (the
restore), prove (its proof); slot, stream and follow (the log, followed), forward (a moment in it, restored).
"""
