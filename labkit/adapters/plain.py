"""Documents as this package knows them: plain values, without the types of a driver."""

from __future__ import annotations

from bson.codec_options import CodecOptions, TypeDecoder, TypeRegistry
from bson.int64 import Int64

from labkit.ports.store import Document


class _Whole(TypeDecoder):
    """Large numbers are plain ones, too: the driver has a type of its own for them."""

    bson_type = Int64

    def transform_bson(self, value: Int64) -> int:
        return int(value)


PLAIN: CodecOptions[Document] = CodecOptions(type_registry=TypeRegistry([_Whole()]))
