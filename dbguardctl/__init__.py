"""dbguardctl: the command line client of dbguardd."""
