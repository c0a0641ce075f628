"""The file of a form (multipart/form-data), read as a stream: one field `file`, and nothing of it is held."""

from __future__ import annotations

from email.message import Message
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser

from ulna.serving.limits import Refused

FIELD = "file"
MOST_HEADER = 4096  # bytes of the headers of a part
MOST_PARTS = 16
MOST_OTHER = 65536  # bytes of all other fields


class FilePart:
    """Takes the bytes of a form, and gives those of its file.

    Args:
        content_type: of the request.

    Attributes:
        file_name: as the form has it; None before its file begins.

    Raises:
        Refused: if the type names no boundary.
    """

    def __init__(self, content_type: str) -> None:
        self.file_name: str | None = None
        boundary = _parameters(content_type).get("boundary", "")
        if not boundary or len(boundary) > 70:
            raise Refused(400, "the form has no boundary; send it as multipart/form-data with one")
        self._out: list[bytes] = []
        self._header, self._value = bytearray(), bytearray()
        self._headers: dict[str, str] = {}
        self._in_file, self._found, self._ended = False, False, False
        self._parts = self._other = 0
        self._parser = MultipartParser(
            boundary.encode("latin-1", "replace"),
            {
                "on_part_begin": self._part_begin,
                "on_part_data": self._part_data,
                "on_header_field": lambda data, start, end: self._add(self._header, data[start:end]),
                "on_header_value": lambda data, start, end: self._add(self._value, data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> list[bytes]:
        """Bytes of the file in the next bytes of the form.

        Raises:
            Refused: if it is no form, or holds more than one file.
        """
        self._out = []
        try:
            self._parser.write(data)
        except MultipartParseError:
            raise _damaged() from None
        return self._out

    def end(self) -> None:
        """Called behind the last byte.

        Raises:
            Refused: if the form is cut short, or holds no file.
        """
        if not self._ended:
            raise _damaged()
        if not self._found:
            raise Refused(400, f"the form has no file in its field `{FIELD}`; send one")

    def _part_begin(self) -> None:
        self._parts += 1
        self._headers, self._in_file = {}, False
        if self._parts > MOST_PARTS:
            raise Refused(400, f"the form has more than {MOST_PARTS} fields; send the file alone")

    def _add(self, where: bytearray, data: bytes) -> None:
        where += data
        if len(where) > MOST_HEADER:
            raise Refused(400, "a field of the form has headers that are too long; send the file alone")

    def _header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value.decode("utf-8", "replace")
        self._header.clear()
        self._value.clear()
        if len(self._headers) > MOST_PARTS:
            raise Refused(400, "a field of the form has too many headers; send the file alone")

    def _headers_finished(self) -> None:
        told = _parameters(self._headers.get("content-disposition", ""))
        if told.get("name") != FIELD:
            return
        if self._found:
            raise Refused(400, "the form has several files; send one, and a DICOM series as a .zip")
        self._found = self._in_file = True
        self.file_name = told.get("filename", "")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._out.append(data[start:end])
            return
        self._other += end - start
        if self._other > MOST_OTHER:
            raise Refused(400, f"the form has a large field beside `{FIELD}`; send the file alone")

    def _end(self) -> None:
        self._ended = True


def _damaged() -> Refused:
    return Refused(400, "the form is damaged or cut short; send it again")


def _parameters(header: str) -> dict[str, Any]:
    """What a header says behind its first word."""
    message = Message()
    message["content-type"] = header.replace("\r", " ").replace("\n", " ")
    found = message.get_params(failobj=[], unquote=True)
    return {name.lower(): value if isinstance(value, str) else value[2] for name, value in found[1:]}
