package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/tidemark/tidemark/nbd/client"
)

const (
	goalChain  = 0.97 // reads from many snapshots, to reads from one
	snapshots  = 1000 // of Tidemark's long chain
	qcow2Chain = 50
)

// chainSteps read from volumes of one size whose blocks lie in one image over a
// full one, and spread evenly over many.
func (b *bench) chainSteps() []step {
	var tidemark, short, long *server
	var shortChain, longChain *server // views of tidemark's two volumes
	steps := []step{
		{fmt.Sprintf("make %d snapshots", snapshots), seconds(60), func(ctx context.Context) (err error) {
			if tidemark, err = b.startFilled(ctx, peers[0], "unix", fillBytes, "--scrub-every", "0"); err != nil {
				return err
			}
			shortChain, longChain, err = b.tidemarkChains(ctx, tidemark)
			return err
		}},
		{fmt.Sprintf("make qcow2 chains of 1 and %d", qcow2Chain), seconds(40), func(ctx context.Context) (err error) {
			if !b.peerWanted("qcow2 chain") {
				return nil
			}
			if short, err = b.qcow2Chain(ctx, 1); err != nil {
				return err
			}
			long, err = b.qcow2Chain(ctx, qcow2Chain)
			return err
		}},
	}
	w := workloadNamed("random read, depth 32")
	for round := range max(3, b.rounds) {
		for _, of := range []struct {
			server **server
			peer   string
			length int
		}{{&shortChain, "tidemark", 1}, {&longChain, "tidemark", snapshots}, {&short, "qcow2 chain", 1}, {&long, "qcow2 chain", qcow2Chain}} {
			steps = append(steps, step{fmt.Sprintf("read, %s of %d", of.peer, of.length), b.runTakes(), func(ctx context.Context) error {
				s := *of.server
				if s == nil {
					return nil // said before
				}
				if err := s.prepare(ctx); err != nil {
					return err
				}
				values, err := b.runFio(ctx, s, w)
				if err != nil {
					return err
				}
				values["length"] = float64(of.length)
				return b.add(record{Section: "chain", Case: fmt.Sprintf("%d", of.length), Peer: of.peer, Round: round, Values: values})
			}})
		}
	}
	return append(steps, step{"stop the chains", seconds(5), func(context.Context) (err error) {
		for _, s := range []*server{tidemark, short, long} {
			if s != nil {
				err = errors.Join(err, s.end())
			}
		}
		return err
	}})
}

// tidemarkChains gives the volume of a server one snapshot, and makes a second
// volume, on which the same writes are spread over many.
func (b *bench) tidemarkChains(ctx context.Context, s *server) (short, long *server, err error) {
	if err := s.create(ctx, "many", b.sizeBytes); err != nil {
		return nil, nil, err
	}
	many := *s
	many.uri = s.place.uri("many")
	if err := b.fill(ctx, &many, fillBytes); err != nil {
		return nil, nil, err
	}
	if err := s.snapshot(ctx, 0); err != nil {
		return nil, nil, err
	}
	if err := s.overwrite(ctx, 1, func(int) error { return nil }); err != nil {
		return nil, nil, err
	}
	err = many.overwrite(ctx, snapshots, func(i int) error {
		_, err := s.tidemark(ctx, "preserve", "many", "--name", fmt.Sprintf("p%d", i))
		return err
	})
	if err == nil { // what still seals would take CPU from what is measured
		_, err = s.tidemark(ctx, "preserve", "v", "many", "--name", "last", "--until", "sealed")
	}
	return s, &many, err
}

// qcow2Chain is a chain of overlays over a full image.
func (b *bench) qcow2Chain(ctx context.Context, length int) (*server, error) {
	p, err := b.newPlace("unix")
	if err != nil {
		return nil, err
	}
	s, err := b.fullQcow2(ctx, p)
	if err != nil {
		return nil, err
	}
	s.name, s.place = "qcow2 chain", p
	below := p.file("base.qcow2")
	err = s.overwrite(ctx, length, func(i int) error {
		if err := s.process.stop(); err != nil {
			return err
		}
		file := p.file(fmt.Sprintf("overlay%d.qcow2", i))
		if _, err := output(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", file); err != nil {
			return err
		}
		below = file
		s.process, err = b.startQEMU(ctx, p, "qcow2", file)
		return err
	})
	return s, err
}

// overwrite writes every block of a volume once, in random order, in so many
// parts; before calls what comes before each.
func (s *server) overwrite(ctx context.Context, parts int, before func(part int) error) error {
	order := rand.Perm(int(s.place.sizeBytes / 4096))
	for part := range parts {
		if err := before(part); err != nil {
			return err
		}
		if err := s.writeBlocks(ctx, order[len(order)*part/parts:len(order)*(part+1)/parts]); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) writeBlocks(ctx context.Context, blocks []int) error {
	c, err := client.Dial(ctx, s.uri)
	if err != nil {
		return err
	}
	var next atomic.Int64
	var g errgroup.Group
	for range writers {
		g.Go(func() error {
			data := make([]byte, 4096)
			for {
				i := int(next.Add(1)) - 1
				if i >= len(blocks) {
					return nil
				}
				data[0] = byte(blocks[i])
				if _, err := c.WriteAt(data, int64(blocks[i])*4096); err != nil {
					return err
				}
			}
		})
	}
	return errors.Join(g.Wait(), c.Close())
}
