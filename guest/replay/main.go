// Command replay makes the disk that a power cut would leave, from what
// dm-log-writes recorded of the writes to it.
//
//	replay LOG                          the number of entries
//	replay LOG TARGET ENTRIES SEED      the disk after so many, and the marks among them
//
// The target must hold what the disk did when the log began. Of the writes that
// no flush follows, those before the cut, each 512-byte sector is there or not as
// SEED says; all are there with seed 0. That is any disk with a cache.
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "replay:", err)
		os.Exit(1)
	}
}

func run(args []string) (err error) {
	if len(args) != 1 && len(args) != 4 {
		return errors.New("usage: replay LOG [TARGET ENTRIES SEED]")
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	l, err := openLog(f)
	if err != nil {
		return err
	}
	if len(args) == 1 {
		fmt.Println(l.entries)
		return nil
	}
	entries, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(args[3], 10, 64)
	if err != nil {
		return err
	}
	target, err := os.OpenFile(args[1], os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	err = l.replay(target, min(entries, l.entries), seed)
	return errors.Join(err, target.Sync(), target.Close())
}

// log is the log device of dm-log-writes (drivers/md/dm-log-writes.c). All
// numbers are little-endian; a block has sectorBytes.
//
//	block 0: u64 magic, u64 version 1, u64 number of entries, u32 bytes of a sector
//	then for each entry a block:
//	 0  u64 sector on the disk
//	 8  u64 number of sectors
//	16  u64 flags
//	24  u64 length of the text of a mark, which follows
//	and, unless it is a mark or a discard, the sectors that were written
type log struct {
	device      io.ReaderAt
	entries     uint64
	sectorBytes int64
}

const (
	magic   = 0x6a736677736872
	version = 1

	isFlush   = 1 << 0
	isFUA     = 1 << 1
	isDiscard = 1 << 2
	isMark    = 1 << 3
)

type entry struct {
	off, lengthBytes int64 // on the disk
	flags            uint64
	mark             string
	data             int64 // where its data lies in the log
}

func openLog(device io.ReaderAt) (*log, error) {
	var b [28]byte
	if _, err := device.ReadAt(b[:], 0); err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint64(b[:]) != magic || binary.LittleEndian.Uint64(b[8:]) != version {
		return nil, errors.New("not a log of dm-log-writes")
	}
	return &log{
		device: device, entries: binary.LittleEndian.Uint64(b[16:]),
		sectorBytes: int64(binary.LittleEndian.Uint32(b[24:])),
	}, nil
}

// replay writes the first n entries to target, but for what the cut may lose.
func (l *log) replay(target io.WriterAt, n, seed uint64) error {
	list, err := l.read(n)
	if err != nil {
		return err
	}
	flushed := 0
	for i, e := range list {
		if e.flags&isFlush != 0 {
			flushed = i // what came before it is on the disk when it is done
		}
	}
	rng := rand.New(rand.NewPCG(seed, n))
	likely := []float64{0.1, 0.5, 0.9, 1}[rng.IntN(4)]
	for i, e := range list {
		switch {
		case e.flags&isMark != 0:
			fmt.Println(e.mark)
		case e.flags&isDiscard != 0:
			err = errors.New("the log has a discard: what such a range reads is not known")
		default:
			err = l.copy(target, e, func() bool {
				return seed == 0 || i < flushed || e.flags&isFUA != 0 || rng.Float64() < likely
			})
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
	}
	return nil
}

func (l *log) read(n uint64) (list []entry, err error) {
	at := l.sectorBytes
	b := make([]byte, l.sectorBytes)
	for range n {
		if _, err := l.device.ReadAt(b, at); err != nil {
			return nil, err
		}
		at += l.sectorBytes
		e := entry{
			off:         int64(binary.LittleEndian.Uint64(b)) * l.sectorBytes,
			lengthBytes: int64(binary.LittleEndian.Uint64(b[8:])) * l.sectorBytes,
			flags:       binary.LittleEndian.Uint64(b[16:]), data: at,
		}
		if e.flags&isMark != 0 {
			length := min(binary.LittleEndian.Uint64(b[24:]), uint64(l.sectorBytes-32))
			e.mark = string(bytes.TrimRight(b[32:32+length], "\x00"))
		}
		if e.flags&(isMark|isDiscard) == 0 {
			at += e.lengthBytes
		}
		list = append(list, e)
	}
	return list, nil
}

func (l *log) copy(target io.WriterAt, e entry, kept func() bool) error {
	data := make([]byte, e.lengthBytes)
	if _, err := l.device.ReadAt(data, e.data); err != nil {
		return err
	}
	for len(data) > 0 {
		keep, n := kept(), l.sectorBytes
		for n < int64(len(data)) && kept() == keep {
			n += l.sectorBytes
		}
		if keep {
			if _, err := target.WriteAt(data[:n], e.off); err != nil {
				return err
			}
		}
		data, e.off = data[n:], e.off+n
	}
	return nil
}
