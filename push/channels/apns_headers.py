"""The headers of a push as an HPACK block (RFC 7541): what is alike in all pushes of a connection
takes a byte each from the second push on, what differs goes as it is."""

from hpack import Encoder
from hpack.hpack import encode_integer

_TABLE_NEEDED = 2048
"""Bytes: the fields kept, with 32 for each (section 4.1), take about 700."""
_TABLE = 4096

_PATH = b"\x04"  # Literal without indexing, its name the static table's fourth.
_APNS_ID = b"\x00\x07apns-id"
_EXPIRATION = b"\x00\x0fapns-expiration"
_COLLAPSE_ID = b"\x00\x10apns-collapse-id"


class PushHeaders:
    """Writes the header blocks of one connection, in the order in which they are sent.

    Args:
        authority: The server, `:authority`.
        topic: `apns-topic`.
    """

    def __init__(self, authority: str, topic: str) -> None:
        self._head = [(":method", "POST"), (":scheme", "https"), (":authority", authority)]
        self._fields = [("apns-topic", topic), ("apns-push-type", "voip"), ("apns-priority", "10")]
        self._encoder = Encoder()
        self._indexed = True
        self._authorization: str | None = ""
        self._ends = (b"", b"")

    def resize_table(self, size: int) -> None:
        """The server keeps this many bytes of fields."""
        size = min(size, _TABLE)
        if size != self._encoder.header_table_size:
            self._encoder.header_table_size = size
        self._indexed = size >= _TABLE_NEEDED
        self._authorization = ""

    def block(
        self, path: str, apns_id: str, expiration: str, collapse_id: str, authorization: str | None
    ) -> bytes:
        """The block of the next push. `authorization` None: a certificate speaks for it."""
        if authorization == self._authorization:
            head, tail = self._ends
        else:
            head, tail = self._begin(authorization)
        return b"".join(
            (
                head,
                _PATH,
                _text(path),
                tail,
                _APNS_ID,
                _text(apns_id),
                _EXPIRATION,
                _text(expiration),
                _COLLAPSE_ID,
                _text(collapse_id),
            )
        )

    def _begin(self, authorization: str | None) -> tuple[bytes, bytes]:
        """The block's ends with a new authorization. Written twice with the table emptied before:
        first they enter the fields into it, from then on they point to them. Where the server's table
        is too small for that, they go as they are."""
        self._authorization = authorization
        if self._indexed:
            size = self._encoder.header_table_size
            self._encoder.header_table_size = 0
            self._encoder.header_table_size = size
        first = self._write(authorization)
        self._ends = self._write(authorization)
        return first

    def _write(self, authorization: str | None) -> tuple[bytes, bytes]:
        fields = self._fields
        if authorization is not None:
            fields = [*fields, ("authorization", authorization)]
        return (
            self._encoder.encode(self._kept(self._head), huffman=False),
            self._encoder.encode(self._kept(fields), huffman=False),
        )

    def _kept(self, fields: list[tuple[str, str]]) -> list[tuple[str, str, bool]]:
        return [(name, value, not self._indexed) for name, value in fields]


def _text(text: str) -> bytes:
    raw = text.encode()
    size = len(raw)
    return (bytes((size,)) if size < 127 else bytes(encode_integer(size, 7))) + raw
