package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/nbd/client"
)

const (
	pairOff     = workers * regionBytes // of its region, in both volumes
	pairSectors = 256
	pairBytes   = pairSectors * sectorBytes
)

// pair is a client all of whose processes belong together over two volumes: each
// writes its number to the same sectors of both. So what both hold is alike between
// its processes, and in every snapshot of both that holds processes whole (I1, I2).
// One that is cut off leaves them different, until the next has written all anew.
type pair struct {
	v *generation
	n seq // of its processes

	mu    sync.Mutex
	alike era // in it both sides are alike, but for processes that run
}

// era is a time in which no process is cut off: a life of the server, between two
// rollbacks.
type era struct{ life, rolled int }

func newPair(v *generation) *pair { return &pair{v: v} }

// isWhole tells whether both sides have been alike since some time of this era.
func (p *pair) isWhole() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.alike == era{p.v.server.life(), p.v.rolling.count()}
}

func (p *pair) run(ctx context.Context) error {
	for ctx.Err() == nil {
		rolled, err := p.v.rolling.wait(ctx)
		if err != nil {
			return nil // its time is over
		}
		now, whole := era{p.v.server.life(), rolled}, p.isWhole()
		err = p.process(ctx, whole)
		var wrong *wrongError
		if errors.As(err, &wrong) {
			return err
		}
		p.mu.Lock()
		if p.alike = now; err != nil { // it was cut off
			p.alike = era{}
		}
		p.mu.Unlock()
	}
	return nil
}

// process is one of its processes, from begin to end. If both sides are not whole, it
// makes them so.
func (p *pair) process(ctx context.Context, whole bool) (err error) {
	p.n++
	token := fmt.Sprintf("%s-pair-%d-%08x", p.v.a, p.n, rand.Uint32())
	whenever := context.WithoutCancel(ctx) // whether a call that is cut off begins a process nobody knows
	begun, err := p.v.server.client().BeginProcess(whenever, &tidemarkv1.BeginProcessRequest{Groups: []string{p.v.group}, Token: token})
	if err != nil {
		return err
	}
	end := func() error {
		_, err := p.v.server.client().EndProcess(whenever, &tidemarkv1.EndProcessRequest{Token: token})
		return err
	}
	if n := len(begun.GetProcess().GetVolumes()); n != 2 {
		return &wrongError{fmt.Sprintf("WRONG: the process %s of a group of 2 volumes has %d", token, n)}
	}
	var sides [2]*client.Client
	for i, volume := range p.v.volumes() {
		if sides[i], err = p.v.server.open(ctx, volume+":process:"+token); err != nil {
			return errors.Join(err, end())
		}
		defer func() { _ = sides[i].Close() }()
	}
	if err := p.write(sides, whole); err != nil {
		return errors.Join(err, end())
	}
	if err := end(); err != nil {
		return err
	}
	p.v.done.pairs.Add(1)
	return nil
}

// write finds both sides alike, and makes them so again with other contents.
func (p *pair) write(sides [2]*client.Client, whole bool) error {
	data := make([]byte, pairBytes)
	other := make([]byte, pairBytes)
	if whole {
		if _, err := sides[0].ReadAt(data, pairOff); err != nil {
			return err
		}
		if _, err := sides[1].ReadAt(other, pairOff); err != nil {
			return err
		}
		if err := alike(data, other, "the live volumes "+p.v.a+" and "+p.v.b); err != nil {
			return err
		}
	}
	stamp := func(first, count int) []byte {
		for i := range count {
			stampSector(other[i*sectorBytes:][:sectorBytes], pairOff/sectorBytes+uint64(first+i), p.n)
		}
		return other[:count*sectorBytes]
	}
	writes := [][2]int{{0, pairSectors}}
	if whole {
		writes = writes[:0]
		for range 1 + rand.IntN(4) {
			first := rand.IntN(pairSectors)
			writes = append(writes, [2]int{first, 1 + rand.IntN(min(12, pairSectors-first))})
		}
	}
	for _, i := range rand.Perm(2 * len(writes)) { // in any order
		w := writes[i/2]
		if _, err := sides[i%2].WriteAt(stamp(w[0], w[1]), pairOff+int64(w[0])*sectorBytes); err != nil {
			return err
		}
	}
	return nil
}

// alike compares both sides.
func alike(a, b []byte, where string) error {
	for i := range pairSectors {
		a, b := a[i*sectorBytes:][:sectorBytes], b[i*sectorBytes:][:sectorBytes]
		if !bytes.Equal(a, b) {
			return &wrongError{fmt.Sprintf("TORN: sector %d of the pair differs in %s: %x and %x", i, where, a[:16], b[:16])}
		}
	}
	return nil
}

// holdsProcessesWhole asks whether a snapshot of both volumes holds processes whole:
// not if its preserve was degraded, or met the end of a server or of a process.
func (v *generation) holdsProcessesWhole(ctx context.Context, k *kept) bool {
	for _, volume := range k.volumes {
		var s *tidemarkv1.Snapshot
		if err := v.server.call(ctx, func(ctx context.Context, a api.Client) error {
			r, err := a.GetSnapshot(ctx, &tidemarkv1.GetSnapshotRequest{Name: k.of(volume)})
			s = r.GetSnapshot()
			return err
		}, func(error) bool { return false }); err != nil || s.GetConsistency() != tidemarkv1.Consistency_CONSISTENCY_PROCESS || s.GetState() != tidemarkv1.State_STATE_SEALED {
			return false
		}
	}
	return true
}
