from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmd.errors import FaultError, Reason, error
from kvmd.v1 import image_pb2, memory_pb2, process_pb2, symbol_pb2
from libkvm.convert import record
from libkvm.printable import printable
from libkvm.records import Info, LogRecord, Process, RangeResult, Symbol
from unit.client.fake import wire


def test_absent_fields_are_none_and_zero_is_not():
    info = record(Info, image_pb2.Info(kaslr_offset=0))

    assert info.kaslr_offset == 0
    assert info.phys_base is None
    assert info.panic_message is None
    assert info.load_average == ()


def test_arguments_are_none_unless_they_were_asked_for():
    assert record(Process, process_pb2.Process()).args is None
    assert record(Process, process_pb2.Process(arguments=process_pb2.Strings())).args == ()


def test_arguments_carry_their_error():
    fault = wire(error(Reason.NOT_PRESENT, "swapped out", address=0x1000))
    process = record(Process, process_pb2.Process(arguments=process_pb2.Strings(values=[b"a"], error=fault)))

    assert process.args == ("a",)
    assert isinstance(process.args_error, FaultError)
    assert process.args_error.address == 0x1000


def test_enums_are_words():
    assert record(Symbol, symbol_pb2.Symbol(source=symbol_pb2.SYMBOL_SOURCE_VMCOREINFO)).source == "vmcoreinfo"
    assert record(Symbol, symbol_pb2.Symbol(source=77)).source == "77"


def test_range_data_stay_bytes():
    assert record(RangeResult, memory_pb2.RangeResult(data=b"\xff")) == RangeResult(b"\xff", None)


@given(st.binary())
def test_undecodable_bytes_come_back(data):
    text = record(LogRecord, image_pb2.LogRecord(text=data)).text

    assert text.encode("utf-8", "surrogateescape") == data


@given(st.binary())
def test_printable_text_has_nothing_that_a_terminal_obeys(data):
    shown = printable(data.decode("utf-8", "surrogateescape"))

    assert shown.isprintable()
    assert shown.encode("utf-8") is not None


def test_printable_names_what_it_escapes():
    assert printable("a\x1b[2J\u202eb\x9b\udcff\n\U000e0001") == r"a\x1b[2J\u202eb\x9b\xff\x0a\U000e0001"
    assert printable("café ok") == "café ok"
