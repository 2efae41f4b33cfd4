def test_it(machine):
    print(machine.why())
    print(machine.run("systemctl", "status", "dbguardd.socket", check=False).out)
    print(machine.run("ls", "-la", "/run/dbguard", "/var/lib/dbguard", "/etc/dbguard").out)
    machine.run("useradd", "--create-home", "app")
    machine.run("install", "-d", "-o", "app", "-m", "0755", "/var/lib/app")
    machine.python(
        "import sqlite3; d=sqlite3.connect('/var/lib/app/app.db'); d.execute('pragma journal_mode=wal'); d.execute('create table t(x)'); d.execute('insert into t values(1)'); d.commit(); d.close()",
        user="app",
    )
    machine.path("/var/lib/app/app.db").chmod(0o600)
    said = machine.ctl("protect", "/var/lib/app/app.db")
    print(said.out, said.err)
    assert said.status == 0
