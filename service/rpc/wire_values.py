"""The values of a protobuf message, counted on the wire before it is parsed.

An empty message takes two bytes on the wire and about a hundred when it is parsed: 20 MB of them
would take gigabytes. Source of the format: Protocol Buffers, "Encoding".
"""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor

Descriptor = Any  # protobuf's Python or upb: they have no common type

_VARINT = 0
_FIXED64 = 1
_BYTES = 2
_FIXED32 = 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10
_TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def num_values(data: bytes, descriptor: Descriptor, maximum: int) -> int:
    """Return the number of fields, list elements and map entries, up to `maximum`.

    A message that is cut or malformed is counted up to there: its parser refuses it.
    """
    found = 0
    pending: list[tuple[Descriptor, int, int]] = [(descriptor, 0, len(data))]
    while pending:
        of_message, position, end = pending.pop()
        while position < end and found <= maximum:
            found += 1
            tag, position = _varint(data, position)
            kind = tag & 7
            if kind != _BYTES:
                if kind == _VARINT:
                    _, position = _varint(data, position)
                else:  # a group has its fields behind its start
                    position += _FIXED_BYTES.get(kind, 0)
                continue
            length, position = _varint(data, position)
            field = of_message.fields_by_number.get(tag >> 3)
            if field is not None and field.message_type is not None:
                pending.append((field.message_type, position, min(position + length, end)))
            elif field is not None and field.type not in _TEXTS:
                found += length  # packed numbers, of a byte or more
            position += length
    return found


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number and the position behind it."""
    value = 0
    for index, byte in enumerate(data[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    return value, len(data)
