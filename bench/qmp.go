package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
)

// startStorageDaemon starts one without an iothread: with one, version 7.2 aborts
// when a client that only probes closes its connection.
func startStorageDaemon(b *bench, ctx context.Context, p place) (*server, error) {
	s := &server{uri: p.uri("v"), files: p.file("*.qcow2")}
	err := b.createQcow2(ctx, s, p)
	if err != nil {
		return nil, err
	}
	s.process, err = b.start(ctx, p.dir, p.network, p.addr, "qemu-storage-daemon",
		"--chardev", "socket,id=q,server=on,wait=off,path="+p.file("qmp.sock"), "--monitor", "chardev=q",
		"--blockdev", "driver=file,node-name=file0,filename="+p.file("base.qcow2"), "--blockdev", "driver=qcow2,node-name=node0,file=file0",
		"--nbd-server", "addr.type=unix,addr.path="+p.addr, "--export", "type=nbd,id=e,node-name=node0,name=v,writable=on")
	if err != nil {
		return nil, err
	}
	q, err := dialQMP(p.file("qmp.sock"))
	if err != nil {
		return nil, err
	}
	taken := 0
	s.close = q.nc.Close
	s.snapshot = func(context.Context, int, ...string) error {
		from := "node" + strconv.Itoa(taken)
		taken++
		return q.execute("blockdev-snapshot-sync", map[string]string{
			"node-name": from, "snapshot-node-name": "node" + strconv.Itoa(taken),
			"snapshot-file": p.file(fmt.Sprintf("overlay%d.qcow2", taken)), "format": "qcow2",
		})
	}
	return s, nil
}

// qmp is a connection to the monitor of a daemon of QEMU.
type qmp struct {
	nc      net.Conn
	replies *bufio.Reader
}

func dialQMP(socket string) (*qmp, error) {
	nc, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	q := &qmp{nc, bufio.NewReader(nc)}
	_, err = q.replies.ReadBytes('\n') // the greeting
	if err == nil {
		err = q.execute("qmp_capabilities", nil)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("QMP: %w", err), nc.Close())
	}
	return q, nil
}

// execute runs a command and waits for its answer.
func (q *qmp) execute(command string, arguments map[string]string) error {
	message := map[string]any{"execute": command}
	if arguments != nil {
		message["arguments"] = arguments
	}
	if err := json.NewEncoder(q.nc).Encode(message); err != nil {
		return fmt.Errorf("QMP: %w", err)
	}
	for { // events come between
		line, err := q.replies.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("QMP: %w", err)
		}
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(line, &reply); err != nil {
			return fmt.Errorf("QMP: %w", err)
		}
		switch {
		case reply.Error != nil:
			return fmt.Errorf("%s: %s", command, reply.Error.Desc)
		case reply.Return != nil:
			return nil
		}
	}
}
