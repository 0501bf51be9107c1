"""Sign matrices at one bit an entry: public path of `panther.linalg.sign_bits`."""

from panther.linalg.sign_bits import pack_signs, sign_magnitude, unpack_signs

__all__ = ["pack_signs", "sign_magnitude", "unpack_signs"]
