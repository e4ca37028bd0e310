// Package tidemark is a block-storage system whose preserve command keeps a
// volume as it was without pausing, draining or copying anything on the I/O
// path.
//
// A volume is a chain of images, oldest first. A preserve appends an empty one
// and makes it live with one atomic store; I/O processes begun before that cut
// go on in the older image, and when the last has ended, the snapshot is exact.
//
// This package holds no code. To embed Tidemark begin with package store, which
// opens a data directory; the mechanism itself is in package volume, NBD in
// nbd, the API in api, and the command line in cli. imports_test.go has the
// order in which packages may import each other.
package tidemark
