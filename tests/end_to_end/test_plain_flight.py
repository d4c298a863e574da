"""Any plain pyarrow client can list, describe, read and write; no request, however malformed, does harm."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import date
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.flight as fl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fletching_schemas import TABLE_ACTIONS, Action, ReadRequest, WriteRequest, WriteResult
from fletching_schemas.replies import ReadInfo
from fletching_server.sources.sim import SimSource
from fletching_server.testing import ManualClock

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Rig, Rigs

SYMBOLS = ["000001.SZ", "600000.SH"]
REQUEST = ReadRequest("bars_1d", tuple(SYMBOLS), date(2024, 6, 3), date(2024, 6, 7))
NAMES = ["adj_factors", "bars_1d", "bars_1m", "instruments", "quotes_l1", "trades"]
ROWS = pa.table({"symbol": ["A", "B"], "day": pa.array([date(2024, 1, 2)] * 2), "score": [1.0, None]})

pytestmark = pytest.mark.filterwarnings("ignore:unclosed")  # pyarrow's own writers, where the server refused


@pytest.fixture(scope="module", params=["tcp", "unix"])
def rig(request: pytest.FixtureRequest, module_rigs: Rigs, noon: Callable[[], ManualClock]) -> Rig:
    return module_rigs(request.param, [SimSource(symbols=8, first=date(2024, 1, 2))], noon())


@pytest.fixture(scope="module")
def client(rig: Rig) -> Iterator[fl.FlightClient]:
    with fl.connect(rig.url) as made:
        yield made


@pytest.fixture(autouse=True)
def _alive_afterwards(rig: Rig) -> Iterator[None]:
    yield
    rig.wait_until_idle()
    assert rig.engine.hot.facts()["hot_leases"] == 0
    assert rig.cache.health()["status"] == "serving"


def path(*parts: str) -> fl.FlightDescriptor:
    return fl.FlightDescriptor.for_path(*parts)


def command(raw: bytes) -> fl.FlightDescriptor:
    return fl.FlightDescriptor.for_command(raw)


def acted(client: fl.FlightClient, name: str, body: bytes = b"") -> bytes:
    (result,) = client.do_action(fl.Action(name, body))
    raw: bytes = result.body.to_pybytes()
    return raw


# What works


def test_flights_are_the_datasets(client: fl.FlightClient) -> None:
    infos = list(client.list_flights())
    assert [info.descriptor.path[0].decode() for info in infos] == NAMES
    assert all(info.schema.names[0] == "symbol" for info in infos)


def test_a_flight_found_by_path_is_read_by_its_ticket(client: fl.FlightClient, rig: Rig) -> None:
    info = client.get_flight_info(path("instruments"))
    (endpoint,) = info.endpoints
    table = client.do_get(endpoint.ticket).read_all()
    assert table.equals(rig.cache.read("instruments", output="arrow"))
    assert table.schema.equals(info.schema, check_metadata=True)
    assert client.get_flight_info(path("instruments")).total_records in {-1, table.num_rows}


def test_a_flight_found_by_command_is_read_by_its_ticket(client: fl.FlightClient, rig: Rig) -> None:
    info = client.get_flight_info(command(REQUEST.to_bytes()))
    table = client.do_get(info.endpoints[0].ticket).read_all()
    assert table.equals(rig.cache.read("bars_1d", SYMBOLS, "2024-06-03", "2024-06-07", output="arrow"))
    assert table.num_rows == 10


def test_a_request_is_a_ticket(client: fl.FlightClient) -> None:
    asked = ReadRequest("bars_1d", ("sz000001",), REQUEST.start, REQUEST.end, ("close", "trading_date"), info=True)
    reader = client.do_get(fl.Ticket(asked.to_bytes()))
    assert reader.schema.names == ["close", "trading_date"]
    chunks = list(reader)
    assert sum(chunk.data.num_rows for chunk in chunks) == 5
    assert [chunk.app_metadata is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    info = ReadInfo.from_bytes(chunks[-1].app_metadata.to_pybytes())
    assert (info.dataset, info.plane, info.rows) == ("bars_1d", "flight", 5)


def test_a_ticket_written_by_hand_is_enough(client: fl.FlightClient) -> None:
    by_hand = {"kind": "read", "version": 1, "dataset": "bars_1d", "symbols": "000001.SZ", "start": "20240603", "end": "20240607"}
    assert client.do_get(fl.Ticket(json.dumps(by_hand))).read_all().num_rows == 5


def test_schemas_are_told_by_path_and_by_command(client: fl.FlightClient, rig: Rig) -> None:
    schema = rig.cache.schema("bars_1d")
    assert client.get_schema(path("bars_1d")).schema.equals(schema, check_metadata=True)
    two = ReadRequest("bars_1d", columns=("close", "symbol")).to_bytes()
    assert client.get_schema(command(two)).schema.equals(pa.schema([schema.field("close"), schema.field("symbol")]))


def put(client: fl.FlightClient, descriptor: fl.FlightDescriptor, rows: pa.Table) -> WriteResult:
    writer, metadata = client.do_put(descriptor, rows.schema)
    try:
        writer.write_table(rows)
        writer.done_writing()
        told = metadata.read()
    finally:
        writer.close()
    return WriteResult.from_bytes(told.to_pybytes())


def test_rows_are_put_by_command_then_by_path(client: fl.FlightClient, rig: Rig) -> None:
    first = put(client, command(WriteRequest("plain", ("symbol", "day")).to_bytes()), ROWS)
    assert (first.rows, first.created) == (2, True)
    again = put(client, path("plain"), ROWS)
    assert (again.rows, again.created) == (2, False)
    assert rig.cache.read("plain").rows() == [("A", date(2024, 1, 2), 1.0), ("B", date(2024, 1, 2), None)]
    assert client.get_flight_info(path("plain")).total_records in {2, -1}
    rig.cache.delete("plain")


def test_every_action_is_listed_with_what_it_does(client: fl.FlightClient) -> None:
    listed = {action.type: action.description for action in client.list_actions()}
    assert set(listed) == set(Action)
    assert min(map(len, listed.values())) > 20


def test_every_action_works_without_our_client(client: fl.FlightClient, rig: Rig) -> None:
    rig.cache.write("acted", ROWS, keys=["symbol", "day"])
    of_table = b'{"dataset": "acted"}'
    bodies = {
        Action.COVERAGE: of_table,
        Action.EXPLAIN: of_table,
        Action.COMPACT: of_table,
        Action.RETENTION: of_table,
        Action.WARM: of_table,
        Action.INVALIDATE: b'{"dataset":"trades"}',
        Action.PROVENANCE: b'{"dataset":"trades"}',
        Action.RESTATEMENTS: b'{"dataset":"trades"}',
        Action.SESSIONS: b'{"mic": "XSHG", "start": "2026-11-01", "end": "2026-11-30"}',
        Action.PROGRESS: b'{"id": "nobody"}',
    }
    others = [action for action in Action if action not in {Action.DELETE, Action.CALL}]  # nobody here has functions
    answers = {action: acted(client, action, bodies.get(action, b"")) for action in others}
    assert acted(client, Action.DELETE, of_table) == b'{"dataset": "acted", "deleted_rows": 2}'
    for action, raw in answers.items():
        if action in TABLE_ACTIONS:
            assert pa.ipc.open_stream(raw).read_all().num_columns > 5
        else:
            assert isinstance(json.loads(raw), dict)
    assert json.loads(answers[Action.VERIFY]) == {"problems": []}


# What is refused


def check_refused(call: Callable[[], Any], code: str = "invalid_request", *, lost: bool = False) -> str:
    """Return the message of a refusal that tells its code and nothing of the machine; *lost*: pyarrow drops the code."""
    with pytest.raises((fl.FlightError, pa.ArrowException)) as caught:
        call()
    text, extra = str(caught.value), getattr(caught.value, "extra_info", b"")
    told = text + extra.decode()
    assert not re.search(r"/server/|site-packages|/flight\.py|to_flight_error", told)
    if lost:
        return text
    assert "Traceback" not in told
    assert isinstance(caught.value, fl.FlightError)
    assert json.loads(extra)["code"] == code
    return str(json.loads(extra)["message"])


def reads(client: fl.FlightClient, raw: bytes) -> dict[str, Callable[[], Any]]:
    """Every call that takes a read request."""
    return {
        "do_get": lambda: client.do_get(fl.Ticket(raw)).read_all(),
        "get_flight_info": lambda: client.get_flight_info(command(raw)),
    }


VALID = json.loads(REQUEST.to_bytes())
MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"bars_1d",
    "half": REQUEST.to_bytes()[:-7],
    "ten megabytes": b" " * 10_000_000,
    "ten megabytes of symbols": json.dumps({**VALID, "symbols": ["x" * 60] * 160_000}).encode(),
    "a list": b"[1]",
    "a number": b"7",
    "null": b"null",
    "deep nesting": b'{"kind":' + b"[" * 100_000,
    "a future version": json.dumps({**VALID, "version": 2}).encode(),
    "no version": json.dumps({name: part for name, part in VALID.items() if name != "version"}).encode(),
    "a version that is text": json.dumps({**VALID, "version": "1"}).encode(),
    "another kind": WriteRequest("bars_1d").to_bytes(),
    "an unknown field": json.dumps({**VALID, "colour": "red"}).encode(),
    "an unknown surrogate field": b'{"kind":"read","version":1,"dataset":"bars_1d","\\ud800":1}',
    "no dataset": b'{"kind":"read","version":1}',
    "a dataset that is a number": json.dumps({**VALID, "dataset": 7}).encode(),
    "a path for a dataset": json.dumps({**VALID, "dataset": "../../etc/passwd"}).encode(),
    "a mapping of symbols": json.dumps({**VALID, "symbols": {"a": 1}}).encode(),
    "symbols of numbers": json.dumps({**VALID, "symbols": [1]}).encode(),
    "a symbol with a null byte": json.dumps({**VALID, "symbols": ["a\x00b"]}).encode(),
    "a surrogate symbol": b'{"kind":"read","version":1,"dataset":"bars_1d","symbols":["\\ud800"]}',
    "a start that is a list": json.dumps({**VALID, "start": []}).encode(),
    "an age that is no number": b'{"kind":"read","version":1,"dataset":"bars_1d","max_age":NaN}',
    "an age beyond time": b'{"kind":"read","version":1,"dataset":"bars_1d","max_age":1e400}',
    "an age of 5000 digits": b'{"kind":"read","version":1,"dataset":"bars_1d","max_age":' + b"9" * 5000 + b"}",
    "info that is text": json.dumps({**VALID, "info": "yes"}).encode(),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_refused(name: str, client: fl.FlightClient) -> None:
    raw = MALFORMED[name]
    for call in reads(client, raw).values():
        check_refused(call)
    check_refused(lambda: client.get_schema(command(raw)), lost=True)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=300))
def test_random_bytes_are_refused(raw: bytes, client: fl.FlightClient) -> None:
    for call in reads(client, raw).values():
        check_refused(call)
    check_refused(lambda: put(client, command(raw), ROWS))
    if raw:
        check_refused(lambda: acted(client, Action.EXPLAIN, raw))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from([*VALID, "columns", "max_age", "profile", "adjust", "as_of", "info"]), value=JSON)
def test_a_request_with_any_value_in_a_field_is_answered_or_refused(field: str, value: Any, client: fl.FlightClient) -> None:
    raw = json.dumps({**VALID, "on_miss": "cached", field: value}).encode()
    told = ""
    try:
        client.do_get(fl.Ticket(raw)).read_all()
    except fl.FlightError as error:
        told = str(error) + json.loads(error.extra_info)["code"]
    assert not re.search(r"Traceback|internal_error|answered:", told)


def test_an_unknown_dataset_is_told_by_its_code(client: fl.FlightClient) -> None:
    raw = ReadRequest("nothing").to_bytes()
    for call in reads(client, raw).values():
        assert "there are: adj_factors, bars_1d" in check_refused(call, "unknown_dataset")
    check_refused(lambda: client.get_flight_info(path("nothing")), "unknown_dataset")
    text = check_refused(lambda: client.get_schema(path("nothing")), lost=True)
    assert "there is no dataset 'nothing'; there are: adj_factors, bars_1d" in text


@pytest.mark.parametrize("parts", [("a", "b"), ("../etc",), ("",), ("平安",), ("x" * 100_000,)], ids=lambda parts: parts[0][:9])
def test_a_path_that_is_no_dataset_is_refused(parts: tuple[str, ...], client: fl.FlightClient) -> None:
    check_refused(lambda: client.get_flight_info(path(*parts)))
    check_refused(lambda: put(client, path(*parts), ROWS))


def test_exchanges_are_refused(client: fl.FlightClient) -> None:
    def exchange() -> None:
        writer, reader = client.do_exchange(path("bars_1d"))
        writer.done_writing()
        try:
            reader.read_chunk()
        finally:
            reader.cancel()

    assert check_refused(exchange, "not_built") == "DoExchange is not built yet; use DoGet and DoPut"


@pytest.mark.parametrize("name", ["", "drop", "DATASETS", "平安", "a" * 100_000], ids=lambda name: name[:9])
def test_an_unknown_action_is_refused(name: str, client: fl.FlightClient) -> None:
    assert "there are datasets, coverage" in check_refused(lambda: acted(client, name))


BODIES: dict[str, bytes] = {
    "oversized": b'{"dataset": "' + b"x" * 1_000_000 + b'"}',
    "a list": b"[]",
    "deep": b"[" * 200_000,
    "bytes": b"\xff\x00",
    "an unknown argument": b'{"dataset": "bars_1d", "colour": 1}',
    "a dataset that is a list": b'{"dataset": [1]}',
}


@pytest.mark.parametrize("action", [action for action in Action if action is not Action.VERIFY])
@pytest.mark.parametrize("name", BODIES)
def test_a_malformed_body_of_an_action_is_refused(name: str, action: Action, client: fl.FlightClient) -> None:
    check_refused(lambda: acted(client, action, BODIES[name]))


WRITES: dict[str, tuple[WriteRequest, pa.Table]] = {
    "no keys": (WriteRequest("plain"), ROWS),
    "other keys": (WriteRequest("plain", ("symbol", "nothing")), ROWS),
    "a null key": (WriteRequest("plain", ("symbol", "day")), ROWS.set_column(0, "symbol", pa.array(["A", None]))),
    "no columns": (WriteRequest("plain", ("symbol", "day")), pa.table({})),
    "two columns of one name": (
        WriteRequest("plain", ("symbol", "day")),
        pa.Table.from_arrays([*ROWS.columns, ROWS["score"]], [*ROWS.column_names, "score"]),
    ),
    "a sourced dataset": (WriteRequest("bars_1d", ("symbol", "day")), ROWS),
    "a column of nulls": (WriteRequest("plain", ("symbol", "day")), ROWS.append_column("none", pa.nulls(2))),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_does_not_fit_is_refused_and_leaves_nothing(name: str, client: fl.FlightClient, rig: Rig) -> None:
    request, rows = WRITES[name]
    check_refused(lambda: put(client, command(request.to_bytes()), rows))
    assert "plain" not in rig.cache.datasets()["name"].to_list()


@pytest.mark.parametrize("announced", [0, 1, 3])
def test_a_write_of_other_rows_than_announced_is_refused(announced: int, client: fl.FlightClient, rig: Rig) -> None:
    rig.cache.write("kept", ROWS, keys=["symbol", "day"])
    request = WriteRequest("kept", mode="replace", rows=announced)
    told = check_refused(lambda: put(client, command(request.to_bytes()), ROWS))
    assert told == "the write to kept broke off after 2 rows; nothing was stored"
    assert rig.cache.read("kept").height == 2
    rig.cache.delete("kept")


def test_a_write_larger_than_the_limit_is_refused(rigs: Rigs, flight: Callable[[Rig], fl.FlightClient]) -> None:
    small = rigs("tcp", max_write_bytes="64KiB")
    many = pa.table({"symbol": [str(number) for number in range(20_000)], "day": pa.array([date(2024, 1, 2)] * 20_000)})
    request = WriteRequest("big", ("symbol", "day"))
    told = check_refused(lambda: put(flight(small), command(request.to_bytes()), many))
    assert "65,536 bytes (max_write_bytes)" in told
    assert small.cache.datasets().is_empty()
    small.cache.write("big", many.slice(0, 100), keys=["symbol", "day"])
    assert small.cache.read("big").height == 100
