// Package e2e holds no code but tests: the real server under the clients that
// people use. Each test starts the program, built anew, on sockets of its own. A
// client that is not installed fails the test: ci/install.sh installs them all.
//
// Clients marked + are of Debian 13 (qemu 10, libnbd 1.22, put there by
// ci/clients.sh), the others of Debian 12 (qemu 7.2, libnbd 1.14).
//
// Which stock client exercises which part of the protocol:
//
//	NBD_OPT_EXPORT_NAME          libnbd without fixed newstyle, with and without zeroes
//	NBD_OPT_ABORT                libnbd opt_abort, nbdinfo --list
//	NBD_OPT_LIST                 nbdinfo --list
//	NBD_OPT_STARTTLS             nbdinfo, nbdcopy, qemu-io, qemu-img, the same +
//	  refused                    libnbd TLS_ALLOW, TLS_REQUIRE
//	  required and left out      nbdinfo, qemu-img, the same +
//	  with TLS 1.2, or 1.3 only  crypto/tls (package nbd); fio's engine takes no certificates
//	NBD_OPT_INFO                 nbdinfo --list, libnbd opt_info
//	NBD_OPT_GO                   all
//	NBD_OPT_STRUCTURED_REPLY     all but those of EXPORT_NAME
//	NBD_OPT_EXTENDED_HEADERS     all +, libnbd opt_extended_headers +
//	NBD_OPT_LIST_META_CONTEXT    libnbd opt_list_meta_context, nbdinfo
//	NBD_OPT_SET_META_CONTEXT     nbdinfo --map, qemu-img, nbdcopy
//	an unknown option            none exists: bytes of our own
//	NBD_CMD_READ, WRITE, DISC    all
//	  with NBD_CMD_FLAG_DF       libnbd pread_structured
//	  with NBD_CMD_FLAG_FUA      qemu-io write -f
//	  a WRITE with PAYLOAD_LEN   libnbd +
//	  extended and without it    qemu-io +, against the letter of the protocol
//	NBD_CMD_FLUSH                qemu-io flush, nbdcopy --flush, nbdfuse
//	NBD_CMD_TRIM                 qemu-io discard, mkfs.ext4 through nbdfuse
//	  with NBD_CMD_FLAG_FUA      libnbd trim
//	  beyond 4 GiB               libnbd trim +
//	NBD_CMD_WRITE_ZEROES         qemu-io write -z -u
//	  with NBD_CMD_FLAG_NO_HOLE  qemu-io write -z
//	  with FAST_ZERO             qemu-io write -z -u -n
//	  beyond 4 GiB               qemu-io write -z -u -n +, libnbd zero +
//	NBD_CMD_BLOCK_STATUS         nbdinfo --map, qemu-img convert, nbdcopy
//	  with NBD_CMD_FLAG_REQ_ONE  libnbd block_status, qemu-img convert
//	  beyond 4 GiB               nbdinfo --map +, qemu-io map +, libnbd block_status_64 +
//	  with a payload             libnbd block_status_filter +
//	NBD_CMD_CACHE                libnbd cache, + beyond 4 GiB
//	unknown commands and flags   libnbd, not strict; for commands none exists: bytes of our own
package e2e
