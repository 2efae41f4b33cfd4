"""The examples that end the help of a command. Loaded only for help; tests type every line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EXAMPLES: Mapping[str, Sequence[str]] = {
    "status": ("dbguardctl status", "dbguardctl status app", "dbguardctl --json status"),
    "list": ("dbguardctl list app --why", "dbguardctl list app --all"),
    "show": ("dbguardctl show 01K4YJ3M8R", "dbguardctl show app"),
    "backup": ("dbguardctl backup app --note 'before the upgrade'", "dbguardctl backup --all --timeout 2h"),
    "verify": ("dbguardctl verify app", "dbguardctl verify 01K4YJ3M8R", "dbguardctl verify --all"),
    "restore": (
        "dbguardctl restore app --at 'yesterday 09:00' --dry-run",
        "dbguardctl restore app --at 'yesterday 09:00' --to /tmp/look.db",
        "dbguardctl restore app --id 01K4YJ3M8R --in-place --confirm app",
        "dbguardctl restore undo app --confirm app",
    ),
    "query": (
        "dbguardctl query app 'SELECT count(*) FROM booking'",
        "dbguardctl query app --at 'yesterday 09:00' --csv 'SELECT * FROM booking WHERE id = 17'",
    ),
    "get": (
        "dbguardctl get app --table booking --to booking.sql",
        "dbguardctl get app --table booking --at '3h ago' --format csv",
    ),
    "diff": (
        "dbguardctl diff app --from 'yesterday 09:00' --summary",
        "dbguardctl diff app --from 01K4YJ3M8R --to now --table booking",
    ),
    "undelete": (
        "dbguardctl undelete app --table booking --at '3h ago' --where 'debit = 7'",
        "dbguardctl undelete app --table booking --at '3h ago' --changed --to booking.sql",
    ),
    "undo": ("dbguardctl undo app --confirm app",),
    "check": ("dbguardctl check", "dbguardctl check app --data --timeout 2h"),
    "prune": ("dbguardctl prune app --dry-run", "dbguardctl prune"),
    "hold": ("dbguardctl hold 01K4YJ3M8R --reason 'tax audit 2026'",),
    "release": ("dbguardctl release 01K4YJ3M8R",),
    "recall": ("dbguardctl recall 01K4YJ3M8R",),
    "init": (
        "dbguardctl init --policy ~/guard/policy.toml",
        "dbguardctl init --sql postgresql://dbguard@db1/ | sudo -u postgres psql",
    ),
    "protect": (
        "dbguardctl protect /var/lib/app/app.db --continuous",
        "dbguardctl protect postgresql:/// --dry-run",
        "dbguardctl protect /srv/app.db --adopt app",
    ),
    "unprotect": ("dbguardctl unprotect app --dry-run",),
    "config explain": ("dbguardctl config explain database.app.keep",),
    "config show": ("dbguardctl config show --origin",),
    "key recovery-sheet": ("dbguardctl key recovery-sheet main --svg sheet.svg",),
    "key recovery-test": ("dbguardctl key recovery-test main",),
    "key recovery-drop": ("dbguardctl key recovery-drop age1qyqszqgp",),
    "credential set": ("dbguardctl credential set machine-key --random",),
    "schedule": ("dbguardctl schedule --next 30",),
    "pause": ("dbguardctl pause app --for 2h",),
    "resume": ("dbguardctl resume app",),
    "run": ("dbguardctl run app backup",),
    "job list": ("dbguardctl job list --database app --state failed",),
    "job watch": ("dbguardctl job watch 01K4Z7Q2AB --timeout 10min",),
    "log": (
        "dbguardctl log app --since 'yesterday 18:00'",
        "dbguardctl log --errors --since '7d ago' -v",
        "dbguardctl log --follow",
    ),
    "events": ("dbguardctl events --follow --json", "dbguardctl events --database app --limit 200"),
    "audit show": ("dbguardctl audit show --limit 200",),
    "explain": ("dbguardctl explain DBG-3002",),
    "completion": (
        "dbguardctl completion bash > /etc/bash_completion.d/dbguardctl",
        "dbguardctl completion zsh > /usr/local/share/zsh/site-functions/_dbguardctl",
        "dbguardctl completion fish > ~/.config/fish/completions/dbguardctl.fish",
    ),
}
"""By command: command lines that a user can adapt."""
