"""Unpacks the kernel out of a bzImage: vmlinux.py VMLINUZ VMLINUX.

qemu starts an ELF kernel by its PVH entry; a guest that is emulated would need
tens of seconds to unpack it itself. Offsets: the kernel's Documentation, x86
boot protocol (setup_sects 0x1f1, payload_offset 0x248, payload_length 0x24c).
"""

import lzma
import struct
import sys

image = open(sys.argv[1], "rb").read()
payload_offset, payload_length = struct.unpack_from("<II", image, 0x248)
start = ((image[0x1F1] or 4) + 1) * 512 + payload_offset
payload = image[start : start + payload_length]
if payload[:6] != b"\xfd7zXZ\0":
    sys.exit("the kernel is not packed with xz, as Debian's are: " + payload[:6].hex())
kernel = lzma.LZMADecompressor().decompress(payload)
if kernel[:4] != b"\x7fELF":
    sys.exit("there is no ELF kernel in the image")
open(sys.argv[2], "wb").write(kernel)
