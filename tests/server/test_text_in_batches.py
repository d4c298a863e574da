"""Long text travels with its own rows only, although columns of views refer to the text of the whole partition."""

import pyarrow as pa

from fletching_server.batches import has_text, tight

VALUES = [
    None if row % 7 == 0 else "short" if row % 5 == 0 else f"a text of more than twelve bytes, number {row}"
    for row in range(1000)
]
SCHEMA = pa.schema([pa.field("text", pa.string_view(), metadata={"unit": "words"}), ("row", pa.int64())], metadata={"a": "b"})
BATCH = pa.record_batch([pa.array(VALUES).cast(pa.string_view()), pa.array(range(1000))], schema=SCHEMA)


def test_a_slice_takes_the_text_of_its_rows_only() -> None:
    piece = BATCH.slice(100, 10)
    sent = tight(piece)
    assert pa.ipc.get_record_batch_size(piece) > 30_000
    assert pa.ipc.get_record_batch_size(sent) < 2_000
    assert sent.equals(piece, check_metadata=True)
    assert sent.column(1).buffers()[1].address == piece.column(1).buffers()[1].address


def test_short_text_is_not_copied() -> None:
    short = pa.record_batch({"symbol": pa.array(["000001.SZ", None]).cast(pa.string_view())})
    assert tight(short) is short
    assert not has_text(pa.Table.from_batches([short]))
    assert has_text(pa.Table.from_batches([BATCH]))
