"""The real thing: packages, built and installed in machines whose systemd has booted."""
