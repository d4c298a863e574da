"""Text cut into blocks: nothing lost, every block whole lines, the same blocks when reading goes on at one of them."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from fletching_server.importing.text import blocks

LINES = st.lists(st.sampled_from(["", "a,b", 'c,"d\ne"', 'f,"g""h\n\ni"', "long," + "x" * 40, "\u00e9,1"]), max_size=40)


@given(LINES, st.integers(1, 200), st.booleans())
def test_blocks_are_whole_lines_and_together_the_text(lines: list[str], size: int, ends: bool) -> None:
    text = ("\n".join(lines) + "\n" * ends).encode()
    found = list(blocks(io.BytesIO(text), size))
    assert b"".join(found) == text
    for block in found[:-1]:
        assert block.endswith(b"\n")
        assert block.count(b'"') % 2 == 0, "no line end within quotes"


@given(LINES, st.integers(1, 200), st.data())
def test_reading_goes_on_with_the_same_blocks(lines: list[str], size: int, data: st.DataObject) -> None:
    text = "\n".join(lines).encode()
    found = list(blocks(io.BytesIO(text), size))
    passed = data.draw(st.integers(0, len(found)))
    rest = text[sum(map(len, found[:passed])) :]
    assert list(blocks(io.BytesIO(rest), size)) == found[passed:]


class _Slow(io.BytesIO):
    """A stream that gives what it likes, as unpacking ones do."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size if size and size > 0 else 7, 7))


def test_short_reads_make_no_difference() -> None:
    text = b"".join(b"%d,%d\n" % (number, number**3) for number in range(500))
    assert list(blocks(_Slow(text), 100)) == list(blocks(io.BytesIO(text), 100))
