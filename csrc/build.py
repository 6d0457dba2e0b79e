"""The cffi builder: the cdef is cut out of the C headers, so there is one text and no drift."""

import os
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
HEADERS = ["dp.h", "dp_io.h", "dp_offload.h", "dp_bench.h"]
BEGIN, END = "/* cffi:begin */", "/* cffi:end */"


def cdef() -> str:
    """What stands between the markers of the public headers."""
    texts = [(CSRC / header).read_text() for header in HEADERS]
    return "\n".join(text.partition(BEGIN)[2].partition(END)[0] for text in texts)


FLAGS = [
    "-std=c11",
    "-D_GNU_SOURCE",
    "-O3",
    "-g",
    "-fvisibility=hidden",
    "-flto=auto",
    "-Wall",
    "-Wextra",
    *os.environ.get("DATAPLANE_CFLAGS", "").split(),
]

ffi = FFI()
ffi.cdef(cdef())
ffi.set_source(
    "dataplane._engine",
    "\n".join(f'#include "{header}"' for header in HEADERS),
    sources=sorted(str(path.relative_to(ROOT)) for path in CSRC.glob("*.c")),
    include_dirs=["csrc"],
    depends=sorted(str(p.relative_to(ROOT)) for g in ("*.h", "*.def") for p in CSRC.glob(g)),
    define_macros=[("DP_CFLAGS", '"' + " ".join(FLAGS) + '"')],
    extra_compile_args=FLAGS,
    extra_link_args=["-flto=auto", "-pthread", *os.environ.get("DATAPLANE_LDFLAGS", "").split()],
)
