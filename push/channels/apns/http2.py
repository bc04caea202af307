"""The client's half of HTTP/2 (RFC 9113) as far as pushes need it: frames, flow control, header blocks;
no I/O.

By hand, because the h2 library, which aioapns drives, refuses every frame after a GOAWAY: the answers
of pushes in flight would be lost. It also costs more time than all the rest of a push. Header fields
are coded by hpack, as in h2.
"""

import struct
from struct import Struct
from typing import Protocol

from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hpack.hpack import encode_integer

NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR = 0x0, 0x1, 0x3, 0x6
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = 0x7, 0x8, 0x9

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE = range(6)
_PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = range(6, 10)
_END_STREAM = _ACK = 0x1
_END_HEADERS, _PADDED, _WITH_PRIORITY = 0x4, 0x8, 0x20
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE = 1, 2, 3, 4

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME = Struct(">xHBBL")  # A payload is never longer than 16,384 bytes.
_SETTING = Struct(">HL")
_TWO = Struct(">LL")
_ONE = Struct(">L")
_LONGEST_FRAME = 16_384
_LARGEST = 2**31 - 1
_DEFAULT_WINDOW = 65_535
_CREDIT_BACK_AFTER = _DEFAULT_WINDOW // 2
_HEADERS_KEPT = 16_384
_BODY_KEPT = 4_096
"""A reason needs some 100 bytes; of what is longer the rest is dropped."""


class Http2Error(Exception):
    """The server broke the protocol: the connection cannot go on."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Http2Listener(Protocol):
    """Who is told what the server does. A stream that was told of as over is not heard of again."""

    def on_ready(self) -> None:
        """The server's first settings have come: it takes requests."""

    def on_settings(self, header_table_size: int) -> None:
        """The size, in bytes, of the table in which the server keeps header fields."""

    def on_response(
        self, stream_id: int, status: bytes, headers: dict[bytes, bytes], body: bytes
    ) -> None:
        """A whole answer. Of a 200 the headers are left out."""

    def on_reset(self, stream_id: int, code: int) -> None:
        """The server gave a request up."""

    def on_goaway(self, last_stream_id: int, text: bytes) -> None:
        """The server takes no new requests, and has done nothing with those above the last."""

    def on_room(self) -> None:
        """There may be room for another request."""

    def on_pong(self) -> None:
        """A ping was answered."""


class _Stream:
    __slots__ = ("body", "headers", "status", "unsent", "window")

    def __init__(self) -> None:
        self.status = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.unsent = b""
        self.window = 0


class Http2Client:
    """One connection. What is to be sent is kept until `taken`."""

    def __init__(self, listener: Http2Listener) -> None:
        self._listener = listener
        self._decoder = Decoder(max_header_list_size=_HEADERS_KEPT)
        settings = _SETTING.pack(_ENABLE_PUSH, 0)
        self._out = [_PREFACE, _frame(_SETTINGS, 0, 0, settings)]
        self._streams: dict[int, _Stream] = {}
        self._next_id = 1
        self._ready = False
        self._rest = b""
        self._block: tuple[int, int, bytes] | None = None
        self._max_streams = _LARGEST
        self._window = self._stream_window = _DEFAULT_WINDOW
        self._to_credit = 0
        self._receive = {
            _DATA: self._on_data,
            _HEADERS: self._on_headers,
            _RST_STREAM: self._on_rst_stream,
            _SETTINGS: self._on_settings,
            _PUSH_PROMISE: self._on_push_promise,
            _PING: self._on_ping,
            _GOAWAY: self._on_goaway,
            _WINDOW_UPDATE: self._on_window_update,
            _CONTINUATION: self._on_continuation,
        }

    @property
    def used_up(self) -> bool:
        """Whether no stream numbers are left (RFC 9113 section 5.1.1)."""
        return self._next_id > _LARGEST

    def has_room(self, size: int) -> bool:
        """Whether a request with a body of this size may start. Its whole body fits the connection's
        window, so that no request ever waits half sent for others."""
        return (
            self._window >= size
            and len(self._streams) < self._max_streams
            and self._next_id <= _LARGEST
        )

    def taken(self) -> bytes:
        """What is to be sent now."""
        out, self._out = self._out, []
        return b"".join(out)

    def request(self, block: bytes, body: bytes) -> int:
        """Starts a request, for which there must be room; its stream. The header block and the body
        must each fit a frame."""
        stream_id = self._next_id
        self._next_id += 2
        self._streams[stream_id] = stream = _Stream()
        size = len(body)
        self._window -= size
        headers = _FRAME.pack(len(block), _HEADERS, _END_HEADERS, stream_id)
        if size <= self._stream_window:
            self._out += headers, block, _FRAME.pack(size, _DATA, _END_STREAM, stream_id), body
        else:
            self._out += headers, block
            stream.unsent, stream.window = body, self._stream_window
            self._send_rest(stream_id, stream)
        return stream_id

    def reset(self, stream_id: int) -> None:
        """Gives a request up."""
        stream = self._streams.pop(stream_id)
        self._window += len(stream.unsent)
        self._out.append(_frame(_RST_STREAM, 0, stream_id, _ONE.pack(CANCEL)))

    def ping(self) -> None:
        """Asks for a sign of life."""
        self._out.append(_frame(_PING, 0, 0, b"bellwire"))

    def goaway(self, code: int = NO_ERROR) -> None:
        """Tells the server that the connection ends."""
        self._out.append(_frame(_GOAWAY, 0, 0, _TWO.pack(0, code)))

    def receive(self, data: bytes) -> None:
        """Takes what the server has sent.

        Raises:
            Http2Error: it broke the protocol.
        """
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        try:
            while end - at >= 9:
                length = int.from_bytes(data[at : at + 3])
                if length > _LONGEST_FRAME:
                    raise Http2Error(FRAME_SIZE_ERROR, f"a frame of {length} bytes")
                stop = at + 9 + length
                if stop > end:
                    break
                kind, flags, stream_id = data[at + 3], data[at + 4], data[at + 5 : at + 9]
                self._take(kind, flags, int.from_bytes(stream_id) & _LARGEST, data[at + 9 : stop])
                at = stop
        except (struct.error, IndexError) as error:
            raise Http2Error(FRAME_SIZE_ERROR, f"a frame is too short: {error}") from error
        except HPACKError as error:
            raise Http2Error(COMPRESSION_ERROR, f"headers cannot be read: {error}") from error
        self._rest = data[at:]

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if (self._block is not None) != (kind == _CONTINUATION):
            raise Http2Error(PROTOCOL_ERROR, "CONTINUATION out of place")
        if not self._ready and kind != _SETTINGS:
            raise Http2Error(PROTOCOL_ERROR, "its first frame is not SETTINGS")
        if stream_id >= self._next_id or (stream_id and stream_id % 2 == 0):
            raise Http2Error(PROTOCOL_ERROR, f"frame {kind} on stream {stream_id}, never opened")
        take = self._receive.get(kind)
        if take is not None:  # PRIORITY and what is unknown are passed over (section 5.5).
            take(flags, stream_id, payload)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        payload = _without_padding(flags, payload)
        if flags & _WITH_PRIORITY:
            payload = payload[5:]
        if flags & _END_HEADERS:
            self._on_block(flags, stream_id, payload)
        else:
            self._block = flags, stream_id, payload

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None or self._block[1] != stream_id:
            raise Http2Error(PROTOCOL_ERROR, "CONTINUATION out of place")
        first_flags, _, begun = self._block
        block = begun + payload
        if len(block) > _HEADERS_KEPT:
            raise Http2Error(PROTOCOL_ERROR, f"headers of more than {_HEADERS_KEPT} bytes")
        if flags & _END_HEADERS:
            self._block = None
            self._on_block(first_flags, stream_id, block)
        else:
            self._block = first_flags, stream_id, block

    def _on_block(self, flags: int, stream_id: int, block: bytes) -> None:
        headers = list(self._decoder.decode(block, raw=True))  # Even of a stream given up.
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not stream.status:
            name, status = headers[0] if headers else (b"", b"")
            if name != b":status" or len(status) != 3 or not status.isdigit():
                raise Http2Error(PROTOCOL_ERROR, "an answer without a status")
            if status.startswith(b"1"):
                return  # More follows (RFC 9110 section 15.2).
            stream.status = status
            if status != b"200":
                stream.headers = {bytes(name): bytes(value) for name, value in headers}
        if flags & _END_STREAM:
            self._answered(stream_id, stream)

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._to_credit += len(payload)
        if self._to_credit >= _CREDIT_BACK_AFTER:
            self._out.append(_frame(_WINDOW_UPDATE, 0, 0, _ONE.pack(self._to_credit)))
            self._to_credit = 0
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not stream.status:
            raise Http2Error(PROTOCOL_ERROR, "DATA before an answer's headers")
        stream.body = (stream.body + _without_padding(flags, payload))[:_BODY_KEPT]
        if flags & _END_STREAM:
            self._answered(stream_id, stream)

    def _answered(self, stream_id: int, stream: _Stream) -> None:
        del self._streams[stream_id]
        if stream.unsent:  # The server needs no more of it (section 8.1).
            self._window += len(stream.unsent)
            self._out.append(_frame(_RST_STREAM, 0, stream_id, _ONE.pack(NO_ERROR)))
        self._listener.on_response(stream_id, stream.status, stream.headers, stream.body)

    def _on_rst_stream(self, _flags: int, stream_id: int, payload: bytes) -> None:
        (code,) = _ONE.unpack(payload)
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            self._window += len(stream.unsent)
            self._listener.on_reset(stream_id, code)

    def _on_settings(self, flags: int, _stream_id: int, payload: bytes) -> None:
        if flags & _ACK:
            return
        # Before what the new settings allow: until then the server goes by the old ones.
        self._out.append(_frame(_SETTINGS, _ACK, 0, b""))
        for name, value in _SETTING.iter_unpack(payload):
            if name == _MAX_CONCURRENT_STREAMS:
                self._max_streams = value
            elif name == _INITIAL_WINDOW_SIZE:
                self._resize_windows(value)
            elif name == _HEADER_TABLE_SIZE:
                self._listener.on_settings(value)
        if not self._ready:
            self._ready = True
            self._listener.on_ready()
        self._listener.on_room()

    def _resize_windows(self, size: int) -> None:
        if size > _LARGEST:
            raise Http2Error(FLOW_CONTROL_ERROR, f"a window of {size} bytes")
        more = size - self._stream_window
        self._stream_window = size
        for stream_id, stream in self._streams.items():
            if stream.unsent:
                stream.window += more
                self._send_rest(stream_id, stream)

    def _on_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        (more,) = _ONE.unpack(payload)
        more &= _LARGEST
        if not more:
            raise Http2Error(PROTOCOL_ERROR, "a window grows by nothing")
        if stream_id:
            stream = self._streams.get(stream_id)
            if stream is not None and stream.unsent:
                stream.window += more
                self._send_rest(stream_id, stream)
            return
        self._window += more
        if self._window > _LARGEST:
            raise Http2Error(FLOW_CONTROL_ERROR, "a window of more than 2^31 - 1 bytes")
        self._listener.on_room()

    def _send_rest(self, stream_id: int, stream: _Stream) -> None:
        """Sends what the stream's window takes; the connection's window was set aside at its start."""
        part = stream.unsent[: max(stream.window, 0)]
        if part:
            stream.unsent = stream.unsent[len(part) :]
            stream.window -= len(part)
            flags = 0 if stream.unsent else _END_STREAM
            self._out.append(_frame(_DATA, flags, stream_id, part))

    def _on_ping(self, flags: int, _stream_id: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise Http2Error(FRAME_SIZE_ERROR, f"a PING of {len(payload)} bytes")
        if flags & _ACK:
            self._listener.on_pong()
        else:
            self._out.append(_frame(_PING, _ACK, 0, payload))

    def _on_goaway(self, _flags: int, _stream_id: int, payload: bytes) -> None:
        last, _code = _TWO.unpack(payload[:8])
        last &= _LARGEST
        for stream_id in [id_ for id_ in self._streams if id_ > last]:
            self._window += len(self._streams.pop(stream_id).unsent)
        self._listener.on_goaway(last, payload[8 : 8 + _BODY_KEPT])

    def _on_push_promise(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise Http2Error(PROTOCOL_ERROR, "it pushes, which it was told not to")


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return _FRAME.pack(len(payload), kind, flags, stream_id) + payload


def _without_padding(flags: int, payload: bytes) -> bytes:
    if not flags & _PADDED:
        return payload
    if payload[0] >= len(payload):
        raise Http2Error(PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


_TABLE_NEEDED = 2048
"""Bytes: the fields kept, with 32 for each (section 4.1), take about 700."""
_TABLE = 4096

_PATH = b"\x04"  # Literal without indexing, its name the static table's fourth.
_APNS_ID = b"\x00\x07apns-id"
_EXPIRATION = b"\x00\x0fapns-expiration"
_COLLAPSE_ID = b"\x00\x10apns-collapse-id"


class PushHeaders:
    """Writes the header blocks of one connection (HPACK, RFC 7541), in the order in which they are sent.
    What is alike in all its pushes takes a byte each from the second on, what differs goes as it is.

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
