"""Files that somebody wrote to do harm, or by accident (M28): an answer in good time, never a traceback."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbguardd.policy.scan import MAX_BYTES, scan_text
from tests.policy.texts import check_text

HEAD = "version = 1\n"
DATABASE = HEAD + '[database.app]\nengine = "sqlite"\npath = "/srv/app.db"\n'


def mistakes(text: str) -> list[str]:
    policy, found = check_text({"policy.toml": text})
    errors = [mistake.message for mistake in found if mistake.severity == "error"]
    assert (policy is None) or not errors or all(isinstance(message, str) for message in errors)
    return errors


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = " + "[" * 5000, "nested deeper"),
        ("x = " + "{a=" * 5000, "nested deeper"),
        ("x = " + "[" * 17 + "]" * 17, "nested deeper"),
        ("a." * 20000 + "b = 1", "more than 16 parts"),
        ("[" + "a." * 20000 + "b]", "more than 16 parts"),
        (HEAD + "#" * MAX_BYTES, "larger than 256 KiB"),
        (DATABASE + 'x = "a\u202eb"', "U+202E, which can make text look like something else"),
        (DATABASE + "# harmless \u2066 comment", "U+2066"),
        (DATABASE + "# zero\u200bwidth", "U+200B"),
        (HEAD + "\x00", "the control character U+0000"),
        (HEAD + "# \x1b[31m", "the control character U+001B"),
        (HEAD + "# \x85", "the control character U+0085"),
        (DATABASE + 'proof.queries = [{ sql = "a\\u0000b", equals = 1 }]', "the text contains the control character"),
        (DATABASE + 'proof.queries = [{ sql = "\\u202Eb", equals = 1 }]', "the text contains the invisible character"),
        (HEAD + '[database."a\\u0000"]', "a key contains the control character U+0000"),
        (DATABASE + "retry = { backoff = inf }", "finite number"),
        (DATABASE + "retry = { backoff = nan }", "finite number"),
        (DATABASE + 'proof.queries = [{ sql = "x", min = -inf }]', "finite number"),
        (DATABASE + "min_proven = true", "must be a whole number, not true or false"),
        (DATABASE + "min_proven = 2.0", "must be a whole number, not a number with a fraction"),
        (DATABASE + "min_proven = " + "9" * 5000, ""),
        (DATABASE + "min_proven = 99999999999999999999999", "must be at most 100"),
        (DATABASE + "keep = 2026-01-01", "must be a table, not a date or time"),
        (DATABASE + "keep = { last = -1 }", "must be at least 0"),
        (DATABASE + "keep = { last = 1000000 }", "must be at most 1000"),
        (DATABASE + 'keep = { within = "900y" }', "longer than 100 years"),
        (DATABASE + DATABASE[len(HEAD) :], "not TOML: "),
        (DATABASE + 'path = "/b"', "not TOML: "),
        ("version = 1\n[[database]]\nname = 'x'", "database must be a table of tables, not a list"),
        ("version = 1\ndatabase = 3", "database must be a table of tables, not a number"),
        ("version = 2", "version must be 1"),
        ("", 'the policy needs the setting "version"'),
        ("version = ", "not TOML: invalid value"),
        ('version = 1\nx = "', "not TOML: "),
        (HEAD + '[database.__class__]\nengine = "sqlite"\npath = "/x"', "is not a valid name"),
        (HEAD + f'[database.{"a" * 64}]\nengine = "sqlite"\npath = "/x"', "is not a valid name"),
        (HEAD + '[database.app]\nengine = "sqlite"\npath = "/srv/../etc/shadow"', "absolute path without . and .."),
        (HEAD + '[database.app]\nengine = "sqlite"\npath = "app.db"', "absolute path"),
        (DATABASE + 'run_as = "root; rm -rf /"', 'must be a user or "group:NAME"'),
        (DATABASE + 'timezone = "../../etc/passwd"', "is not a time zone"),
        (DATABASE + 'timezone = "/etc/passwd"', "is not a time zone"),
        (DATABASE + 'timezone = ""', "must be a time zone"),
    ],
)  # fmt: skip
def test_hostile(text, said):
    found = mistakes(text)
    assert found
    assert any(said in message for message in found), found


def test_not_utf8(tmp_path):
    from dbguardd.policy import check

    file = tmp_path / "policy.toml"
    file.write_bytes(b"version = 1 # \xff")
    _, _, found = check(file, owner=file.stat().st_uid)
    assert [mistake.message for mistake in found] == ["the file is not UTF-8 (byte 14)"]


def test_brackets_and_dots_in_strings_and_comments_are_text():
    deep = "[" * 100
    text = (
        DATABASE + f"proof.queries = [{{ sql = \"select '{deep}' -- {'a.' * 50}\", equals = 1 }}]\n# {deep} {'a.' * 50}"
    )
    assert mistakes(text) == []
    assert mistakes(DATABASE + f"proof.queries = [{{ sql = '''\n{deep}\n''', equals = 1 }}]") == []


@given(st.text(max_size=300))
def test_any_text_gets_an_answer(text):
    check_text({"policy.toml": text})
    list(scan_text(text))


TOKENS = st.sampled_from(
    [*"[]{}=.,\n\"'#", "version = 1\n", "[database.app]\n", 'engine = "sqlite"\n', "keep", "last", " = ", "1", "true"]
    + ['path = "/x"\n', "[class.a]\n", "storage = ", '"""', "'''", "\\u0000", "inf", "[[database]]\n", "1979-05-27"]
)


@given(st.lists(TOKENS, max_size=30).map("".join))
def test_any_soup_of_tokens_gets_an_answer(text):
    _, found = check_text({"policy.toml": text})
    for mistake in found:
        assert mistake.to_text()
        assert mistake.to_json()["message"]


@pytest.mark.parametrize(
    "line",
    [
        'password = "hunter2"',
        "password = hunter2",
        "PASSWORD='hunter2'",
        'secret = "hunter2"',
        '"token" = "hunter2"',
        'recovery = "AGE-SECRET-KEY-1HUNTER2"',
    ],
)
@pytest.mark.parametrize("table", ["[database.app]", "[key.main]", "[defaults]"])
def test_a_literal_secret_is_refused_and_not_repeated(line, table):
    policy, found = check_text({"policy.toml": f"{HEAD}{table}\n{line}\n"})
    told = "\n".join(f"{mistake.to_text()} {mistake.to_json()}" for mistake in found)
    assert found
    assert "hunter2" not in told.lower()


@pytest.mark.parametrize(
    "lines",
    [
        'secret = { value = "hunter2" }',
        'secret.value = "hunter2"',
        '[key.main.secret]\nvalue = "hunter2"',
        'secret = { file = "hunter2" }',
        'secret = { file = ["hunter2"] }',
        'secret = { credential = "hunter2 of mine" }',
        'secret = { command = "hunter2" }',
        'secret = { command = ["hunter2"] }',
        'secret = { credential = "a", file = "/hunter2" }',
        'secret = ["hunter2"]',
        'secret = """hunter2"""',
        'secret = "hunter2',
        "secret = hunter2",
        'secret = { = "hunter2" }',
        'secret . value = = "hunter2"',
        'phrase = "hunter2"',
        'pass = "hunter2"',
        'value = "hunter2"',
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(lines):
    """Whoever puts the secret itself where its name belongs does not find it in the journal."""
    policy, found = check_text({"policy.toml": f'{HEAD}[key.main]\ntype = "passphrase"\n{lines}\n'})
    assert found
    assert "hunter2" not in "\n".join(f"{mistake.to_text()} {mistake.to_json()}" for mistake in found)


def test_the_three_forms_are_named():
    _, found = check_text({"p": HEAD + '[key.hr]\ntype = "passphrase"\nsecret = "hunter2"\n'})
    (mistake,) = found
    assert mistake.code == "config/literal-secret"
    for form in ('{ credential = "NAME" }', '{ file = "/path" }', '{ command = ["/path", "..."] }'):
        assert form in mistake.message


def test_ten_thousand_mistakes_are_cut_short():
    text = HEAD + "[defaults]\n" + "".join(f"key{number} = 1\n" for number in range(10_000))
    policy, found = check_text({"p": text})
    assert policy is None
    assert len(found) <= 400
