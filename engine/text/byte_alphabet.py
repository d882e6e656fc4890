"""The two ways in which vocabularies spell raw bytes.

Byte-level vocabularies write each byte as one printable character: bytes that are printable in Latin-1 stand for
themselves, the others for U+0100 onwards in order. Byte-fallback vocabularies write <0x00> to <0xFF>.

Knows the spellings; must not know tokenizers.
"""

from collections.abc import Mapping
from types import MappingProxyType


def _byte_of_char() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


BYTE_OF_CHAR: Mapping[str, int] = MappingProxyType(_byte_of_char())


def byte_token(byte: int) -> str:
    """The byte-fallback token of `byte` (0 to 255)."""
    return f"<0x{byte:02X}>"


def is_byte_token(token: str) -> bool:
    """Whether `token` is a byte-fallback token."""
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return False
    try:
        bytes.fromhex(token[3:5])
    except ValueError:
        return False
    return True


def token_bytes(token: str) -> bytes:
    """The bytes of a byte-level token; a token with any character outside of the alphabet stands for its own UTF-8."""
    try:
        return bytes([BYTE_OF_CHAR[char] for char in token])
    except KeyError:
        return token.encode("utf-8")
