"""dbguard: keeps databases restorable, and proves it. This package is the daemon."""

__version__ = "0.1.0"
