package catalog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
)

// readPages returns every record of a bbolt file in key order and the number
// of the last transaction, or what is wrong with its pages. It exists because bbolt trusts them: a flipped bit in
// a page header makes it panic, in a goroutine of its own at that, or read
// beyond its map; one in a branch key makes it look for a record in the wrong
// leaf. So every field of every page in use must be what bbolt would have
// written there, and only then does bbolt see the file.
//
// The layout (bbolt's internal/common, byte order of the machine). A page is
//
//	0   8  id, its position in the file
//	8   2  flags: branch 1, leaf 2, meta 4 (free list 16: none here)
//	10  2  number of elements
//	12  4  overflow: pages that follow and belong to it
//	16  -  elements, then their keys and values, packed in the same order
//
//	branch element: 0 4 position from here  4 4 key size  8 8 page id
//	leaf element:   0 4 flags (bucket 1)    4 4 position from here  8 4 key size  12 4 value size
//	meta:           0 4 magic  4 4 version  8 4 page size  12 4 flags  16 8 root page  24 8 sequence
//	                32 8 free list page, or all ones  40 8 pages in use  48 8 transaction  56 8 FNV-1a of these
//
// The root page is a leaf whose one element is our bucket: root page and
// sequence (8 each), and if the root page is 0 the bucket's only leaf in line.
func readPages(file []byte) (records []record, transaction uint64, err error) {
	var newest boltMeta
	for id := range uint64(2) {
		m, err := readMeta(file, id)
		if err != nil {
			return nil, 0, err
		}
		if m.transaction >= newest.transaction {
			newest = m
		}
	}
	if newest.pages > uint64(len(file))/pageSizeBytes { // bbolt would list them all as free
		return nil, 0, fmt.Errorf("%w: meta page %d: more pages than the file has", ErrCorrupt, newest.transaction%2)
	}
	if newest.freeList != noFreeList {
		return nil, 0, fmt.Errorf("%w: meta page %d: it has a free list", ErrCorrupt, newest.transaction%2)
	}
	w := walk{file: file, pages: newest.pages, seen: make(map[uint64]bool)}
	top, err := w.page(newest.root, nil, nil, nil)
	if err != nil {
		return nil, 0, err
	}
	if len(top) != 1 || string(top[0].key) != bucketName || !top[0].bucket {
		return nil, 0, fmt.Errorf("%w: page %d: it does not hold the bucket %q alone", ErrCorrupt, newest.root, bucketName)
	}
	elements, err := w.bucket(top[0].value)
	if err != nil {
		return nil, 0, err
	}
	records = make([]record, len(elements))
	for i, e := range elements {
		if e.bucket {
			return nil, 0, fmt.Errorf("%w: record %x is marked as a bucket", ErrCorrupt, e.key)
		}
		records[i] = record{key: e.key, value: e.value}
	}
	return records, newest.transaction, nil
}

const (
	pageHeaderBytes   = 16
	pageElementBytes  = 16
	bucketHeaderBytes = 16
	boltMetaBytes     = 64

	branchFlag     = 1
	leafFlag       = 2
	metaFlag       = 4
	bucketLeafFlag = 1

	boltMagic   = 0xED0CDAED
	boltVersion = 2
	noFreeList  = ^uint64(0)
)

var native = binary.NativeEndian

type boltMeta struct{ root, freeList, pages, transaction uint64 }

func readMeta(file []byte, id uint64) (boltMeta, error) {
	wrong := func(what string) (boltMeta, error) {
		return boltMeta{}, fmt.Errorf("%w: meta page %d: %s", ErrCorrupt, id, what)
	}
	start := id * pageSizeBytes
	if uint64(len(file)) < start+pageSizeBytes {
		return wrong("the file ends before it")
	}
	page := file[start : start+pageSizeBytes]
	body := page[pageHeaderBytes:][:boltMetaBytes]
	sum := fnv.New64a()
	_, _ = sum.Write(body[:56])
	switch {
	case native.Uint64(page) != id || native.Uint16(page[8:]) != metaFlag || native.Uint16(page[10:]) != 0 || native.Uint32(page[12:]) != 0:
		return wrong("wrong header")
	case native.Uint32(body) != boltMagic:
		return wrong("wrong magic")
	case native.Uint64(body[56:]) != sum.Sum64():
		return wrong("wrong checksum")
	case native.Uint32(body[4:]) != boltVersion:
		return wrong("written by another version of bbolt")
	case native.Uint32(body[8:]) != pageSizeBytes:
		return wrong("another page size")
	case native.Uint64(body[48:])%2 != id:
		return wrong("of a transaction that belongs to the other")
	}
	return boltMeta{
		root:        native.Uint64(body[16:]),
		freeList:    native.Uint64(body[32:]),
		pages:       native.Uint64(body[40:]),
		transaction: native.Uint64(body[48:]),
	}, nil
}

// element is a leaf's.
type element struct {
	key, value []byte
	bucket     bool
}

// walk goes through the pages in use, each once.
type walk struct {
	file  []byte
	pages uint64 // in use, by the meta page
	seen  map[uint64]bool
}

// page appends the elements of the page id and of all below it, whose keys
// must lie at or after from and before to, where nil is no bound.
func (w *walk) page(id uint64, from, to []byte, elements []element) ([]element, error) {
	wrong := func(what string) ([]element, error) {
		return nil, fmt.Errorf("%w: page %d: %s", ErrCorrupt, id, what)
	}
	if id < 2 || id >= w.pages {
		return wrong("there is none")
	}
	page := w.file[id*pageSizeBytes:]
	overflow := uint64(native.Uint32(page[12:]))
	if native.Uint64(page) != id || overflow >= w.pages-id {
		return wrong("wrong header")
	}
	for p := id; p <= id+overflow; p++ {
		if w.seen[p] {
			return wrong("in use twice")
		}
		w.seen[p] = true
	}
	page = page[:(overflow+1)*pageSizeBytes]

	if native.Uint16(page[8:]) != branchFlag {
		found, end, err := leaf(page)
		if err != nil {
			return wrong(err.Error())
		}
		if (end+pageSizeBytes-1)/pageSizeBytes != overflow+1 {
			return wrong("wrong length")
		}
		if len(found) > 0 && !inOrder(from, found[0].key, found[len(found)-1].key, to) {
			return wrong("keys of another page")
		}
		return append(elements, found...), nil
	}

	children, end, err := branch(page)
	if err != nil {
		return wrong(err.Error())
	}
	if (end+pageSizeBytes-1)/pageSizeBytes != overflow+1 {
		return wrong("wrong length")
	}
	if !inOrder(from, children[0].key, children[len(children)-1].key, to) {
		return wrong("keys of another page")
	}
	for i, c := range children {
		next := to
		if i+1 < len(children) {
			next = children[i+1].key
		}
		before := len(elements)
		if elements, err = w.page(c.page, c.key, next, elements); err != nil {
			return nil, err
		}
		// A branch names each child by its first key.
		if len(elements) == before || !bytes.Equal(elements[before].key, c.key) {
			return wrong("wrong key of a page below")
		}
	}
	return elements, nil
}

// bucket returns the elements of the bucket with the given value.
func (w *walk) bucket(value []byte) ([]element, error) {
	wrong := func(what string) ([]element, error) {
		return nil, fmt.Errorf("%w: bucket %q: %s", ErrCorrupt, bucketName, what)
	}
	if len(value) < bucketHeaderBytes || native.Uint64(value[8:]) != 0 {
		return wrong("wrong header")
	}
	if root := native.Uint64(value); root != 0 {
		if len(value) != bucketHeaderBytes {
			return wrong("something follows its header")
		}
		return w.page(root, nil, nil, nil)
	}
	inline := value[bucketHeaderBytes:]
	if len(inline) < pageHeaderBytes || native.Uint64(inline) != 0 || native.Uint32(inline[12:]) != 0 {
		return wrong("wrong header in line")
	}
	elements, end, err := leaf(inline)
	if err != nil {
		return wrong(err.Error())
	}
	if end != uint64(len(inline)) {
		return wrong("something follows its elements")
	}
	return elements, nil
}

// leaf takes a leaf page apart; end is where its last value ends.
func leaf(page []byte) (elements []element, end uint64, err error) {
	if native.Uint16(page[8:]) != leafFlag {
		return nil, 0, fmt.Errorf("wrong flags")
	}
	n := uint64(native.Uint16(page[10:]))
	end = pageHeaderBytes + n*pageElementBytes
	if end > uint64(len(page)) {
		return nil, 0, fmt.Errorf("wrong number of elements")
	}
	elements = make([]element, n)
	for i := range elements {
		at := pageHeaderBytes + uint64(i)*pageElementBytes
		flags, position := native.Uint32(page[at:]), uint64(native.Uint32(page[at+4:]))
		keyBytes, valueBytes := uint64(native.Uint32(page[at+8:])), uint64(native.Uint32(page[at+12:]))
		if flags&^bucketLeafFlag != 0 || at+position != end || keyBytes == 0 || end+keyBytes+valueBytes > uint64(len(page)) {
			return nil, 0, fmt.Errorf("wrong element %d", i)
		}
		e := element{key: page[end:][:keyBytes:keyBytes], bucket: flags == bucketLeafFlag}
		end += keyBytes
		e.value = page[end:][:valueBytes:valueBytes]
		end += valueBytes
		if i > 0 && bytes.Compare(elements[i-1].key, e.key) >= 0 {
			return nil, 0, fmt.Errorf("keys out of order")
		}
		elements[i] = e
	}
	return elements, end, nil
}

type child struct {
	key  []byte
	page uint64
}

// branch takes a branch page apart; it has at least one child.
func branch(page []byte) (children []child, end uint64, err error) {
	n := uint64(native.Uint16(page[10:]))
	end = pageHeaderBytes + n*pageElementBytes
	if n == 0 || end > uint64(len(page)) {
		return nil, 0, fmt.Errorf("wrong number of elements")
	}
	children = make([]child, n)
	for i := range children {
		at := pageHeaderBytes + uint64(i)*pageElementBytes
		position, keyBytes := uint64(native.Uint32(page[at:])), uint64(native.Uint32(page[at+4:]))
		if at+position != end || keyBytes == 0 || end+keyBytes > uint64(len(page)) {
			return nil, 0, fmt.Errorf("wrong element %d", i)
		}
		children[i] = child{key: page[end:][:keyBytes:keyBytes], page: native.Uint64(page[at+8:])}
		end += keyBytes
		if i > 0 && bytes.Compare(children[i-1].key, children[i].key) >= 0 {
			return nil, 0, fmt.Errorf("keys out of order")
		}
	}
	return children, end, nil
}

// inOrder says that from <= first <= last < to, where nil is no bound.
func inOrder(from, first, last, to []byte) bool {
	return (from == nil || bytes.Compare(from, first) <= 0) && bytes.Compare(first, last) <= 0 &&
		(to == nil || bytes.Compare(last, to) < 0)
}
