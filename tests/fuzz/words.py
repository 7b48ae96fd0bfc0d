"""Words, ids and noise of which cases are made."""

from __future__ import annotations

HOST_FUNCTIONS = (b'"log"', b'"db_query"', b'"no such"', b"7", b"null")
ODD_IDS = (
    b"1", b"1.0", b"-1", b"true", b"[]", b'{"a":1}', b'"1"', b'"<pre>"', b'"<pre>0"', b'"<pre>01"',
    b'"<pre>-1"', b'"<pre>1 "', b'" <pre>1"', b'"<pre>1x"', b'"<pre>\\u0031"', b'"<pre>1\\u0000"',
    b'"<pre>\xef\xbc\x91"', b'"<pre>18446744073709551617"', b'"<pre>9999999999999999999"',
    b'"<pre>99999999999999999999"', b'"z00000000.1"', b'"<fill:3000>"', b'"<pre><fill:100>"',
    b'"\\ud800"', b'"<pre>\\ud800"',
)  # fmt: skip
NOISE = (
    b"2024-01-01 INFO started", b"", b" ", b"\t", b"\r", b"\xef\xbb\xbf", b"\x00", b"\x00\x00\x00",
    b"\xff\xfe\x80", b"null", b"[]", b"{}", b"{", b"}", b'{"', b'"', b"[[[[", b'{"level":"info"}',
    b'{"type":"log","success":true}', b'{"type":"guest_chunk","id":"<id:0>","data":"c"}',
    b'{"type":"guest_call","id":"<id:0>","slot_name":"s"}', b'{"type":"guest_chunk","data":"c"}',
    b"Content-Length: 120",
    b"content-length:7\r",
    b"<fill:70000>", b"<fill:5000>", b"<deep:3000>", b'{"a":<deep:2000>', b'{"a":' * 40, b'{"\\',
    b'{"success":', b'{"type":"guest_response"}', b'{"type":"host_call"}', b"1e400", b"NaN",
    b'[{"success":true,"data":"inside"}]', b'{"x":{"success":true,"data":"inside"}}',
    b'{"x":"{\\"success\\":true}"}', b"text { text", b"Warning: <b>x</b> in /a.php on line 3",
)  # fmt: skip
DICTIONARY = (
    b"<id:0>", b"<id:1>", b"<pre>", b"<cut>\n", b"\n", b"\r\n", b"\x00", b'"', b"\\", b"{", b"}",
    b"[", b"]", b",", b'"id":', b'"type":', b'"success":true', b'"data":', b'"error":null',
    b"guest_response", b"host_call", b"\xef\xbb\xbf", b"\xff", b'"\\ud800"', b"1e309",
    b"18446744073709551616", b"NaN",
    b"%calls 1\n", b"%calls 3\n", b"%expire 0\n", b"%abandon 0\n", b"%eof\n", b"%ids\n",
    b"%strict\n", b"%features\n", b"%streams 1\n", b"%streams 2\n", b"%call\n", b"%soon\n",
    b"%last\n", b"%ping\n", b"%expire 1\n", b"%abandon 1\n", b"guest_chunk",
    b'"call_id":"<id:0>"',
    b"%limit 512\n", b"<pad:512>", b"<pad:513>", b"%limit 4096\n", b"<pad:4096>", b"<pad:4097>",
    b"<fill:4096>", b"<fill:70000>", b"<deep:1022>", b"<deep:1023>",
    b"<shut:1023>",
    b"Content-Length: 12\r\n\r\n", b'{"type":"guest_chunk","id":"<id:0>","data":1}\n',
)  # fmt: skip
