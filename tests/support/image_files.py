"""Image files written byte by byte: any bit depth, transparent colours, colour profiles, which Pillow can't write."""

import struct
import zlib
from collections.abc import Mapping

import numpy as np


def png(width: int, height: int, depth: int, kind: int, row: bytes, **chunks: bytes) -> bytes:
    """A PNG of equal rows; kind: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA. chunks: before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = zlib.compress((b"\0" + row) * height)
    named = [("IHDR", header), *chunks.items(), ("IDAT", pixels), ("IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name.encode(), data) for name, data in named)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def tiff(width: int, height: int, bits: int, photometric: int, data: bytes, colours: int = 1, form: int = 1) -> bytes:
    """A TIFF without compression. photometric: 0 (0 is white), 1 grey, 2 RGB; form: 1 unsigned, 2 signed, 3 float."""
    sizes = {258: bits, 339: form}
    single = {254: 0, 256: width, 257: height, 259: 1, 262: photometric, 277: colours, 278: height, 279: len(data)}
    return tiff_of(single, {tag: [value] * colours for tag, value in sizes.items()}, data)


def tiff_of(single: Mapping[int, int], several: Mapping[int, list[int]], data: bytes) -> bytes:
    """A TIFF with tags of one number (32 bits) and of several (16 bits), and its pixels."""
    start = 8 + 2 + 12 * (len(single) + len(several) + 1) + 4
    lists = {tag: struct.pack(f"<{len(values)}H", *values) for tag, values in several.items()}
    long = b"".join(packed for packed in lists.values() if len(packed) > 4)
    entries = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in single.items()}
    entries[273] = struct.pack("<HHII", 273, 4, 1, start + len(long))
    for tag, packed in lists.items():
        where = struct.pack("<I", start + long.index(packed)) if len(packed) > 4 else packed.ljust(4, b"\0")
        entries[tag] = struct.pack("<HHI", tag, 3, len(packed) // 2) + where
    table = b"".join(entries[tag] for tag in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4) + long + data


def profile(primaries: np.ndarray | None, gamma: float, name: str = "test") -> bytes:
    """An ICC profile of a display; primaries: (3, 3) XYZ of red, green, blue (white D50), None for grey."""
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(256 * gamma))
    text = name.encode("utf-16-be")
    label = b"mluc" + struct.pack(">III2s2sII", 0, 1, 12, b"en", b"US", len(text), 28) + text
    elements = {b"desc": label, b"cprt": label, b"wtpt": xyz(np.array([0.9642, 1, 0.8249]))}
    if primaries is None:
        elements[b"kTRC"] = curve
    else:
        elements |= {letter + b"XYZ": xyz(row) for letter, row in zip((b"r", b"g", b"b"), primaries, strict=True)}
        elements |= {letter + b"TRC": curve for letter in (b"r", b"g", b"b")}
    table, body, offset = b"", b"", 128 + 4 + 12 * len(elements)
    for tag, element in elements.items():
        element += bytes(-len(element) % 4)
        table += tag + struct.pack(">II", offset + len(body), len(element))
        body += element
    space = b"GRAY" if primaries is None else b"RGB "
    head = struct.pack(">I4sI4s4s4s", offset + len(body), b"test", 0x04200000, b"mntr", space, b"XYZ ")
    head = head.ljust(36, b"\0") + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(elements)) + table + body


def xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">iii", *np.rint(65536 * values).astype(int))
