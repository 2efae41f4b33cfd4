"""The archive of a cluster's small files: what was written comes back, and all else is damage."""

import io

import pytest

from dbguardd.engines.postgresql.physical.tarred import unpack, writing
from dbguardd.errors import Damaged

LONG = f"base/{'n' * 120}"
SIZE, CHECKSUM = slice(124, 136), slice(148, 156)


def archive(path="base/1", data=b"content"):
    out = io.BytesIO()
    with writing(out) as tar:
        tar.directory("base")
        tar.content(path, data)
    return bytearray(out.getvalue())


def resealed(data, at, field, value):
    """Change a field of the header at a place, and make its checksum right again."""
    header = data[at : at + 512]
    header[field] = value
    header[CHECKSUM] = b" " * 8
    header[CHECKSUM] = b"%06o\0 " % sum(header)
    data[at : at + 512] = header
    return data


def record(key, value):
    length = len(key) + len(value) + 5
    return b"%d %s=%s\n" % (length, key, value)


@pytest.mark.parametrize("path", ["base/1", LONG])
def test_what_was_written_comes_back(tmp_path, path):
    assert list(unpack(io.BytesIO(archive(path)), tmp_path)) == [("base", 0), (path, 7)]
    assert (tmp_path / path).read_bytes() == b"content"


@pytest.mark.parametrize("size", [b"00000000009\0", b"-0000000007\0", b"           \0", b"\x80" + bytes(11)])
def test_a_size_that_is_no_number_is_damage(tmp_path, size):
    with pytest.raises(Damaged, match="no header"):
        list(unpack(io.BytesIO(resealed(archive(), 512, SIZE, size)), tmp_path))


@pytest.mark.parametrize("told", [record(b"size", b"-7"), record(b"size", b"seven"), b"9" * 5000 + b" size=7\n"])
def test_a_record_that_is_impossible_is_damage(tmp_path, told):
    data = resealed(archive(LONG), 512, SIZE, b"%011o\0" % len(told))
    end = 1024 + -(-len(data[1024:1536]) // 512) * 512
    data[1024:end] = told + bytes(-len(told) % 512)
    with pytest.raises(Damaged, match="impossible record"):
        list(unpack(io.BytesIO(data), tmp_path))
